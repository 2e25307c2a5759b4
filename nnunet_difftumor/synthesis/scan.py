"""Synthesis on one CT file: read, draw, generate, and write the results whole or not at all."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.generator_folder import read_generator_info
from nnunet_difftumor import __version__
from nnunet_difftumor.ct.boxes import box_around
from nnunet_difftumor.ct.hounsfield import check_organ
from nnunet_difftumor.ct.reading import CTVolume, read_ct, read_mask
from nnunet_difftumor.ct.writing import write_ct_like, write_labels_like
from nnunet_difftumor.errors import DiffTumorError, EmptyOrganError, MissingLabelError
from nnunet_difftumor.support.files.atomic_files import results_folder, write_json
from nnunet_difftumor.support.pictures.montage import (
    MontageRow,
    draw_montage,
    make_row,
    save_figure,
)
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.placement import TumorPlan, draw_tumors, with_look
from nnunet_difftumor.synthesis.published import make_synthesizer
from nnunet_difftumor.synthesis.request import RESULT_FILES, ScanRequest, check_request, read_content
from nnunet_difftumor.synthesis.results import SynthesisResult, TumorRecord
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.synthesis.tissue.interface import DescribedTissue, require_in_window
from nnunet_difftumor.tumor.drawing import MaskSurface
from nnunet_difftumor.tumor.spec import TumorSpec

logger = logging.getLogger(__name__)

RECORDS_FORMAT = 2
DEFAULT_STEPS = 4
_MOST_LISTED_LABELS = 30
_ROUNDS = 4


def synthesize_scan(request: ScanRequest, output: Path, *, overwrite: bool = False) -> SynthesisResult:
    """Put tumours into a CT file and write CT, label map, records and montage into a folder.

    Nothing is written if no tumour could be placed.

    Raises:
        DiffTumorError: For every kind of bad input, with the file and the fix.
    """
    check_request(request, output, overwrite=overwrite)
    with results_folder(output, RESULT_FILES, overwrite=overwrite) as folder:
        _require_space(request.ct_path, folder, output)
        return _synthesize(request, folder, output)


def _synthesize(request: ScanRequest, folder: Path, output: Path) -> SynthesisResult:
    recorded: Mapping[str, Any] = {} if request.replay_path is None else read_content(request.replay_path)
    steps = request.steps or int(recorded.get("steps", DEFAULT_STEPS))
    request = replace(request, steps=steps, target=str(recorded.get("target", request.target)))
    ct = read_ct(request.ct_path)
    organ_map = read_mask(request.organ_mask_path, ct)
    organ_label = _find_organ_label(organ_map, request)
    organ = organ_map == organ_label
    tumor_label = int(organ_map.max()) + 1
    if tumor_label > np.iinfo(organ_map.dtype).max:
        raise DiffTumorError(f"{request.organ_mask_path} leaves no number for the tumours above {tumor_label - 1}.")
    if warning := check_organ(ct.image_hu, organ, request.organ_mask_path):
        logger.warning(warning)
    described = DescribedTissue(read_generator_info(request.generator_folder))
    level_hu = float(np.median(ct.image_hu[organ]))
    require_in_window(level_hu, described.window_hu, f"The organ in {request.ct_path.name}")
    host = Host.of_organ(ct.image_hu, ct.spacing_mm, organ)
    given = _given_tumor(request, ct, host, described)
    tissue = DiffusionTissue.from_folder(request.generator_folder, steps=steps)  # last: it takes seconds
    if recorded.get("generator_hash") not in (None, tissue.identity):
        raise DiffTumorError(
            f"{request.replay_path} was made with another generator than {request.generator_folder}, so its tumours "
            "cannot be made again. Name the generator that made them with --generator."
        )
    synthesizer = make_synthesizer(tissue)
    result = _draw_until_enough(request, host, synthesizer) if given is None else synthesizer.synthesize(host, given)
    if result.tumors:
        organ_map[result.label_mask(organ.shape)] = tumor_label
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
        rows = _montage_rows(ct, result)
        result.apply_to_(ct.image_hu)  # a copy would take another 600 MB for 512 x 512 x 600 voxels
        changed = result.support_mask(organ.shape)
        del host, organ  # nor are their masks needed beside what is written
        write = partial(_write_results, ct=ct, labels=organ_map, changed=changed, rows=rows, records=records)
        _write_or_keep(write, folder, output)
    return result


def _require_space(ct_path: Path, folder: Path, output: Path) -> None:
    """Refuse a disk that cannot hold the results, which take a quarter of the CT's file at least."""
    free = shutil.disk_usage(folder).free
    if ct_path.is_file() and free < ct_path.stat().st_size // 4:
        raise DiffTumorError(
            f"--output {output} has {free / 2**20:.0f} MiB left, too little for the results. Make room, or choose "
            "another folder."
        )


