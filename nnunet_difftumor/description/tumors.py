"""Measuring the annotated tumours of a raw data set, and the files that tell it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from diffusion.generator.info import EdgeStatistics
from nnunet_difftumor import __version__
from nnunet_difftumor.cases.known_cases import patients_by_pattern
from nnunet_difftumor.cases.real_edges import measure_case
from nnunet_difftumor.ct.datasets import RawDataset
from nnunet_difftumor.ct.label_roles import LabelRoles, declared_values, name_of_label, require_declared
from nnunet_difftumor.ct.reading import read_labels
from nnunet_difftumor.description.figure import draw_profiles
from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.evaluation.statistics.intervals import median_interval
from nnunet_difftumor.support.files.atomic_files import folder_written_whole
from nnunet_difftumor.tumor.edge_law import SIZES_FROM_MM, pool_edges
from nnunet_difftumor.tumor.edge_profile import PROFILE_EDGES_MM, TumorEdge

SIZE_NAMES = (
    f"below {SIZES_FROM_MM[1]:g} mm",
    *(f"{low:g} to {high:g} mm" for low, high in pairwise(SIZES_FROM_MM[1:])),
    f"{SIZES_FROM_MM[-1]:g} mm and more",
)
"""What the sizes of `SIZES_FROM_MM` are called."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What was measured on a data set.

    Attributes:
        annotated: Tumours of at least 8 voxels.
        tumors: One row for each that could be measured.
        sizes: One row for each size: tumours, patients, edge and depth.
        profile: One row for each size and millimetre.
        law: What the sizes say as a generator stores it.
    """

    annotated: int
    tumors: pd.DataFrame
    sizes: pd.DataFrame
    profile: pd.DataFrame
    law: tuple[EdgeStatistics, ...]


def describe_dataset(dataset: RawDataset, roles: LabelRoles, group_pattern: str | None = None) -> Description:
    """Measure every annotated tumour of a data set.

    Args:
        group_pattern: Regular expression that finds the patient in the case identifier; without one, every case is a
            patient.

    Raises:
        DatasetError: If no case has a tumour, or none stands out against tissue of the organ.
        ConfigurationError: If the pattern finds no patient in a case.
    """
    names = [case.identifier for case in dataset.cases]
    patients = patients_by_pattern(names, group_pattern) if group_pattern else {}
    edges: list[TumorEdge] = []
    owners: list[tuple[str, str]] = []
    annotated = 0
    for case in tqdm(dataset.cases, "Measuring tumours", unit="case"):
        if case.label_path is None:
            continue
        found = np.unique(read_labels(case.label_path)[0]).tolist()
        require_declared({case.label_path: found}, declared_values(dataset.options["labels"]))
        if not {roles.tumor, *roles.tumor_parts}.intersection(found):
            continue
        measured = measure_case(case.image_path, case.label_path, roles)
        annotated += len(measured)
        known = [edge for edge in measured if edge is not None]
        edges += known
        owners += [(case.identifier, patients.get(case.identifier, case.identifier))] * len(known)
    law = pool_edges(edges, [patient for _, patient in owners], np.random.default_rng(0))
    if not law:
        raise DatasetError(_nothing_measured(dataset, roles, annotated))
    tumors = _tumor_table(edges, owners)
    return Description(
        annotated=annotated, tumors=tumors, sizes=_size_table(tumors, law), profile=_profile_table(tumors), law=law
    )


def write_description(description: Description, dataset: RawDataset, roles: LabelRoles, output: Path) -> None:
    """Write tables, edges.json and profile.png into a new folder, whole or not at all.

    Raises:
        OutputExistsError: If the folder exists and is not empty.
    """
    labels = dataset.options["labels"]
    content: dict[str, Any] = {
        "format": 1,
        "made_by": f"nnunet-difftumor {__version__}",
        "dataset": dataset.folder.name,
        "organ": name_of_label(labels, roles.organ),
        "tumor": name_of_label(labels, roles.tumor),
        "annotated_tumors": description.annotated,
        "measured_tumors": len(description.tumors),
        "edges": [asdict(each) for each in description.law],
        "sizes": _records(description.sizes),
        "profile": _records(description.profile),
    }
    with folder_written_whole(output) as folder:
        (folder / "edges.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for name in ("sizes", "profile", "tumors"):
            getattr(description, name).to_csv(folder / f"{name}.csv", index=False, float_format="%.3f")
        draw_profiles(description.profile, description.sizes, dataset.folder.name).savefig(
            folder / "profile.png", dpi=130
        )


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them: NaN becomes null."""
    return json.loads(str(table.to_json(orient="records")))


