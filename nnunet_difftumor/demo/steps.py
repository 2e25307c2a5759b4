"""The steps of the demo: the commands that a user would type, in order."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME, SPLITS_FILE_NAME, read_holdout, read_splits, write_splits
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.demo.layout import CONFIGURATION, FOLD, PLANS_NAME, TRAINER_NAME, DemoFolder
from nnunet_difftumor.demo.plans import write_small_plans
from nnunet_difftumor.demo.settings import DemoSettings
from nnunet_difftumor.demo.soft_tissue import make_real_dataset
from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.settings.sources import CONFIG_FILE_NAME
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.steps import RunCommand, Step, run_or_raise
from nnunet_difftumor.trainer.discovery import ext_trainer_folder

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True, kw_only=True)
class DemoStep(Step):
    """One step of the demo.

    Attributes:
        name: Names its marker and its log.
        title: What happens, for people.
        words: The command; none for a step that is all in `before`.
        before: Called before the command.
        note: What `before` writes, as a comment above the command.
        variables: Variables of this command alone.
        environment: Variables of every command.
        number: Its place in the demo.
    """

    folder: DemoFolder
    name: str
    title: str
    words: list[str] = field(default_factory=list)
    before: Callable[[], object] | None = None
    note: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    number: int = 0

    @property
    def work_folder(self) -> Path:
        """Markers of all steps; a lock there keeps two demos apart."""
        return self.folder.stages

    @property
    def done_file(self) -> Path:
        """Its marker."""
        return self.folder.stages / f"{self.number:02d}-{self.name}.json"

    @property
    def typed(self) -> str:
        """The command with its variables, for a shell."""
        return " ".join(
            [*(f"{key}={shlex.quote(value)}" for key, value in self.variables.items()), shlex.join(self.words)]
        )

    def execute(self, run_command: RunCommand) -> None:
        """Do what comes before the command, then run it."""
        if self.before is not None:
            print(f"# {self.note}", flush=True)
            self.before()
        if not self.words:
            return
        self.folder.logs.mkdir(parents=True, exist_ok=True)
        run_or_raise(
            self.words,
            {**self.environment, **self.variables},
            self.folder.logs / f"{self.number:02d}-{self.name}.log",
            run_command,
            typed=self.typed,
            who=f"'{self.title}'",
            advice="Correct the cause and run the demo again: finished stages are skipped.",
        )

    def mark(self, seconds: float) -> dict[str, object]:
        """What the report says of it."""
        command = "\n".join([*([f"# {self.note}"] if self.note else []), self.typed])
        return {"name": self.name, "title": self.title, "command": command, "seconds": round(seconds, 1)}


def run_steps(makers: list[Callable[[], DemoStep]], environment: Mapping[str, str]) -> None:
    """Run steps in order; those that are finished are skipped.

    Args:
        makers: Make a step when its turn has come, so that its words know what the steps before left.
        environment: Variables of every command.

    Raises:
        RunError: If a command ends with an error; later steps do not run.
    """
    for number, make in enumerate(makers, start=1):
        step = replace(make(), environment=environment, number=number)
        print(f"\n=== {number}/{len(makers)} {step.title}", flush=True)
        print("    done" if step.run_once() else "    done before, skipped", flush=True)


@dataclass(frozen=True)
class Demo:
    """One demo.

    Attributes:
        folder: Where it keeps its files.
        settings: What is run, and for how long.
        device: "cuda" or "cpu".
        real_data: Folder of the real CT, for the demo on real data.
    """

    folder: DemoFolder
    settings: DemoSettings
    device: str
    real_data: Path | None = None

    def environment(self) -> dict[str, str]:
        """Variables of every command: nnU-Net's folders, few and patient processes, this Python's programs first."""
        programs = str(Path(sys.executable).parent)
        return {
            "PATH": os.pathsep.join([programs, os.environ.get("PATH", "")]),
            "PYTHONUNBUFFERED": "1",
            "OMP_WAIT_POLICY": "passive",
            "nnUNet_raw": str(self.folder.raw.parent),
            "nnUNet_preprocessed": str(self.folder.preprocessed.parent),
            "nnUNet_results": str(self.folder.results.parent),
            "nnUNet_extTrainer": str(ext_trainer_folder()),
            "nnUNet_def_n_proc": "1",
            "nnUNet_n_proc_DA": "1",
        }

    def steps(self) -> list[Callable[[], DemoStep]]:
        """Return what makes each step, in order."""
        data = [self._real] if self.settings.data == "real" else [self._phantom, self._splits]
        generator = [self._autoencoder, self._diffusion, self._evaluate, self._synthesize]
        return [*data, *generator, self._plan, self._preprocess, self._train, self._predict, self._score]

    def _step(self, name: str, title: str, *words: object, **details: Any) -> DemoStep:
        return DemoStep(folder=self.folder, name=name, title=title, words=[str(word) for word in words], **details)

    def _phantom(self) -> DemoStep:
        counts = ["--cases", self.settings.tumor_cases, "--healthy", self.settings.healthy_cases]
        words = ["difftumor", "phantom", "--output", self.folder.raw, *counts]
        return self._step("data", "Make the CT phantom", *words)

    def _splits(self) -> DemoStep:
        words = ["difftumor", "splits", "-d", self.settings.dataset_id, "--folds", self.settings.folds]
        return self._step("splits", "Split the cases", *words)

    def _real(self) -> DemoStep:
        title = "Arrange the real CT as an nnU-Net data set with its fixed split"
        note = f"{self.real_data} as {self.folder.raw}, and {self._splits_file}"
        return self._step("data", title, before=self._arrange_real_data, note=note)

    def _arrange_real_data(self) -> None:
        if self.real_data is None:
            raise DatasetError(
                "--data real needs the folder of the real CT. Set DIFFTUMOR_REAL_CT to the folder that holds sts/."
            )
        unfinished = self.folder.raw.parent / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        dataset = make_real_dataset(self.real_data, unfinished, name=self.folder.dataset)
        os.replace(dataset.folder, self.folder.raw)
        unfinished.rmdir()
        holdout = {"holdout": [], "share": 0.0, "healthy_cases": len(dataset.healthy)}
        write_splits(self.folder.preprocessed, dataset.folds, holdout, overwrite=True)

    def _autoencoder(self) -> DemoStep:
        words = self._training_words("train-autoencoder", self.folder.autoencoder, self.settings.autoencoder_steps)
        return self._step("autoencoder", "Stage 1: train the autoencoder", *words)

    def _diffusion(self) -> DemoStep:
        words = self._training_words("train-diffusion", self.folder.diffusion, self.settings.diffusion_steps)
        words += ["--autoencoder", self.folder.autoencoder]
        return self._step("diffusion", "Stage 2: train the diffusion model", *words)

    def _training_words(self, command: str, output: Path, steps: int) -> list[object]:
        words = ["difftumor", command, "--data", self.folder.raw, "--output", output, "--steps", steps]
        words += ["--preset", self.settings.preset, "--splits", self._splits_file, "--fold", FOLD]
        return [*words, "--resume"] if output.exists() else words

    def _evaluate(self) -> DemoStep:
        words = ["difftumor", "evaluate-generator", "--generator", self.folder.generator, "--data", self.folder.raw]
        words += ["--splits", self._splits_file, "--fold", FOLD, "--output", self.folder.evaluation]
        return self._step(
            "evaluate", "Compare generated tumours with those of the data", *words, "--quick", "--overwrite"
        )

    def _synthesize(self) -> DemoStep:
        dataset = load_raw_dataset(self.folder.raw)
        organ_label, _ = resolve_label_roles(dataset.options["labels"])
        cases = {case.identifier: case for case in dataset.cases}
        healthy = [name for name in cases if "_healthy" in name]  # both kinds of data name them so
        case = cases[[*self._holdout(), *healthy][0]]
        radii = [f"{value:g}" for value in self.settings.synthesized_radius_mm]
        words = ["difftumor", "synthesize", "--ct", case.image_path, "--organ-mask", case.label_path]
        words += ["--organ-label", organ_label, "--generator", self.folder.generator, "--radius-mm", *radii]
        words += ["--count", self.settings.synthesized_count, "--seed", 1, "--output", self.folder.synthetic]
        return self._step("synthesize", "Put tumours into a scan without tumours", *words, "--overwrite")

    def _plan(self) -> DemoStep:
        spacing = [f"{value:g}" for value in self.settings.target_spacing_mm]
        words = ["nnUNetv2_plan_and_preprocess", "-d", self.settings.dataset_id, "-c", CONFIGURATION, "-np", 1]
        words += ["--verify_dataset_integrity", "-npfp", 1, "--no_pp", "-overwrite_target_spacing", *spacing]
        return self._step("plan", "nnU-Net: fingerprint and plans", *words, variables=_ONE_THREAD)

    def _preprocess(self) -> DemoStep:
        words = ["nnUNetv2_preprocess", "-d", self.settings.dataset_id, "-c", CONFIGURATION]
        patch = " x ".join(map(str, self.settings.patch_size))
        return self._step(
            "preprocess",
            "nnU-Net: preprocess, for a small patch and network",
            *words,
            *("-plans_name", PLANS_NAME, "-np", 1),
            variables=_ONE_THREAD,
            before=lambda: write_small_plans(self.folder.preprocessed, PLANS_NAME, CONFIGURATION, self.settings),
            note=f"{PLANS_NAME}.json: nnU-Net's plans with patch {patch} and features {self.settings.features}",
        )

    def _train(self) -> DemoStep:
        words = ["nnUNetv2_train", self.settings.dataset_id, CONFIGURATION, FOLD, "-tr", TRAINER_NAME]
        words += ["-p", PLANS_NAME, "-device", self.device]
        words += ["--c"] if any(self.folder.training.glob("checkpoint_*.pth")) else []
        settings = {
            "generator": str(self.folder.generator),
            "size_classes": list(self.settings.size_classes),
            "healthy_holdout": self.settings.healthy_holdout,
            "num_epochs": self.settings.epochs,
            "num_iterations_per_epoch": self.settings.iterations,
            "num_val_iterations_per_epoch": self.settings.val_iterations,
        }
        return self._step(
            "train",
            "Stage 3: train nnU-Net with injected tumours",
            *words,
            variables=_ONE_THREAD,
            before=lambda: write_json(self.folder.preprocessed / CONFIG_FILE_NAME, settings, overwrite=True),
            note=f"{CONFIG_FILE_NAME}: {', '.join(settings)}",
        )

    def _predict(self) -> DemoStep:
        words = [
            "nnUNetv2_predict",
            "-d",
            self.settings.dataset_id,
            "-c",
            CONFIGURATION,
            "-f",
            FOLD,
            "-tr",
            TRAINER_NAME,
        ]
        words += ["-p", PLANS_NAME, "-i", self.folder.test_images, "-o", self.folder.predictions, "-npp", 1, "-nps", 1]
        words += ["--disable_tta", "-device", self.device]
        note = f"{self.folder.test_images.name}: the cases that did not train"
        return self._step("predict", "nnU-Net: predict", *words, before=self._gather_images, note=note)

    def _gather_images(self) -> None:
        self.folder.test_images.mkdir(parents=True, exist_ok=True)
        tested = {*read_splits(self._splits_file)[FOLD].val, *self._holdout()}
        for case in load_raw_dataset(self.folder.raw).cases:
            if case.identifier in tested:
                shutil.copyfile(case.image_path, self.folder.test_images / case.image_path.name)

    def _score(self) -> DemoStep:
        words = ["difftumor", "score", "--reference", self.folder.raw / "labelsTr", "--prediction"]
        words += [self.folder.predictions, "--labels", self.folder.raw / "dataset.json", "--only-predicted"]
        return self._step("score", "Score", *words, "--workers", 1, "--output", self.folder.scores, "--overwrite")

    @property
    def _splits_file(self) -> Path:
        return self.folder.preprocessed / SPLITS_FILE_NAME

    def _holdout(self) -> tuple[str, ...]:
        """Healthy cases that train nothing."""
        return read_holdout(self.folder.preprocessed / HOLDOUT_FILE_NAME) or ()


def describe_environment(environment: Mapping[str, str]) -> str:
    """Return nnU-Net's variables as a user would export them, one a line."""
    return "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in environment.items() if name.startswith("nnUNet_")
    )
