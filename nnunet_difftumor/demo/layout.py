"""Where the demo keeps its files, and what it may remove to start over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME
from nnunet_difftumor.demo.settings import CONFIGURATION, PLANS_NAME, DemoSettings, demo_settings
from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.generator_training import CACHE_FOLDER
from nnunet_difftumor.support.files.atomic_files import write_json

TRAINER_NAME = "nnUNetTrainerDiffTumor"
FOLD = 0

_NNUNET_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


class DemoFolder:
    """Paths of a demo: of its data set and training in nnU-Net's folders, and of its own output."""

    def __init__(self, root: Path, dataset: str) -> None:
        self.root = root
        self.raw, self.preprocessed, self.results = (root / name / dataset for name in _NNUNET_FOLDERS)
        self.splits = self.preprocessed / SPLITS_FILE_NAME
        self.training = self.results / f"{TRAINER_NAME}__{PLANS_NAME}__{CONFIGURATION}" / f"fold_{FOLD}"
        self.autoencoder, self.diffusion = root / "autoencoder_training", root / "diffusion_training"
        self.generator = self.diffusion / "generator"
        self.evaluation, self.synthetic = root / "evaluation", root / "synthetic"
        self.test_images, self.predictions, self.scores = root / "test_images", root / "predictions", root / "scores"
        self.stages = root / "stages"  # one marker per finished step
        self.logs, self.pictures = root / "logs", root / "pictures"
        self.report = root / "report.html"
        self._marker = root / "demo.json"

    def open(self, settings: DemoSettings, *, is_quick: bool) -> None:
        """Make the folder, or check that it holds a demo of the same kind.

        Raises:
            OutputExistsError: If the folder holds something else.
        """
        wanted = {"data": settings.data, "quick": is_quick}
        if not self._is_demo():
            write_json(self._marker, wanted)
        found = json.loads(self._marker.read_text(encoding="utf-8"))
        if found != wanted:
            raise OutputExistsError(
                f"{self.root} holds a demo with {found}, not {wanted}. Choose another --output, or add --fresh."
            )

    def remove(self) -> None:
        """Remove what a demo has made here, and nothing else.

        Raises:
            OutputExistsError: If the folder holds something that is no demo.
        """
        if not self._is_demo():
            return
        for parent in (self.root / name for name in _NNUNET_FOLDERS):
            for data in ("phantom", "real"):
                shutil.rmtree(parent / demo_settings(data).dataset_folder_name, ignore_errors=True)
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        own = [self.autoencoder, self.diffusion, self.root / CACHE_FOLDER, self.evaluation, self.synthetic]
        own += [self.test_images, self.predictions, self.scores, self.stages, self.logs, self.pictures]
        for folder in own:
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.report, self._marker):
            file.unlink(missing_ok=True)

    def _is_demo(self) -> bool:
        """Whether a demo is here; False if nothing is."""
        if self._marker.is_file():
            return True
        if self.root.exists() and any(self.root.iterdir()):
            raise OutputExistsError(f"{self.root} is not empty and holds no demo. Choose another --output.")
        return False