def _nothing_measured(dataset: RawDataset, roles: LabelRoles, annotated: int) -> str:
    labels = dataset.options["labels"]
    organ, tumor = (f"'{name_of_label(labels, value)}' ({value})" for value in (roles.organ, roles.tumor))
    if annotated:
        return (
            f"None of the {annotated} tumours of {dataset.folder} has tissue of the organ {organ} within 10 mm and "
            "differs from it by 5 HU and five standard errors. Name the label around them with --organ-label."
        )
    return (
        f"None of the {len(dataset.cases)} cases of {dataset.folder} has a tumour {tumor} of 8 voxels or more. Name "
        "another label with --tumor-label."
    )


def _tumor_table(edges: Sequence[TumorEdge], owners: Sequence[tuple[str, str]]) -> pd.DataFrame:
    rows = []
    for edge, (case, patient) in zip(edges, owners, strict=True):
        values = {name: value for name, value in vars(edge).items() if name not in ("profile_hu", "losses")}
        size = int(np.searchsorted(SIZES_FROM_MM, edge.diameter_mm, side="right")) - 1
        own = {"case": case, "patient": patient, "size": SIZE_NAMES[size], **values, "is_clear": edge.is_clear}
        rows.append(own | dict(zip(map(_bin_name, PROFILE_EDGES_MM), edge.profile_hu, strict=False)))
    return pd.DataFrame(rows)


def _bin_name(from_mm: int) -> str:
    return f"hu_{from_mm:+d}_to_{from_mm + 1:+d}_mm"


def _size_table(tumors: pd.DataFrame, law: Sequence[EdgeStatistics]) -> pd.DataFrame:
    rows = []
    for name, own in zip(SIZE_NAMES, law, strict=True):
        part: Any = tumors[tumors["size"] == name]
        depth = median_interval(part[part["is_clear"]].groupby("patient")["depth_hu"].median())
        row = {"size": name, "tumors": len(part), "clear_tumors": int(part["is_clear"].sum())}
        row |= {"patients": part["patient"].nunique()}
        for what in ("offset", "width"):
            value, (low, high) = getattr(own, f"{what}_mm"), getattr(own, f"{what}_interval_mm")
            row |= {f"{what}_mm": value, f"{what}_low_mm": low, f"{what}_high_mm": high}
            row |= {f"{what}_sd_mm": getattr(own, f"{what}_sd_mm")}
        row |= {"depth_hu": depth.value, "depth_low_hu": depth.low, "depth_high_hu": depth.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _profile_table(tumors: pd.DataFrame) -> pd.DataFrame:
    """Quartiles between the tumours that are clear, in HU and as a share of each one's depth."""
    rows = []
    for name in SIZE_NAMES:
        clear: Any = tumors[(tumors["size"] == name) & tumors["is_clear"]]
        for from_mm in PROFILE_EDGES_MM[:-1]:
            values = clear[_bin_name(from_mm)].astype(float)
            row = {"size": name, "from_mm": from_mm, "to_mm": from_mm + 1, "tumors": int(values.notna().sum())}
            for what, each in (("contrast_hu", values), ("share_of_depth", values / clear["depth_hu"])):
                row |= {what: each.median(), f"{what}_low": each.quantile(0.25), f"{what}_high": each.quantile(0.75)}
            rows.append(row)
    return pd.DataFrame(rows)
