"""The steps of the demo: the commands that a user would type, in order."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME, read_holdout, read_splits, write_splits
from nnunet_difftumor.ct.datasets import Case, load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.demo.layout import FOLD, TRAINER_NAME, DemoFolder
from nnunet_difftumor.demo.settings import CONFIGURATION, PLANS_NAME, DemoSettings
from nnunet_difftumor.demo.soft_tissue import make_real_dataset
from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.settings.sources import CONFIG_FILE_NAME
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.processes.steps import RunCommand, Step, run_or_raise
from nnunet_difftumor.trainer.discovery import ext_trainer_folder
from nnunet_difftumor.trainer.small_plans import write_small_plans

COMMANDS = {
    "real": ("Arrange the real CT as an nnU-Net data set with its fixed split", ""),
    "phantom": (
        "Make the CT phantom",
        "difftumor phantom --output {folder.raw} --cases {settings.tumor_cases} --healthy {settings.healthy_cases}",
    ),
    "splits": ("Split the cases", "difftumor splits -d {settings.dataset_id} --folds {settings.folds}"),
    "autoencoder": (
        "Stage 1: train the autoencoder",
        "difftumor train-autoencoder -d {folder.raw} --output {folder.autoencoder} --preset {settings.preset} "
        "--steps {settings.autoencoder_steps} --splits {folder.splits} -f {fold}",
    ),
    "diffusion": (
        "Stage 2: train the diffusion model",
        "difftumor train-diffusion -d {folder.raw} --autoencoder {folder.autoencoder} --output {folder.diffusion} "
        "--preset {settings.preset} --steps {settings.diffusion_steps} --splits {folder.splits} -f {fold}",
    ),
    "evaluate": (
        "Compare generated tumours with those of the data",
        "difftumor evaluate-generator --generator {folder.generator} -d {folder.raw} --splits {folder.splits} "
        "-f {fold} --output {folder.evaluation} --quick --overwrite",
    ),
    "synthesize": (
        "Put tumours into a scan without tumours",
        "difftumor synthesize --ct {demo.healthy_case.image_path} --organ-mask {demo.healthy_case.label_path} "
        "--organ-label {demo.organ_label} --generator {folder.generator} --count {settings.synthesized_count} "
        "--radius-mm {settings.synthesized_radius_mm[0]:g} {settings.synthesized_radius_mm[1]:g} --seed 1 "
        "--output {folder.synthetic} --overwrite",
    ),
    "plan": (
        "nnU-Net: fingerprint and plans",
        "env OMP_NUM_THREADS=1 nnUNetv2_plan_and_preprocess -d {settings.dataset_id} -c {configuration} "
        "--verify_dataset_integrity -np 1 -npfp 1 --no_pp -overwrite_target_spacing "
        "{settings.target_spacing_mm[0]:g} {settings.target_spacing_mm[1]:g} {settings.target_spacing_mm[2]:g}",
    ),
    "preprocess": (
        "nnU-Net: preprocess, for a small patch and network",
        "env OMP_NUM_THREADS=1 nnUNetv2_preprocess -d {settings.dataset_id} -c {configuration} -plans_name {plans} "
        "-np 1",
    ),
    "train": (
        "Stage 3: train nnU-Net with injected tumours",
        "env OMP_NUM_THREADS=1 nnUNetv2_train {settings.dataset_id} {configuration} {fold} -tr {trainer} -p {plans} "
        "-device {demo.device}",
    ),
    "predict": (
        "nnU-Net: predict",
        "nnUNetv2_predict -d {settings.dataset_id} -c {configuration} -f {fold} -tr {trainer} -p {plans} "
        "-i {folder.test_images} -o {folder.predictions} -npp 1 -nps 1 --disable_tta -device {demo.device}",
    ),
    "score": (
        "Score",
        "difftumor score -d {folder.raw} --prediction {folder.predictions} --only-predicted --workers 1 "
        "--output {folder.scores} --overwrite",
    ),
}
"""Title and command of each step; a command is split at its spaces before the names in it are filled in."""


class DemoStep(Step):
    """One step of the demo, made when its turn has come: its words follow from what the steps before left."""

    def __init__(self, demo: Demo, number: int, name: str) -> None:
        folder = demo.folder
        self.title, command = COMMANDS[name]
        names = {"fold": FOLD, "configuration": CONFIGURATION, "plans": PLANS_NAME, "trainer": TRAINER_NAME}
        names |= {"demo": demo, "folder": folder, "settings": demo.settings}
        self.words = [word.format(**names) for word in command.split()]
        if name in ("autoencoder", "diffusion") and getattr(folder, name).exists():
            self.words.append("--c")
        if name == "train" and any(folder.training.glob("checkpoint_*.pth")):
            self.words.append("--c")
        self.name, self.environment = f"{number:02d}-{name}", demo.environment()
        self.note, self.before = demo.preparations().get(name, ("", None))
        self.work_folder = folder.stages  # a lock there keeps two demos apart
        self.done_file, self.log = folder.stages / f"{self.name}.json", folder.logs / f"{self.name}.log"

    def execute(self, run_command: RunCommand) -> None:
        """Do what comes before the command, then run it."""
        if self.before is not None:
            print(f"# {self.note}", flush=True)
            self.before()
        if not self.words:
            return
        self.log.parent.mkdir(exist_ok=True)
        typed, advice = shlex.join(self.words), "Correct the cause and run the demo again: finished stages are skipped."
        run_or_raise(
            self.words, self.environment, self.log, run_command, typed=typed, who=f"'{self.title}'", advice=advice
        )

    def mark(self, seconds: float) -> dict[str, object]:
        """What the report says of it."""
        command = "\n".join([*([f"# {self.note}"] if self.note else []), shlex.join(self.words)])
        return {"name": self.name, "title": self.title, "command": command, "seconds": round(seconds, 1)}


@dataclass(frozen=True)
class Demo:
    """One demo."""

    folder: DemoFolder
    settings: DemoSettings
    device: str  # "cuda" or "cpu"
    real_data: Path | None = None  # folder of the real CT, for the demo on it

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

    def exports(self) -> str:
        """nnU-Net's variables as a user would export them, one a line."""
        nnunet = {name: value for name, value in self.environment().items() if name.startswith("nnUNet_")}
        return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in nnunet.items())

    def run(self) -> None:
        """Run the steps in order; those that are finished are skipped.

        Raises:
            RunError: If a command ends with an error; later steps do not run.
        """
        left_out = ("phantom", "splits") if self.settings.data == "real" else ("real", "evaluate")
        names = [name for name in COMMANDS if name not in left_out]
        for number, name in enumerate(names, start=1):
            step = DemoStep(self, number, name)
            print(f"\n=== {number}/{len(names)} {step.title}", flush=True)
            print("    done" if step.run_once() else "    done before, skipped", flush=True)

    @property
    def healthy_case(self) -> Case:
        """A case without tumours: one that trains nothing, where there is one."""
        healthy = [case for case in load_raw_dataset(self.folder.raw).cases if "_healthy" in case.identifier]
        return min(healthy, key=lambda case: case.identifier not in self._holdout())

    @property
    def organ_label(self) -> int:
        """Value of the organ."""
        return resolve_label_roles(load_raw_dataset(self.folder.raw).options["labels"])[0]

    def preparations(self) -> dict[str, tuple[str, Callable[[], object]]]:
        """What is written before the command of a step: a comment that says so, and what writes it."""
        patch = " x ".join(map(str, self.settings.patch_size))
        plans = f"{PLANS_NAME}.json: nnU-Net's plans with patch {patch} and features {self.settings.features}"
        return {
            "real": (f"{self.folder.raw}: the scans of {self.real_data}", self._arrange_real_data),
            "preprocess": (plans, self._write_small_plans),
            "train": (f"{CONFIG_FILE_NAME}: generator, size classes, short schedule", self._write_trainer_settings),
            "predict": (f"{self.folder.test_images}: the cases that did not train", self._gather_images),
        }

    def _arrange_real_data(self) -> None:
        if self.real_data is None:
            raise DatasetError(
                "--data real needs the folder of the real CT. Set DIFFTUMOR_REAL_CT to the folder that holds sts/."
            )
        unfinished = self.folder.raw.parent / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        dataset = make_real_dataset(self.real_data, unfinished)
        os.replace(dataset.folder, self.folder.raw)
        unfinished.rmdir()
        holdout = {"holdout": [], "share": 0.0, "healthy_cases": len(dataset.healthy)}
        write_splits(self.folder.preprocessed, dataset.folds, holdout, overwrite=True)

    def _write_small_plans(self) -> None:
        write_small_plans(self.folder.preprocessed, self.settings.network, name=PLANS_NAME, overwrite=True)

    def _write_trainer_settings(self) -> None:
        content = {
            "generator": str(self.folder.generator),
            "size_classes": list(self.settings.size_classes),
            "healthy_holdout": self.settings.healthy_holdout,
            "num_epochs": self.settings.epochs,
            "num_iterations_per_epoch": self.settings.iterations,
            "num_val_iterations_per_epoch": self.settings.val_iterations,
        }
        write_json(self.folder.preprocessed / CONFIG_FILE_NAME, content, overwrite=True)

    def _gather_images(self) -> None:
        self.folder.test_images.mkdir(parents=True, exist_ok=True)
        tested = {*read_splits(self.folder.splits)[FOLD].val, *self._holdout()}
        for case in load_raw_dataset(self.folder.raw).cases:
            if case.identifier in tested:
                shutil.copyfile(case.image_path, self.folder.test_images / case.image_path.name)

    def _holdout(self) -> tuple[str, ...]:
        """Healthy cases that train nothing."""
        return read_holdout(self.folder.preprocessed / HOLDOUT_FILE_NAME) or ()
