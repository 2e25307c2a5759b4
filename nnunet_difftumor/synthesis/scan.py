"""Synthesis on one CT file: read, draw, generate, and write the results whole or not at all."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor import __version__
from nnunet_difftumor.ct.hounsfield import check_organ
from nnunet_difftumor.ct.reading import CTVolume, read_ct, read_mask
from nnunet_difftumor.ct.writing import write_ct_like, write_labels_like
from nnunet_difftumor.errors import DiffTumorError, EmptyOrganError, MissingLabelError, OutputExistsError
from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.support.pictures.montage import (
    MontageRow,
    crop_around,
    draw_montage,
    flips_to_display,
    save_figure,
)
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import TumorPlan, draw_tumors
from nnunet_difftumor.synthesis.results import SynthesisResult
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.interface import require_in_window
from nnunet_difftumor.tumor.appearance import Appearance, AppearanceRule
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.published_contrasts import TRAINING, make_appearance_rule
from nnunet_difftumor.tumor.sizes import PAPER_SIZE_CLASSES, SizeClass
from nnunet_difftumor.tumor.spec import TumorSpec

logger = logging.getLogger(__name__)

RECORDS_FORMAT = 1
DEFAULT_STEPS = 4
_MOST_LISTED_LABELS = 30
_ROUNDS = 4
_RESULT_FILES = ("ct.nii.gz", "label.nii.gz", "tumors.json", "montage.png")


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
        self.appearances(())

    def appearances(self, examples: tuple[Appearance, ...]) -> AppearanceRule:
        """What contrast and heterogeneity are drawn from, given the generator's training tumours."""
        return make_appearance_rule(
            self.target, contrast_hu=self.contrast_hu, heterogeneity_hu=self.heterogeneity_hu, examples=examples
        )


def synthesize_scan(request: ScanRequest, output: Path, *, overwrite: bool = False) -> SynthesisResult:
    """Put tumours into a CT file and write CT, label map, records and montage into a folder.

    Nothing is written if no tumour could be placed.

    Raises:
        DiffTumorError: For every kind of bad input, with the file and the fix.
    """
    output = output.resolve()
    _check_output(request, output, overwrite)
    recorded: Mapping[str, Any] = {} if request.replay_path is None else _read_content(request.replay_path)
    steps = request.steps or int(recorded.get("steps", DEFAULT_STEPS))
    request = replace(request, steps=steps, target=str(recorded.get("target", request.target)))
    ct = read_ct(request.ct_path)
    organ_map = read_mask(request.organ_mask_path, ct)
    organ_label = _find_organ_label(organ_map, request)
    organ = organ_map == organ_label
    warning = check_organ(ct.image_hu, organ, request.organ_mask_path)
    if warning is not None:
        logger.warning(warning)
    tissue = DiffusionTissue.from_folder(request.generator_folder, steps=steps)
    if recorded.get("generator_hash") not in (None, tissue.identity):
        raise DiffTumorError(
            f"{request.replay_path} was made with another generator than {request.generator_folder}, so its tumours "
            "cannot be made again. Name the generator that made them with --generator."
        )
    require_in_window(float(np.median(ct.image_hu[organ])), tissue.window_hu, f"The organ in {request.ct_path.name}")
    host, synthesizer = Host(ct.image_hu, ct.spacing_mm, organ, organ, np.ones_like(organ)), TumorSynthesizer(tissue)
    given = _given_tumor(request, ct, tissue.appearances)
    result = _draw_until_enough(request, host, synthesizer) if given is None else synthesizer.synthesize(host, given)
    if result.tumors:
        tumor_label = int(organ_map.max()) + 1
        records = {
            "format": RECORDS_FORMAT,
            "synthetic": True,
            "version": __version__,
            "ct": request.ct_path.name,
            "organ_label": organ_label,
            "tumor_label": tumor_label,
            "steps": steps,
            "generator_hash": tissue.identity,
            "precision": tissue.precision,
            "target": request.target,
            "seed": request.seed,
            "rejected": dict(result.rejected),
            "tumors": [asdict(tumor.record) for tumor in result.tumors],
        }
        _write_results(output, ct, np.where(result.label_mask(organ.shape), tumor_label, organ_map), result, records)
    return result


def _check_output(request: ScanRequest, output: Path, overwrite: bool) -> None:
    inputs = (request.ct_path, request.organ_mask_path, request.tumor_mask_path, request.replay_path)
    results = {output / name for name in _RESULT_FILES}
    for path in inputs:
        if path is not None and path.resolve() in results:
            raise OutputExistsError(f"--output {output} would replace {path}, which is an input. Name another folder.")
    existing = [name for name in _RESULT_FILES if (output / name).exists()]
    if existing and not overwrite:
        raise OutputExistsError(
            f"{output} holds {', '.join(existing)} already. Choose another --output, or add --overwrite."
        )
    if output.exists() and not output.is_dir():
        raise OutputExistsError(f"--output {output} is a file; name a folder.")


