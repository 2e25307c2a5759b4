"""What is asked of a synthesis on one CT file, and all that can be refused before an image or a network is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion.generator.info import EdgeStatistics
from diffusion.generator_folder import check_generator_folder
from nnunet_difftumor.errors import CorruptImageError, DiffTumorError, OutputExistsError
from nnunet_difftumor.support.files.atomic_files import check_results
from nnunet_difftumor.synthesis.tissue.generator_names import BUILTIN_ROOT
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.published_contrasts import TRAINING, edges_in_use, make_appearance_rule
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass

RESULT_FILES = ("ct.nii.gz", "label.nii.gz", "tumors.json", "montage.png")


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """What to synthesize on which CT.

    Attributes:
        organ_label: Value of the organ in the mask; None if it holds one value only.
        tumor_mask_path: Mask to use as the tumour as it is, or None to draw tumours.
        radius_mm: Range of radii in mm; None for the size classes of the paper.
        target: What looks are drawn from, one of `published_contrasts.TARGETS`.
        contrast_hu: Range of contrasts in HU; None: as `target` says.
        heterogeneity_hu: Range of standard deviations inside a tumour in HU, without noise; None for those of
            the training tumours.
        edge_mm: Offset and width of the visible edge in mm (see `Edge`); None for published ones of the target, or
            else those of the training tumours.
        steps: Denoising steps T; None for four, or those of the record that is replayed.
        replay_path: A tumors.json whose tumours are made again, or None.
    """

    ct_path: Path
    organ_mask_path: Path
    generator_folder: Path
    organ_label: int | None = None
    tumor_mask_path: Path | None = None
    count: int = 3
    radius_mm: tuple[float, float] | None = None
    target: str = TRAINING
    contrast_hu: tuple[float, float] | None = None
    heterogeneity_hu: tuple[float, float] | None = None
    edge_mm: tuple[float, float] | None = None
    steps: int | None = None
    seed: int = 0
    replay_path: Path | None = None

    def __post_init__(self) -> None:
        if self.count < 1 or (self.steps is not None and self.steps < 1):
            raise DiffTumorError(f"--count and --steps must be at least 1, got {self.count} and {self.steps}.")
        if self.seed < 0:
            raise DiffTumorError(f"--seed must be 0 or more, got {self.seed}.")
        if self.replay_path is not None and self.tumor_mask_path is not None:
            raise DiffTumorError("--replay and --tumor-mask both say which tumours to make; give one of them.")
        _ = self.appearances(()), self.edges(()), self.size_classes  # each refuses what it cannot draw from

    @property
    def size_classes(self) -> tuple[SizeClass, ...]:
        """What radii are drawn from."""
        if self.radius_mm is None:
            return PAPER_SIZE_CLASSES
        return (SizeClass(name="user", radius_mm=self.radius_mm, probability=1.0),)

    def appearances(self, examples: tuple[Appearance, ...]) -> AppearanceRule:
        """What contrast and heterogeneity are drawn from, given the generator's training tumours."""
        return make_appearance_rule(
            self.target, contrast_hu=self.contrast_hu, heterogeneity_hu=self.heterogeneity_hu, examples=examples
        )

    def edges(self, measured: tuple[EdgeStatistics, ...]) -> tuple[EdgeStatistics, ...]:
        """What edges are drawn from, given those of the generator's training tumours."""
        if self.edge_mm is not None:
            return (EdgeStatistics.exactly(*self.edge_mm),)
        return edges_in_use(self.target, measured, is_own=BUILTIN_ROOT not in self.generator_folder.parents)


def check_request(request: ScanRequest, output: Path, *, overwrite: bool) -> None:
    """Refuse what can be refused without reading an image or loading a network, in a fraction of their time.

    Raises:
        DiffTumorError: If an input is missing or would be replaced, or the output is taken.
        GeneratorFolderError: If the generator's folder cannot be used.
    """
    inputs = (request.ct_path, request.organ_mask_path, request.tumor_mask_path, request.replay_path)
    results = {output.resolve() / name for name in RESULT_FILES}
    for path in inputs:
        if path is not None and path.resolve() in results:
            raise OutputExistsError(f"--output {output} would replace {path}, which is an input. Name another folder.")
    for path in inputs[:3]:
        if path is not None and not path.exists():
            raise CorruptImageError(f"{path} does not exist. Check the path.")
    check_results(output, RESULT_FILES, overwrite=overwrite)
    if request.replay_path is not None:
        read_content(request.replay_path)
    check_generator_folder(request.generator_folder)


def read_content(path: Path) -> dict[str, Any]:
    """Read a tumors.json as it is; `scan.read_records` makes tumours of it.

    Raises:
        DiffTumorError: If it is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = [tumor["spec"] for tumor in content["tumors"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiffTumorError(
            f"{path} is no tumors.json that `difftumor synthesize` wrote ({type(error).__name__}: {error})."
        ) from error
    return content
