"""The setting `extra_healthy_datasets`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nnunet_difftumor.errors import ConfigurationError

_EXAMPLE = '{"dataset": 802, "confirmed_healthy": true}'


@dataclass(frozen=True, kw_only=True)
class ExtraHealthyDataset:
    """One entry of the setting `extra_healthy_datasets`.

    Attributes:
        dataset: nnU-Net data set: number or full name.
        confirmed_healthy: Its cases are known to be free of tumours; nothing else is accepted.
    """

    dataset: str
    confirmed_healthy: bool


def parse_extra_healthy(entries: Sequence[Any], source: str) -> tuple[ExtraHealthyDataset, ...]:
    """Read the setting `extra_healthy_datasets`.

    Args:
        source: Where it stands, for messages.

    Raises:
        ConfigurationError: If an entry is malformed, repeated, or not confirmed to be healthy.
    """
    parsed = [_parse_entry(entry, source) for entry in entries]
    names = [entry.dataset for entry in parsed]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigurationError(f"extra_healthy_datasets names {repeated[0]} twice in {source}. Take one away.")
    return tuple(parsed)


def _parse_entry(entry: Any, source: str) -> ExtraHealthyDataset:
    if isinstance(entry, ExtraHealthyDataset):
        return entry
    if not isinstance(entry, Mapping) or not {"dataset"} <= set(entry) <= {"dataset", "confirmed_healthy"}:
        raise ConfigurationError(
            f"Each of extra_healthy_datasets must look like {_EXAMPLE}, got {entry!r} in {source}."
        )
    dataset = entry["dataset"]
    if isinstance(dataset, bool) or not isinstance(dataset, (str, int)) or not str(dataset):
        raise ConfigurationError(
            f"dataset in extra_healthy_datasets must be a number or a full name, got {dataset!r} in {source}."
        )
    if entry.get("confirmed_healthy") is not True:
        raise ConfigurationError(
            f"extra_healthy_datasets: data set {dataset} is not confirmed to be healthy in {source}. In a data set "
            "without tumour labels, no label may only mean that nobody looked. If its cases are known to be free of "
            f'tumours, write {{"dataset": {json.dumps(dataset)}, "confirmed_healthy": true}}.'
        )
    return ExtraHealthyDataset(dataset=str(dataset), confirmed_healthy=True)
