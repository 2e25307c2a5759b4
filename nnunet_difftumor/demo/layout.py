"""Where the demo keeps its files, and what it may remove to start over."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from nnunet_difftumor.demo.settings import DemoSettings, demo_settings
from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.support.files.atomic_files import write_json

PLANS_NAME = "nnUNetPlansSmall"
TRAINER_NAME = "nnUNetTrainerDiffTumor"
CONFIGURATION = "3d_fullres"
FOLD = 0

_MARKER = "demo.json"


@dataclass(frozen=True)
class DemoFolder:
    """Paths of a demo.

    Attributes:
        root: The demo's output folder.
        dataset: Name of the data set's folder.
    """

    root: Path
    dataset: str

    @property
    def raw(self) -> Path:
        """The raw data set."""
        return self.root / "nnUNet_raw" / self.dataset

    @property
    def preprocessed(self) -> Path:
        """The preprocessed data set."""
        return self.root / "nnUNet_preprocessed" / self.dataset

    @property
    def results(self) -> Path:
        """All trainings of the data set."""
        return self.root / "nnUNet_results" / self.dataset

    @property
    def training(self) -> Path:
        """Output folder of the nnU-Net training."""
        return self.results / f"{TRAINER_NAME}__{PLANS_NAME}__{CONFIGURATION}" / f"fold_{FOLD}"

    @property
    def autoencoder(self) -> Path:
        """Output folder of stage 1."""
        return self.root / "autoencoder_training"

    @property
    def diffusion(self) -> Path:
        """Output folder of stage 2."""
        return self.root / "diffusion_training"

    @property
    def crop_cache(self) -> Path:
        """Decoded volumes that stages 1 and 2 read from."""
        return self.root / "crop_cache"

    @property
    def evaluation(self) -> Path:
        """Real beside generated tumours."""
        return self.root / "evaluation"

    @property
    def synthetic(self) -> Path:
        """Synthetic tumours in one healthy scan."""
        return self.root / "synthetic"

    @property
    def test_images(self) -> Path:
        """Images to predict."""
        return self.root / "test_images"

    @property
    def predictions(self) -> Path:
        """Predicted label maps."""
        return self.root / "predictions"

    @property
    def scores(self) -> Path:
        """Dice per case."""
        return self.root / "scores.json"

    @property
    def stages(self) -> Path:
        """One marker per finished stage."""
        return self.root / "stages"

    @property
    def logs(self) -> Path:
        """One log per stage."""
        return self.root / "logs"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"

    def open(self, settings: DemoSettings, *, is_quick: bool) -> None:
        """Make the folder, or check that it holds a demo of the same kind.

        Args:
            settings: The demo's settings.

        Raises:
            OutputExistsError: If the folder holds something else.
        """
        marker = self.root / _MARKER
        wanted = {"data": settings.data, "quick": is_quick}
        if marker.is_file():
            found = json.loads(marker.read_text(encoding="utf-8"))
            if found != wanted:
                raise OutputExistsError(
                    f"{self.root} holds a demo with {found}, not {wanted}. Choose another --output, or add --fresh."
                )
            return
        if self.root.exists() and any(self.root.iterdir()):
            raise OutputExistsError(f"{self.root} is not empty and holds no demo. Choose another --output.")
        self.root.mkdir(parents=True, exist_ok=True)
        write_json(marker, wanted)

    def remove(self) -> None:
        """Remove what a demo has made here, and nothing else.

        Raises:
            OutputExistsError: If the folder holds something that is no demo.
        """
        marker = self.root / _MARKER
        if not self.root.exists() or not any(self.root.iterdir()):
            return
        if not marker.is_file():
            raise OutputExistsError(f"{self.root} is not empty and holds no demo; nothing was removed.")
        for parent in (self.raw.parent, self.preprocessed.parent, self.results.parent):
            for data in ("phantom", "real"):
                shutil.rmtree(parent / demo_settings(data).dataset_folder_name, ignore_errors=True)
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        trainings = (self.autoencoder, self.diffusion, self.crop_cache)
        results = (self.evaluation, self.synthetic, self.test_images, self.predictions)
        for folder in (*trainings, *results, self.stages, self.logs):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.scores, self.report, marker):
            file.unlink(missing_ok=True)
