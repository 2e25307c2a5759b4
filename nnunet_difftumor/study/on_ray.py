"""The trainings of a study as tasks of a Ray cluster, several at a time; Ray gives each its machine and its GPU."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.study.data_views import StudyData
from nnunet_difftumor.study.generator_training import state_of_stage, train_stage
from nnunet_difftumor.study.generators import Stage
from nnunet_difftumor.study.plan import Study
from nnunet_difftumor.study.running import state_of, train
from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.support.processes.logged_command import run_logged
from nnunet_difftumor.support.processes.work_folder import FINISHED, RunError
from nnunet_difftumor.trainer.schedule import CPU_THREADS_VARIABLE

_PASSED_ON = ("nnUNet_", "OMP_", "DIFFTUMOR_")
_SECONDS_TO_END = 90.0
_STATUS_OF_SIGTERM = 128 + signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Where to run, and what each training gets.

    Attributes:
        address: Address of a cluster; None: that of RAY_ADDRESS or of this machine, else a Ray of its own here.
        gpus_per_run: GPUs that Ray reserves for a training; parts of one are possible.
        cpus_per_run: Cores that Ray reserves for a training.
    """

    address: str | None
    gpus_per_run: float
    cpus_per_run: float

    def __post_init__(self) -> None:
        for name in ("gpus_per_run", "cpus_per_run"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ConfigurationError(f"--{name.replace('_', '-')} must be 0 or more, got {value:g}.")


@contextmanager
def ray_session(options: RayOptions) -> Iterator[RaySession]:
    """Join or start Ray, and leave it in the end.

    Args:
        options: Where, and with what.

    Raises:
        ConfigurationError: If Ray is not installed or cannot be reached.
    """
    ray = _import_ray()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network
    on_terminate: Any = signal.getsignal(signal.SIGTERM)
    variables = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    variables.setdefault(CPU_THREADS_VARIABLE, str(max(1, int(options.cpus_per_run))))
    own = {} if options.address else {"include_dashboard": False}
    try:
        ray.init(options.address, runtime_env={"env_vars": variables}, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"--ray: Ray cannot be reached or started: {error}") from error
    signal.signal(signal.SIGTERM, on_terminate)  # Ray has set its own
    try:
        _say_if_it_never_fits(ray, options)
        yield RaySession(ray, options)
    except SystemExit as end:
        raise SystemExit(_STATUS_OF_SIGTERM) from end  # Ray changes the status
    finally:
        ray.shutdown()


class RaySession:
    """A connection to Ray.

    Args:
        options: What each training gets.
    """

    def __init__(self, ray: Any, options: RayOptions) -> None:
        self._ray = ray
        self._resources = {"num_cpus": options.cpus_per_run, "num_gpus": options.gpus_per_run}

    def train_all(self, runs: Sequence[Run], data: StudyData) -> Mapping[str, DiffTumorError]:
        """Train runs side by side, as many as fit, each after the generator that it needs; finished ones are skipped.

        Args:
            data: The study's data set.

        Returns:
            What went wrong, by name of the run.
        """
        left = [run for run in runs if state_of(run) != FINISHED]
        print(f"{len(runs)} runs, {len(runs) - len(left)} done before, {len(left)} to train on Ray", flush=True)
        stages = {stage.name: stage for run in left for stage in run.generator_stages}
        generators: dict[str, Any] = {}
        tasks: dict[Any, str] = {}
        shared = self._ray.put(data)
        for name, stage in stages.items():
            if state_of_stage(stage) != FINISHED:
                before = [generators[each] for each in _needs(stage, stages) if each in generators]
                generators[name] = self._start(_train_stage, stage, *before)
                tasks[generators[name]] = name
        for run in left:
            before = [generators[stage.name] for stage in run.generator_stages if stage.name in generators]
            tasks[self._start(_train_run, run, shared, *before)] = run.name
        errors = self._wait(tasks, {run.name: run.folder for run in left} | {s.name: s.folder for s in stages.values()})
        return {run.name: errors[run.name] for run in left if run.name in errors}

    def compare_all(self, study: Study, runs: Sequence[Run], data: StudyData, output: Path) -> tuple[Path, ...]:
        """Compare as one task, because predicting wants a GPU too.

        Raises:
            DiffTumorError: If the comparison fails, or Ray loses its task.
        """
        print("Comparing on Ray", flush=True)
        task = self._start(_compare_all, study, runs, data, output)
        with self._ended_with_us([task]):
            result = self._result(task, "comparison")
        if isinstance(result, DiffTumorError):
            raise result
        return result

    def _start(self, function: Any, *arguments: Any) -> Any:
        return self._ray.remote(function).options(**self._resources).remote(*arguments)

    def _result(self, task: Any, name: str) -> Any:
        """What a task returned, or that it was lost."""
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as crash:
            return RunError(f"{name}: its Ray task ended: {crash}")

    def _wait(self, tasks: Mapping[Any, str], folders: Mapping[str, Path]) -> dict[str, DiffTumorError]:
        """Report each task as it ends."""
        errors: dict[str, DiffTumorError] = {}
        pending = list(tasks)
        with self._ended_with_us(pending):
            while pending:
                ended, rest = self._ray.wait(pending, num_returns=1)
                pending[:] = rest
                name = tasks[ended[0]]
                error = self._result(ended[0], name)
                count = f"{len(tasks) - len(pending)}/{len(tasks)}"
                if error is None:
                    print(f"=== {count} {name}: done, see {folders[name]}", flush=True)
                else:
                    errors[name] = error
                    print(f"=== {count} {name}: {type(error).__name__}: {error}", flush=True)
        return errors

    @contextmanager
    def _ended_with_us(self, pending: list[Any]) -> Iterator[None]:
        """End what still runs when this process is interrupted, and give nnU-Net the time to end in order."""
        try:
            yield
        except BaseException:
            print("\nEnding the trainings on Ray", flush=True)
            for task in pending:
                self._ray.cancel(task)
            self._ray.wait(pending, num_returns=len(pending), timeout=_SECONDS_TO_END)
            raise


def _train_stage(stage: Stage, *before: DiffTumorError | None) -> DiffTumorError | None:
    """Task: train a stage of a generator, after the stages before it; return what went wrong."""
    failed = next((error for error in before if error is not None), None)
    if failed is not None:
        return RunError(f"{stage.name}: what it is trained with failed: {failed}")
    try:
        train_stage(stage, run_command=functools.partial(run_logged, is_told_to_end=False))
    except DiffTumorError as error:
        return error
    return None


def _train_run(run: Run, data: StudyData, *before: DiffTumorError | None) -> DiffTumorError | None:
    """Task: train a run, after its generator; return what went wrong."""
    failed = next((error for error in before if error is not None), None)
    if failed is not None:
        return RunError(f"{run.name}: its generator failed: {failed}")
    try:
        train(run, data, run_command=functools.partial(run_logged, is_told_to_end=False))
    except DiffTumorError as error:
        return error
    return None


def _compare_all(study: Study, runs: Sequence[Run], data: StudyData, output: Path) -> tuple[Path, ...] | DiffTumorError:
    """Task: compare; return the reports, or what went wrong."""
    from nnunet_difftumor.evaluation.comparison.run import compare
    from nnunet_difftumor.study.comparing import compare_all

    try:
        return compare_all(study, runs, data, output, compare=compare)
    except DiffTumorError as error:
        return error


def _needs(stage: Stage, stages: Mapping[str, Stage]) -> list[str]:
    """Names of the stages that a stage reads from."""
    return [name for name, other in stages.items() if str(other.folder) in stage.working_options]


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(
            f"--ray needs Ray, which is not installed ({error}): pip install 'nnunet-difftumor[ray]', on every machine "
            "of the cluster. Without it, the runs are trained one after the other, or as a Slurm job array (--slurm)."
        ) from error


def _say_if_it_never_fits(ray: Any, options: RayOptions) -> None:
    wanted = {"CPU": options.cpus_per_run, "GPU": options.gpus_per_run}
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(machine.get(key, 0) >= value for key, value in wanted.items()) for machine in machines):
        print(
            f"No machine of the cluster has {options.cpus_per_run:g} cores and {options.gpus_per_run:g} GPUs; Ray "
            "waits until one joins. If none will, interrupt, and give other --cpus-per-run or --gpus-per-run.",
            flush=True,
        )
