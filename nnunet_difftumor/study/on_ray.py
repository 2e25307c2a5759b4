"""The trainings of a study as tasks of a Ray cluster, several at a time; Ray gives each its machine and its GPU."""

from __future__ import annotations

import functools
import importlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.study.runs import Run
from nnunet_difftumor.support.processes.logged_command import run_logged
from nnunet_difftumor.support.processes.steps import FINISHED, RunError, Step
from nnunet_difftumor.trainer.schedule import CPU_THREADS_VARIABLE

_PASSED_ON = ("nnUNet_", "OMP_", "DIFFTUMOR_")
_SECONDS_TO_END = 90.0
_STATUS_OF_SIGTERM = 128 + signal.SIGTERM


@contextmanager
def ray_session(address: str | None, *, gpus_per_run: float, cpus_per_run: float) -> Iterator[RaySession]:
    """Join or start Ray, and leave it in the end.

    Args:
        address: Address of a cluster; None: that of RAY_ADDRESS or of this machine, else a Ray of its own here.
        gpus_per_run: GPUs that Ray reserves for a training; parts of one are possible.

    Raises:
        ConfigurationError: If a number is negative, or Ray is not installed or cannot be reached.
    """
    for name, value in (("--gpus-per-run", gpus_per_run), ("--cpus-per-run", cpus_per_run)):
        if not 0 <= value < float("inf"):
            raise ConfigurationError(f"{name} must be 0 or more, got {value:g}.")
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError as error:
        raise ConfigurationError(
            f"--ray needs Ray, which is not installed ({error}): pip install 'nnunet-difftumor[ray]', on every machine "
            "of the cluster. Without it, the runs are trained one after the other, or as a Slurm job array (--slurm)."
        ) from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report over the network
    on_terminate: Any = signal.getsignal(signal.SIGTERM)
    variables = {key: value for key, value in os.environ.items() if key.startswith(_PASSED_ON)}
    variables.setdefault(CPU_THREADS_VARIABLE, str(max(1, int(cpus_per_run))))
    own = {} if address else {"include_dashboard": False}
    try:
        ray.init(address, runtime_env={"env_vars": variables}, log_to_driver=False, **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigurationError(f"--ray: Ray cannot be reached or started: {error}") from error
    signal.signal(signal.SIGTERM, on_terminate)  # Ray has set its own
    try:
        _say_if_it_never_fits(ray, cpus=cpus_per_run, gpus=gpus_per_run)
        yield RaySession(ray, {"num_cpus": cpus_per_run, "num_gpus": gpus_per_run})
    except SystemExit as end:
        raise SystemExit(_STATUS_OF_SIGTERM) from end  # Ray changes the status
    finally:
        ray.shutdown()


class RaySession:
    """A connection to Ray."""

    def __init__(self, ray: Any, resources: Mapping[str, float]) -> None:
        self._ray, self._resources = ray, resources

    def train_all(self, runs: Sequence[Run]) -> Mapping[str, DiffTumorError]:
        """Train what is not finished side by side, runs after their generators; gives what went wrong, by run."""
        left = [run for run in runs if run.state() != FINISHED]
        print(f"{len(runs)} runs, {len(runs) - len(left)} done before, {len(left)} to train on Ray", flush=True)
        started: dict[str, tuple[Any, Step]] = {}
        steps: list[tuple[Step, Sequence[Step]]] = []
        for run in left:
            steps += [(stage, run.generator_stages[:number]) for number, stage in enumerate(run.generator_stages)]
        for step, before in [*steps, *((run, run.generator_stages) for run in left)]:
            if step.name not in started and step.state() != FINISHED:
                tasks = [started[other.name][0] for other in before if other.name in started]
                started[step.name] = self._start(_run_step, step, *tasks), step
        errors = self._wait(dict(started.values()))
        return {run.name: errors[run.name] for run in left if run.name in errors}

    def compare_all(self, runs: Sequence[Run]) -> tuple[Path, ...]:
        """Compare as one task, because predicting wants a GPU too.

        Raises:
            DiffTumorError: If the comparison fails, or Ray loses its task.
        """
        from nnunet_difftumor.study.comparing import compare_all

        print("Comparing on Ray", flush=True)
        task = self._start(_returning_errors, compare_all, runs)
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

    def _wait(self, tasks: Mapping[Any, Step]) -> dict[str, DiffTumorError]:
        """Report each task as it ends."""
        errors: dict[str, DiffTumorError] = {}
        pending = list(tasks)
        with self._ended_with_us(pending):
            while pending:
                ended, rest = self._ray.wait(pending, num_returns=1)
                pending[:] = rest
                step = tasks[ended[0]]
                said = f"done, see {step.done_file.parent}"
                if error := self._result(ended[0], step.name):
                    errors[step.name], said = error, f"{type(error).__name__}: {error}"
                print(f"=== {len(tasks) - len(pending)}/{len(tasks)} {step.name}: {said}", flush=True)
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


def _run_step(step: Step, *before: DiffTumorError | None) -> DiffTumorError | None:
    """Task: run a step, after the steps before it; return what went wrong."""
    failed = next((error for error in before if error is not None), None)
    if failed is not None:
        return RunError(f"{step.name}: what it is trained with failed: {failed}")
    result = _returning_errors(step.run_once, functools.partial(run_logged, is_told_to_end=False))
    return None if isinstance(result, bool) else result


def _returning_errors(function: Callable[..., Any], *arguments: Any) -> Any:
    """Task: call a function; return what it returns, or what went wrong."""
    try:
        return function(*arguments)
    except DiffTumorError as error:
        return error


def _say_if_it_never_fits(ray: Any, *, cpus: float, gpus: float) -> None:
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(machine.get("CPU", 0) >= cpus and machine.get("GPU", 0) >= gpus for machine in machines):
        print(
            f"No machine of the cluster has {cpus:g} cores and {gpus:g} GPUs; Ray waits until one joins. If none will, "
            "interrupt, and give other --cpus-per-run or --gpus-per-run.",
            flush=True,
        )
