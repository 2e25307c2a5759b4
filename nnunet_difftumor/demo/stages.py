"""The stages of the demo: the commands that a user would type, in order."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME, write_splits
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.demo.layout import CONFIGURATION, FOLD, PLANS_NAME, TRAINER_NAME, DemoFolder
from nnunet_difftumor.demo.plans import write_small_plans
from nnunet_difftumor.demo.runner import Stage
from nnunet_difftumor.demo.scores import score_predictions, write_scores
from nnunet_difftumor.demo.settings import DemoSettings
from nnunet_difftumor.demo.split import read_demo_cases
from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.settings.sources import CONFIG_FILE_NAME
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.trainer.discovery import ext_trainer_folder

_ONE_THREAD = {"OMP_NUM_THREADS": "1"}
_SYNTHESIS_SEED = 1


@dataclass(frozen=True)
class DemoStages:
    """Makes the stages of one demo.

    Attributes:
        folder: Where the demo keeps its files.
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

    def all(self) -> tuple[Stage, ...]:
        """Return every stage in order."""
        return (
            *self._data_stages(),
            Stage("autoencoder", "Stage 1: train the autoencoder", words=self._train_autoencoder),
            Stage("diffusion", "Stage 2: train the diffusion model", words=self._train_diffusion),
            Stage("evaluate", "Compare generated with real tumours", words=self._evaluate_generator),
            Stage("synthesize", "Put tumours into a scan without tumours", words=self._synthesize),
            Stage("plan", "nnU-Net: fingerprint and plans", words=self._plan, environment=_ONE_THREAD),
            Stage("plans", "A copy of the plans with a small patch and network", action=self._small_plans),
            Stage("preprocess", "nnU-Net: preprocess", words=self._preprocess, environment=_ONE_THREAD),
            Stage("settings", "Settings of the trainer", action=self._trainer_settings),
            Stage("train", "Stage 3: train nnU-Net with injected tumours", words=self._train, environment=_ONE_THREAD),
            Stage("predict", "nnU-Net: predict", words=self._predict, action=self._gather_images),
            Stage("score", "Dice per case", action=self._score),
        )

    def _data_stages(self) -> tuple[Stage, ...]:
        if self.settings.data == "real":
            return (
                Stage("data", "Arrange the real CT as an nnU-Net data set with its fixed split", action=self._real),
            )
        return (
            Stage("data", "Make the CT phantom", words=self._phantom),
            Stage("splits", "Split the cases", words=self._splits),
        )

    def _phantom(self) -> Sequence[str]:
        count = ["--cases", str(self.settings.tumor_cases), "--healthy", str(self.settings.healthy_cases)]
        return ["difftumor", "phantom", "--output", str(self.folder.raw), *count]

    def _real(self) -> str:
        from nnunet_difftumor.demo.soft_tissue import make_real_dataset

        if self.real_data is None:
            raise DatasetError(
                "--data real needs the folder of the real CT. Set DIFFTUMOR_REAL_CT to the folder that holds sts/."
            )
        unfinished = self.folder.raw.parent / ".unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        dataset = make_real_dataset(self.real_data, unfinished, name=self.folder.raw.name)
        os.replace(dataset.folder, self.folder.raw)
        unfinished.rmdir()
        holdout = {"holdout": [], "share": 0.0, "healthy_cases": len(dataset.healthy)}
        write_splits(self.folder.preprocessed, [dataset.split], holdout, overwrite=True)
        split = dataset.split
        return (
            f"arranged {self.real_data} as {self.folder.raw}: {len(split.train)} training cases, "
            f"{len(dataset.healthy)} of them healthy, and {len(split.val)} validation cases; wrote {self._splits_file}"
        )

    def _splits(self) -> Sequence[str]:
        return ["difftumor", "splits", "-d", str(self.settings.dataset_id), "--folds", str(self.settings.folds)]

    def _train_autoencoder(self) -> Sequence[str]:
        words = ["difftumor", "train-autoencoder", "--data", str(self.folder.raw)]
        steps = self.settings.autoencoder_steps
        return [*words, *self._training_words(self.folder.autoencoder, steps)]

    def _train_diffusion(self) -> Sequence[str]:
        words = ["difftumor", "train-diffusion", "--data", str(self.folder.raw)]
        words += ["--autoencoder", str(self.folder.autoencoder)]
        return [*words, *self._training_words(self.folder.diffusion, self.settings.diffusion_steps)]

    def _training_words(self, output: Path, steps: int) -> list[str]:
        words = ["--output", str(output), "--preset", self.settings.preset, "--steps", str(steps)]
        words += ["--splits", str(self._splits_file), "--fold", str(FOLD)]
        return [*words, "--resume"] if output.exists() else words

    def _evaluate_generator(self) -> Sequence[str]:
        words = ["difftumor", "evaluate-generator", "--generator", str(self._generator)]
        words += ["--data", str(self.folder.raw), "--splits", str(self._splits_file), "--fold", str(FOLD)]
        return [*words, "--output", str(self.folder.evaluation), "--quick", "--overwrite"]

    def _synthesize(self) -> Sequence[str]:
        dataset = load_raw_dataset(self.folder.raw)
        organ_label, _ = resolve_label_roles(dataset.options["labels"])
        roles = read_demo_cases(self.folder)
        identifier = (*roles.holdout, *roles.healthy, *roles.validation)[0]
        case = next(case for case in dataset.cases if case.identifier == identifier)
        low_mm, high_mm = self.settings.synthesized_radius_mm
        words = ["difftumor", "synthesize", "--ct", str(case.image_path), "--organ-mask", str(case.label_path)]
        words += ["--organ-label", str(organ_label), "--generator", str(self._generator)]
        words += ["--count", str(self.settings.synthesized_count), "--radius-mm", f"{low_mm:g}", f"{high_mm:g}"]
        return [*words, "--seed", str(_SYNTHESIS_SEED), "--output", str(self.folder.synthetic), "--overwrite"]

    def _plan(self) -> Sequence[str]:
        words = ["nnUNetv2_plan_and_preprocess", "-d", str(self.settings.dataset_id), "-c", CONFIGURATION]
        spacing = [f"{value:g}" for value in self.settings.target_spacing_mm]
        words += ["--verify_dataset_integrity", "-np", "1", "-npfp", "1", "--no_pp"]
        return [*words, "-overwrite_target_spacing", *spacing]

    def _small_plans(self) -> str:
        path = write_small_plans(self.folder.preprocessed, PLANS_NAME, CONFIGURATION, self.settings)
        patch = " x ".join(map(str, self.settings.patch_size))
        return f"wrote {path}: patch {patch}, {len(self.settings.features)} stages, features {self.settings.features}"

    def _preprocess(self) -> Sequence[str]:
        words = ["nnUNetv2_preprocess", "-d", str(self.settings.dataset_id), "-c", CONFIGURATION]
        return [*words, "-plans_name", PLANS_NAME, "-np", "1"]

    def _trainer_settings(self) -> str:
        content = {
            "generator": str(self._generator),
            "size_classes": [dict(size) for size in self.settings.size_classes],
            "healthy_holdout": self.settings.healthy_holdout,
            "num_epochs": self.settings.epochs,
            "num_iterations_per_epoch": self.settings.iterations,
            "num_val_iterations_per_epoch": self.settings.val_iterations,
        }
        path = self.folder.preprocessed / CONFIG_FILE_NAME
        write_json(path, content, overwrite=True)
        return f"wrote {path}: {', '.join(content)}"

    def _train(self) -> Sequence[str]:
        words = ["nnUNetv2_train", str(self.settings.dataset_id), CONFIGURATION, str(FOLD), "-tr", TRAINER_NAME]
        words += ["-p", PLANS_NAME, "-device", self.device]
        return [*words, "--c"] if any(self.folder.training.glob("checkpoint_*.pth")) else words

    def _gather_images(self) -> str:
        dataset = load_raw_dataset(self.folder.raw)
        images = {case.identifier: case.image_path for case in dataset.cases}
        self.folder.test_images.mkdir(parents=True, exist_ok=True)
        tested = read_demo_cases(self.folder).tested
        for identifier in tested:
            shutil.copyfile(images[identifier], self.folder.test_images / images[identifier].name)
        return f"copied {len(tested)} cases that did not train to {self.folder.test_images}"

    def _predict(self) -> Sequence[str]:
        words = ["nnUNetv2_predict", "-d", str(self.settings.dataset_id), "-c", CONFIGURATION, "-f", str(FOLD)]
        words += ["-tr", TRAINER_NAME, "-p", PLANS_NAME, "-i", str(self.folder.test_images)]
        words += ["-o", str(self.folder.predictions), "-npp", "1", "-nps", "1", "--disable_tta"]
        return [*words, "-device", self.device]

    def _score(self) -> str:
        dataset = load_raw_dataset(self.folder.raw)
        _, tumor_label = resolve_label_roles(dataset.options["labels"])
        scores = score_predictions(self.folder.predictions, self.folder.raw / "labelsTr", tumor_label)
        write_scores(self.folder.scores, scores)
        lines = [
            f"{score.identifier}: tumour Dice {score.tumor_dice:.3f}"
            if score.tumor_dice is not None
            else f"{score.identifier}: healthy, {score.predicted_ml:.1f} ml predicted"
            for score in scores
        ]
        return "; ".join(lines)

    @property
    def _splits_file(self) -> Path:
        return self.folder.preprocessed / SPLITS_FILE_NAME

    @property
    def _generator(self) -> Path:
        return self.folder.diffusion / "generator"


def describe_environment(environment: dict[str, str]) -> str:
    """Return the variables as a user would export them, one a line.

    Returns:
        Lines for a shell.
    """
    return "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in environment.items() if name.startswith("nnUNet_")
    )
