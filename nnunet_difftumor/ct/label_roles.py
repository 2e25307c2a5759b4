"""Which label is the organ and which the tumour, inferred from the names in dataset.json; what a case is by that."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError, DatasetError, MissingLabelError, list_some

_ORGAN_WORDS = frozenset(
    "liver pancreas kidney kidneys lung lungs colon spleen prostate stomach esophagus oesophagus bladder "
    "uterus breast adrenal brain muscle tissue".split()
)
_NOT_AN_ORGAN = frozenset(
    "cyst cysts vessel vessels vein veins artery arteries duct ducts thrombus stent zyste zysten kyste kystes vene "
    "venen veine veines arterie artere necrosis nekrose necrose edema oedema odem".split()
)
_TUMOR = re.compile("tumou?r|tumeur|cancer|[ck]ar[cz]inom|krebs|la?esion|lasion|metastas|nodul|sar[ck]om|neoplas")
"""Parts of label names that mean a tumour: English, German, French."""
_NO_HEALTH = re.compile(
    _TUMOR.pattern + "|adenom|angiom|blastom|gliom|lymphom|melanom|mesotheliom|myelom|oncocytom|seminom|teratom|thymom|"
    "malign|raumforder|(?<![a-z])(hcc|icc|cca|cc?rcc|rcc|pdac|ipmn|pnet|gist|n?sclc|scc|crc|crlm|luad|lusc|dlbcl|fnh|"
    "mass|met|mts|tu|[gcp]tv[a-z]{0,2})s?(?![a-z])"
)
"""These and further names, too special to infer a role from: who has one is not healthy, and none is an organ."""

TUMOR, HEALTHY, OTHER = "tumor", "healthy", "other"


@dataclass(frozen=True)
class LabelRoles:
    """What the label values of a data set mean.

    Attributes:
        organ: Value in which tumours are placed.
        tumor: Value that synthetic tumours get.
        tumor_parts: Further values that are tumour as well, such as the necrosis of a tumour region.
        other_tumors: Values of other labels that are named like tumours: a case with one is not healthy.
    """

    organ: int
    tumor: int
    tumor_parts: tuple[int, ...] = ()
    ignore: int | None = None
    other_tumors: tuple[int, ...] = ()

    @classmethod
    def of_dataset(cls, labels: Mapping[str, Any], organ: int, tumor: int) -> LabelRoles:
        """Find the other roles in the `labels` of a dataset.json, where organ and tumour are known.

        What lies in one tumour region with the tumour, outside the organ, is part of tumours.
        """
        parts = {
            value
            for name, values in foreground_labels(labels).items()
            if is_tumor_name(name) and tumor in values and organ not in values
            for value in values
        }
        others = tumor_values(labels, {organ}) - parts - {organ, tumor}
        return cls(organ, tumor, tuple(sorted(parts - {tumor})), labels.get("ignore"), tuple(sorted(others)))


def kind_of_case(values: Collection[int], roles: Sequence[LabelRoles], *, is_confirmed: bool = False) -> str:
    """Say what a case is by the values in its label map: "tumor", "healthy", or "other", which is neither.

    Healthy is a case with an organ of the roles, and without a tumour of any role or of another label. Where voxels
    are ignored, nobody looked.

    Args:
        is_confirmed: The user says that a case without annotated tumour is healthy, whatever is ignored.
    """
    found, organs = set(values), {role.organ for role in roles}
    if any(found.intersection((role.tumor, *role.tumor_parts)) for role in roles):
        return TUMOR
    others = {value for role in roles for value in role.other_tumors} - organs
    is_ignored = not is_confirmed and any(role.ignore in found for role in roles)
    return HEALTHY if found & organs and not found & others and not is_ignored else OTHER


def tumor_values(labels: Mapping[str, Any], organs: Collection[int] = ()) -> frozenset[int]:
    """Return every value of the labels and regions of a dataset.json that are named like tumours and hold no organ."""
    return frozenset(
        value
        for name, values in foreground_labels(labels).items()
        if _NO_HEALTH.search(_plain(name)) and not set(organs).intersection(values)
        for value in values
    )


def declared_values(labels: Mapping[str, Any]) -> frozenset[int]:
    """Return every value of the `labels` of a dataset.json, background and ignore included."""
    values = (value if isinstance(value, (list, tuple)) else (value,) for value in labels.values())
    return frozenset({0}.union(*values))


def require_declared(found: Mapping[Path, Collection[int]], declared: Collection[int]) -> None:
    """Refuse label files with values, listed for each, that dataset.json does not name: nobody knows what they mean.

    Raises:
        DatasetError: If there are some; the message names the files.
    """
    odd = {path: values for path, each in found.items() if (values := sorted(set(each).difference(declared)))}
    if odd:
        path, values = next(iter(odd.items()))
        fix = "Correct the label map (labels are resampled with nearest neighbour), or give its own dataset.json."
        if len(values) > 150 or values[0] < -1:
            fix = f"Values from {values[0]} to {values[-1]} look like a CT; put the label map in its place."
        names = [each.name.split(".nii")[0] for each in odd]
        raise DatasetError(
            f"{len(odd)} label maps hold values that dataset.json does not name: {list_some(names)} ({values[:8]}). "
            f"It has {', '.join(map(str, sorted(declared)))}; the first of them is {path}. {fix}"
        )


def resolve_label_roles(
    labels: Mapping[str, Any], organ: str | int | None = None, tumor: str | int | None = None
) -> tuple[int, int]:
    """Find the organ's and the tumour's label value.

    What is given is looked up; what is not is inferred from the names, and only where one answer is left. A region
    (a name with several values) stands for the one value that is in no smaller region and not the tumour's:
    {"kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2} has the organ 1 and the tumour 2.

    Args:
        labels: `labels` of nnU-Net's dataset.json: name to value, or to the values of a region.
        organ: Name or value; None infers it.
        tumor: Likewise.

    Raises:
        ConfigurationError: If a label is not in the data set, is the background, or cannot be inferred.
    """
    values = foreground_labels(labels)
    tumor_name = None if tumor is None else _look_up("tumor_label", tumor, values)
    organ_name = None if organ is None else _look_up("organ_label", organ, values)
    tumor_name = tumor_name or _infer_tumor(values, organ_name)
    organ_name = organ_name or _infer_organ(values, tumor_name)
    tumor_value = _one_value("tumor_label", tumor, tumor_name, values)
    organ_value = _one_value("organ_label", organ, organ_name, values, tumor_value)
    if organ_value == tumor_value:
        raise ConfigurationError(
            f"organ_label and tumor_label are both '{organ_name}'; they must be two labels of {_listing(values)}."
        )
    return organ_value, tumor_value


def name_of_label(labels: Mapping[str, Any], value: int) -> str:
    """Return the name of the label, or of the smallest region, that has a value in the `labels` of a dataset.json.

    It is "" if there is none.
    """
    values = foreground_labels(labels)
    return min((name for name in values if value in values[name]), key=lambda name: len(values[name]), default="")


def is_exophytic_organ(labels: Mapping[str, Any], organ_label: int) -> bool:
    """Return True for organs whose tumours mostly grow out of them: kidneys."""
    return bool(_words(name_of_label(labels, organ_label)) & {"kidney", "kidneys"})


def find_tumor_label(labels: Mapping[str, tuple[int, ...]], name: str | None = None) -> tuple[int, ...]:
    """Choose the values of the label that means tumour.

    Args:
        name: Name or value of the label to take; None looks for a name such as tumor, cancer or lesion.

    Raises:
        MissingLabelError: If there is no such label, or several look like a tumour.
    """
    if name is not None and name not in labels and name.isdecimal():
        name = next((key for key, values in labels.items() if values == (int(name),)), name)
    if name is not None and name not in labels:
        raise MissingLabelError(f"dataset.json has no label '{name}'. Name one of {', '.join(labels)} (--tumor-label).")
    found = [key for key in labels if is_tumor_name(key)] if name is None else [name]
    if len(found) != 1:
        looks = f"{len(found)} labels look like a tumour ({', '.join(found)})" if found else "none looks like a tumour"
        raise MissingLabelError(
            f"Which label of dataset.json is the tumour? Of {', '.join(labels)}, {looks}. Name it with --tumor-label."
        )
    return labels[found[0]]


def foreground_labels(labels: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the values of each foreground label or region; background and the ignore label left out."""
    foreground = {}
    for name, value in labels.items():
        values = (value,) if isinstance(value, int) else value
        if not isinstance(values, (list, tuple)) or not all(isinstance(each, int) for each in values):
            continue  # nnU-Net says what is wrong with it
        if name != "ignore" and values and min(values) > 0:
            foreground[name] = tuple(sorted(set(values)))
    return foreground


def is_tumor_name(name: str) -> bool:
    """Return True for the name of a tumour."""
    return _TUMOR.search(_plain(name)) is not None


def _plain(name: str) -> str:
    """Lower case, without accents."""
    return "".join(each for each in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(each))


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", _plain(name)))


def _listing(values: Mapping[str, tuple[int, ...]]) -> str:
    return str({name: value[0] if len(value) == 1 else list(value) for name, value in values.items()})


def _look_up(key: str, wanted: str | int, values: Mapping[str, tuple[int, ...]]) -> str:
    if wanted in values:
        return str(wanted)
    if isinstance(wanted, str) and wanted.isdecimal():  # a value, as it is typed
        wanted = int(wanted)
    if isinstance(wanted, int) and not isinstance(wanted, bool) and (name := name_of_label(values, wanted)):
        return name
    raise ConfigurationError(
        f"{key} is {wanted!r}, which is no foreground label of this data set. Labels in dataset.json: "
        f"{_listing(values)}. To train with synthetic tumours only, declare the tumour label there "
        "although no case has a voxel of it."
    )


def _one_value(
    key: str, wanted: str | int | None, name: str, values: Mapping[str, tuple[int, ...]], *not_values: int
) -> int:
    """The label value that a name stands for: of a region, the one that is in no smaller region."""
    if isinstance(wanted, int) and wanted in values[name]:
        return wanted
    own = set(values[name])
    smaller = [set(other) for other in values.values() if set(other) < own]
    left = sorted(own.difference(not_values, *smaller))
    if len(left) == 1:
        return left[0]
    if len(own) == 1:
        return own.pop()  # the caller says that both roles have it
    raise ConfigurationError(
        f"{key} cannot be told from the region '{name}': {', '.join(map(str, left)) or 'none'} of its values "
        f"{list(values[name])} is in no smaller region and not the other role's. Labels in dataset.json: "
        f'{_listing(values)}. Give the value, e.g. {{"{key}": {(left or sorted(own))[0]}}} in difftumor.json beside '
        "the plans."
    )


def _infer_tumor(values: Mapping[str, tuple[int, ...]], organ: str | None) -> str:
    candidates = [name for name in values if is_tumor_name(name) and name != organ]
    if len(candidates) > 1 and organ is not None:
        candidates = [name for name in candidates if _words(organ) <= _words(name)] or candidates
    return _the_only("tumor_label", candidates, values)


def _infer_organ(values: Mapping[str, tuple[int, ...]], tumor: str) -> str:
    others = [name for name in values if name != tumor and not _NO_HEALTH.search(_plain(name))]
    others = [name for name in others if not _words(name) & _NOT_AN_ORGAN]
    named_in_tumor = [name for name in others if _words(name) and _words(name) <= _words(tumor)]
    known = [name for name in others if _words(name) & _ORGAN_WORDS]
    for candidates in (named_in_tumor, others, known):
        if len(candidates) == 1:
            return candidates[0]
    return _the_only("organ_label", known or others, values)


def _the_only(key: str, candidates: list[str], values: Mapping[str, tuple[int, ...]]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"several fit ({', '.join(candidates)})" if candidates else "none fits"
    raise ConfigurationError(
        f"{key} cannot be inferred from the label names: {found}. Labels in dataset.json: {_listing(values)}. "
        f'Set it: {{"{key}": "{candidates[0] if candidates else "NAME"}"}} in difftumor.json beside the plans (or '
        "the command's option). Where no label means it, declare one in dataset.json, even if no case has it."
    )
