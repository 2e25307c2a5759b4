"""Which label is the organ and which the tumour, inferred from the names in dataset.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nnunet_difftumor.cases import TUMOR_WORDS
from nnunet_difftumor.errors import ConfigurationError

_ORGAN_WORDS = frozenset(
    "liver pancreas kidney kidneys lung lungs colon spleen prostate stomach esophagus oesophagus bladder "
    "uterus breast adrenal brain muscle tissue".split()
)
_NOT_AN_ORGAN = frozenset("cyst cysts vessel vessels vein veins artery arteries duct ducts thrombus stent".split())


def resolve_label_roles(
    labels: Mapping[str, Any], organ: str | int | None = None, tumor: str | int | None = None
) -> tuple[int, int]:
    """Find the organ's and the tumour's label value.

    What is given is looked up; what is not is inferred from the names, and only where one answer is left.

    Args:
        labels: `labels` of nnU-Net's dataset.json: name to value.
        organ: Name or value of the organ label; None infers it.
        tumor: Name or value of the tumour label; None infers it.

    Returns:
        Label values of organ and tumour.

    Raises:
        ConfigurationError: If a label is not in the data set, is the background, or cannot be inferred.
    """
    values = {name: value for name, value in labels.items() if _is_foreground(name, value)}
    tumor_name = _look_up("tumor_label", tumor, values) if tumor is not None else None
    organ_name = _look_up("organ_label", organ, values) if organ is not None else None
    if tumor_name is None:
        tumor_name = _infer_tumor(values, organ_name)
    if organ_name is None:
        organ_name = _infer_organ(values, tumor_name)
    if organ_name == tumor_name:
        raise ConfigurationError(
            f"organ_label and tumor_label are both '{organ_name}'; they must be two labels of {_listing(values)}."
        )
    return values[organ_name], values[tumor_name]


def is_exophytic_organ(labels: Mapping[str, Any], organ_label: int) -> bool:
    """Return True for organs whose tumours mostly grow out of them: kidneys."""
    return any(value == organ_label and _words(name) & {"kidney", "kidneys"} for name, value in labels.items())


def _is_foreground(name: str, value: Any) -> bool:
    return isinstance(value, int) and value > 0 and name != "ignore"


def _is_tumor(name: str) -> bool:
    return any(word in name.lower() for word in TUMOR_WORDS)


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", name.lower()))


def _listing(values: Mapping[str, int]) -> str:
    return "{" + ", ".join(f"'{name}': {value}" for name, value in values.items()) + "}"


def _look_up(key: str, wanted: str | int, values: Mapping[str, int]) -> str:
    for name, value in values.items():
        if wanted == name or (wanted == value and not isinstance(wanted, bool)):
            return name
    raise ConfigurationError(
        f"{key} is {wanted!r}, which is no foreground label of this data set. Labels in dataset.json: "
        f"{_listing(values)}. To train with synthetic tumours only, declare the tumour label there "
        "although no case has a voxel of it."
    )


def _infer_tumor(values: Mapping[str, int], organ: str | None) -> str:
    candidates = [name for name in values if _is_tumor(name) and name != organ]
    if len(candidates) > 1 and organ is not None:
        candidates = [name for name in candidates if _words(organ) <= _words(name)] or candidates
    return _the_only("tumor_label", candidates, values)


def _infer_organ(values: Mapping[str, int], tumor: str) -> str:
    others = [name for name in values if name != tumor and not _is_tumor(name) and not _words(name) & _NOT_AN_ORGAN]
    named_in_tumor = [name for name in others if _words(name) and _words(name) <= _words(tumor)]
    known = [name for name in others if _words(name) & _ORGAN_WORDS]
    for candidates in (named_in_tumor, others, known):
        if len(candidates) == 1:
            return candidates[0]
    return _the_only("organ_label", known or others, values)


def _the_only(key: str, candidates: list[str], values: Mapping[str, int]) -> str:
    if len(candidates) == 1:
        return candidates[0]
    found = f"several fit ({', '.join(candidates)})" if candidates else "none fits"
    raise ConfigurationError(
        f"{key} cannot be inferred from the label names: {found}. Labels in dataset.json: {_listing(values)}. "
        f'Set it, e.g. {{"{key}": "{next(iter(values), "liver")}"}} in difftumor.json beside the plans.'
    )