def _write_or_keep(write: Callable[[Path], None], folder: Path, output: Path) -> None:
    """Write what was computed; where that fails, into a folder for temporary files, and say so."""
    try:
        write(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: SimpleITK's
        kept = Path(mkdtemp(prefix="difftumor-synthesize-"))
        try:
            write(kept)
        except (OSError, RuntimeError):
            shutil.rmtree(kept, ignore_errors=True)
            raise DiffTumorError(f"--output {output} cannot be written to: {_first_line(error)}. Make room.") from error
        raise DiffTumorError(
            f"--output {output} cannot be written to: {_first_line(error)}. The results are in {kept}; move them."
        ) from error


def _first_line(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).splitlines()[0]


def _find_organ_label(organ_map: NDArray[np.integer[Any]], request: ScanRequest) -> int:
    values = sorted({int(value) for part in organ_map for value in np.unique(part)} - {0})
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
    request: ScanRequest, ct: CTVolume, host: Host, tissue: DescribedTissue
) -> list[TumorSpec | MaskSurface] | None:
    """Tumours that the user gave as records or as a mask; None if they are to be drawn."""
    if request.replay_path is not None:
        return list(read_records(request.replay_path))
    if request.tumor_mask_path is None:
        return None
    mask = read_mask(request.tumor_mask_path, ct) > 0
    if not mask.any():
        raise MissingLabelError(f"{request.tumor_mask_path} has no voxel above 0; draw the tumour in it.")
    surface = MaskSurface(mask, ct.spacing_mm, request.seed, edges=request.edges(tissue.edges))
    spec, looks = surface.spec, request.appearances(tissue.appearances)
    surface.spec = with_look(replace(spec, scan_seed=request.seed), looks, host_hu=host.level_hu(spec.centre_mm))
    return [surface]


def _draw_until_enough(request: ScanRequest, host: Host, synthesizer: TumorSynthesizer) -> SynthesisResult:
    """Draw tumours, and others for those that were given up, a few times.

    Those that are kept are made again beside the new ones, which may change their rims, and in one batch with them,
    which may change their last bits: so the record of the last round makes the same tumours again.
    """
    rng = np.random.default_rng(request.seed)
    looks, edges = request.appearances(synthesizer.tissue.appearances), request.edges(synthesizer.tissue.edges)
    plan = TumorPlan(size_classes=request.size_classes, appearances=looks, edges=edges, scan_seed=request.seed)
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
    records = [tumor["spec"] for tumor in read_content(path)["tumors"]]
    try:
        specs = tuple(TumorSpec.from_json(record) for record in records)
    except (DiffTumorError, TypeError) as error:
        raise DiffTumorError(f"{path}: {error}") from error
    if any(spec.size_class == "mask" for spec in specs):
        raise DiffTumorError(f"{path} holds a tumour drawn as a mask; replay it with --tumor-mask and its --seed.")
    return specs


def _write_results(
    folder: Path,
    *,
    ct: CTVolume,
    labels: NDArray[np.integer[Any]],
    changed: NDArray[np.bool_],
    rows: list[MontageRow],
    records: Mapping[str, Any],
) -> None:
    figure = draw_montage(rows, f"Synthetic tumours in {ct.path.name}")
    write_ct_like(ct.path, folder / "ct.nii.gz", ct.image_hu, changed)
    write_labels_like(ct, folder / "label.nii.gz", labels)
    write_json(folder / "tumors.json", records)
    save_figure(figure, folder / "montage.png")


def describe(record: TumorRecord) -> str:
    """Contrast of a tumour in words, as a reader would judge it."""
    return f"{record.depth_hu:+.0f} HU, CNR {abs(record.noise_ratio):.1f}"


def _montage_rows(ct: CTVolume, result: SynthesisResult) -> list[MontageRow]:
    """Make rows of the CT without its tumours; `after_hu` is a view, which shows them when they are put in."""
    rows = []
    for tumor in result.tumors:
        label = np.zeros(ct.image_hu.shape, dtype=bool)
        label[tumor.box] = tumor.label
        box = box_around(label, ct.spacing_mm)
        spec = tumor.record.spec
        title = f"radius {spec.radius_mm:.1f} mm\n{describe(tumor.record)}"
        rows.append(make_row((ct.image_hu[box].copy(), ct.image_hu[box], label[box]), ct.geometry.affine, title))
    return rows