def _find_organ_label(organ_map: NDArray[np.integer[Any]], request: ScanRequest) -> int:
    values = [int(value) for value in np.unique(organ_map) if value != 0]
    if not values:
        raise EmptyOrganError(f"{request.organ_mask_path} has no voxel above 0; give a mask that contains the organ.")
    if request.organ_label in values:
        return int(request.organ_label)
    if request.organ_label is None and len(values) == 1:
        return values[0]
    held = f"the labels {values}"
    if len(values) > _MOST_LISTED_LABELS:
        held = f"{len(values)} different values from {values[0]} to {values[-1]}: this looks like an image and no mask"
    if request.organ_label is None:
        raise MissingLabelError(f"{request.organ_mask_path} holds {held}; name the organ's with --organ-label N.")
    raise MissingLabelError(
        f"--organ-label {request.organ_label} is not in {request.organ_mask_path}, which holds {held}."
    )


def _given_tumor(
    request: ScanRequest, ct: CTVolume, examples: tuple[Appearance, ...]
) -> list[TumorSpec | MaskSurface] | None:
    """Tumours that the user gave as records or as a mask; None if they are to be drawn."""
    if request.replay_path is not None:
        return list(read_records(request.replay_path))
    if request.tumor_mask_path is None:
        return None
    mask = read_mask(request.tumor_mask_path, ct) > 0
    if not mask.any():
        raise MissingLabelError(f"{request.tumor_mask_path} has no voxel above 0; draw the tumour in it.")
    rng = np.random.default_rng(request.seed)
    appearance = request.appearances(examples).draw(rng)
    return [MaskSurface(mask, ct.spacing_mm, int(rng.integers(2**62)), appearance)]


def _draw_until_enough(request: ScanRequest, host: Host, synthesizer: TumorSynthesizer) -> SynthesisResult:
    """Draw tumours, and others for those that were given up, a few times.

    Those that are kept are made again beside the new ones, which may change their rims, and in one batch with them,
    which may change their last bits: so the record of the last round makes the same tumours again.
    """
    rng = np.random.default_rng(request.seed)
    radius_mm, looks = request.radius_mm, request.appearances(synthesizer.tissue.appearances)
    sizes = (SizeClass(name="user", radius_mm=radius_mm, probability=1.0),) if radius_mm else PAPER_SIZE_CLASSES
    plan = TumorPlan(size_classes=sizes, appearances=looks)
    rejected: Counter[str] = Counter()
    result = SynthesisResult((), {})
    for _ in range(_ROUNDS):
        kept = [tumor.record.spec for tumor in result.tumors]
        drawn, given_up = draw_tumors(host, plan, rng, count=request.count - len(kept))
        rejected.update({"no_room": len(given_up)} if given_up else {})
        if not drawn:
            break
        result = synthesizer.synthesize(host, [*kept, *drawn])
        rejected.update(result.rejected)
        if len(result.tumors) == request.count:
            break
    return SynthesisResult(result.tumors, dict(rejected))


def read_records(path: Path) -> tuple[TumorSpec, ...]:
    """Read the drawn tumours of a tumors.json that `difftumor synthesize` wrote.

    Raises:
        DiffTumorError: If the file is not such a file, or a tumour was drawn by hand and cannot be replayed.
    """
    records = [tumor["spec"] for tumor in _read_content(path)["tumors"]]
    try:
        specs = tuple(TumorSpec.from_json(record) for record in records)
    except (DiffTumorError, TypeError) as error:
        raise DiffTumorError(f"{path}: {error}") from error
    if any(spec.size_class == "mask" for spec in specs):
        raise DiffTumorError(f"{path} holds a tumour drawn as a mask; replay it with --tumor-mask and its --seed.")
    return specs


def _read_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        _ = [tumor["spec"] for tumor in content["tumors"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DiffTumorError(
            f"{path} is no tumors.json that `difftumor synthesize` wrote ({type(error).__name__}: {error})."
        ) from error
    return content


def _write_results(
    output: Path, ct: CTVolume, labels: NDArray[np.integer[Any]], result: SynthesisResult, records: Mapping[str, Any]
) -> None:
    """Write all files to a temporary folder beside the output, then move them in."""
    changed_hu = result.apply_to(ct.image_hu)
    figure = draw_montage(_montage_rows(ct, changed_hu, result), f"Synthetic tumours in {ct.path.name}")
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".partial-{output.name}-", dir=output.parent) as folder:
        temporary = Path(folder)
        write_ct_like(ct.path, temporary / "ct.nii.gz", changed_hu, result.support_mask(changed_hu.shape))
        write_labels_like(ct, temporary / "label.nii.gz", labels)
        write_json(temporary / "tumors.json", records)
        save_figure(figure, temporary / "montage.png")
        output.mkdir(parents=True, exist_ok=True)
        for name in _RESULT_FILES:
            os.replace(temporary / name, output / name)


def _montage_rows(ct: CTVolume, changed_hu: NDArray[np.float32], result: SynthesisResult) -> list[MontageRow]:
    flips = flips_to_display(ct.geometry.affine)
    rows = []
    for tumor in result.tumors:
        label = np.zeros(ct.image_hu.shape, dtype=bool)
        label[tumor.box] = tumor.label
        box = crop_around(label, ct.spacing_mm)
        spec = tumor.record.spec
        before, after = (np.flip(image_hu[box], flips) for image_hu in (ct.image_hu, changed_hu))
        title = f"radius {spec.radius_mm:.1f} mm\n{tumor.record.contrast_hu:+.0f} HU"
        rows.append(MontageRow(before, after, np.flip(label[box], flips), ct.spacing_mm, title))
    return rows
