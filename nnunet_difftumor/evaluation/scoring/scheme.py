"""Which labels of a data set are scored, which of them are tumours, and in which organ they lie."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnunet_difftumor.ct.datasets import parse_labels, read_dataset_json
from nnunet_difftumor.ct.label_roles import (
    HEALTHY,
    LabelRoles,
    foreground_labels,
    is_tumor_name,
    kind_of_case,
    name_of_label,
    resolve_label_roles,
    tumor_values,
)
from nnunet_difftumor.errors import ConfigurationError, MissingLabelError


@dataclass(frozen=True, kw_only=True)
class ScoredLabel:
    """One label or region of dataset.json.

    Attributes:
        channel: Its channel in nnU-Net's probabilities.
        organ_values: Values of the organ that its tumours lie in; empty unless an organ filter needs it.
    """

    name: str
    values: tuple[int, ...]
    is_tumor: bool
    channel: int
    organ_values: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LabelScheme:
    """What the values of label maps and probabilities of a data set mean.

    Attributes:
        labels: Labels in the order of dataset.json, background and the ignore label left out.
        declared: Every value that a label map may hold.
        tumor_values: Values of all tumours, also of those that are not scored as such: a scan with one is not healthy.
        channels: Number of channels of nnU-Net's probabilities.
        has_regions: They are of regions, which may overlap.
        is_reoriented: nnU-Net's reader turns images to right-anterior-superior, and probabilities stay so.
    """

    labels: tuple[ScoredLabel, ...]
    declared: frozenset[int]
    tumor_values: frozenset[int]
    ignore: int | None
    channels: int
    has_regions: bool = False
    is_reoriented: bool = False

    @property
    def tumors(self) -> tuple[ScoredLabel, ...]:
        """The labels that are tumours."""
        return tuple(label for label in self.labels if label.is_tumor)

    def is_healthy(self, values: Collection[int]) -> bool:
        """Say whether a scan with these values in its reference is healthy, in whatever organ."""
        roles = LabelRoles(0, min(self.tumor_values), ignore=self.ignore, other_tumors=tuple(self.tumor_values))
        return kind_of_case({0, *values}, [roles]) == HEALTHY


def read_label_scheme(
    path: Path, tumor_labels: Sequence[str] = (), organ_label: str | None = None, *, needs_organ: bool = False
) -> LabelScheme:
    """Read which labels of nnU-Net's dataset.json are scored.

    Args:
        tumor_labels: Names or values of the tumour labels; without any, all whose names say so.
        organ_label: Name or value of the organ; None infers it for each tumour label.

    Raises:
        DatasetError: If the file is missing or wrong.
        MissingLabelError: If no label is a tumour, a label is unknown, or an organ is needed and cannot be told.
    """
    options = read_dataset_json(path)
    all_values = set().union(*parse_labels(options["labels"], path).values())
    foreground = foreground_labels(options["labels"])
    by_name = tuple(name for name in foreground if is_tumor_name(name))
    chosen = tuple(_find_name(name, foreground, "--tumor-label", path) for name in tumor_labels) or by_name
    if not chosen:
        raise MissingLabelError(
            f"None of the labels of {path} is named like a tumour ({', '.join(foreground)}). Name one with "
            "--tumor-label."
        )
    organ = None if organ_label is None else _find_name(organ_label, foreground, "--organ-label", path)
    has_regions = any(len(values) > 1 for values in foreground.values())
    labels = tuple(
        ScoredLabel(
            name=name,
            values=values,
            is_tumor=name in chosen,
            channel=index if has_regions else values[0],
            organ_values=_organ_values(foreground, name, organ) if needs_organ and name in chosen else (),
        )
        for index, (name, values) in enumerate(foreground.items())
    )
    ignore = options["labels"].get("ignore")
    return LabelScheme(
        labels=labels,
        declared=frozenset((0, *all_values)),
        tumor_values=tumor_values(foreground).union(*(foreground[name] for name in chosen)),
        ignore=ignore if isinstance(ignore, int) else None,
        channels=len(foreground) if has_regions else 1 + max(max(values) for values in foreground.values()),
        has_regions=has_regions,
        is_reoriented=options.get("overwrite_image_reader_writer") == "NibabelIOWithReorient",
    )


def _find_name(wanted: str, foreground: Mapping[str, tuple[int, ...]], option: str, path: Path) -> str:
    """Name of a label given by name or value; of a value, the smallest region that holds it."""
    if wanted in foreground:
        return wanted
    name = name_of_label(foreground, int(wanted)) if wanted.isdigit() else ""
    if not name:
        shown = ", ".join(f"{name} {list(values)}" for name, values in foreground.items())
        raise MissingLabelError(f"{option} {wanted} is no label of {path}. Its labels are {shown}.")
    return name


def _organ_values(foreground: Mapping[str, tuple[int, ...]], tumor: str, organ: str | None) -> tuple[int, ...]:
    """Values of a tumour's organ, without those of the tumour."""
    if organ is None:
        own = [value for value in foreground[tumor] if name_of_label(foreground, value) == tumor]
        try:
            organ = name_of_label(foreground, resolve_label_roles(foreground, tumor=min(own or foreground[tumor]))[0])
        except ConfigurationError as error:
            raise MissingLabelError(
                f"The organ of the tumour label '{tumor}' cannot be told from the names of the labels "
                f"({', '.join(foreground)}). Name it with --organ-label."
            ) from error
    values = tuple(value for value in foreground[organ] if value not in foreground[tumor])
    if not values:
        raise MissingLabelError(f"The organ label '{organ}' has no value that is not the tumour's. Name another one.")
    return values
