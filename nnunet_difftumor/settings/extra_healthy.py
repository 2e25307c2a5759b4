"""The setting `extra_healthy_datasets`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, model_validator

from nnunet_difftumor.support.files.declared import Declared, Expected, Text

_EXAMPLE = '{"dataset": 802, "confirmed_healthy": true}'


class ExtraHealthyDataset(Declared):
    """A further data set whose cases are healthy and train in every fold."""

    dataset: Annotated[Text, Expected("a number or a full name")]
    """nnU-Net data set: number or full name."""
    confirmed_healthy: bool
    """Its cases are known to be free of tumours; nothing but `true` is accepted."""

    @model_validator(mode="before")
    @classmethod
    def _require_confirmation(cls, entry: Any) -> Any:
        if isinstance(entry, cls):
            return entry
        if not isinstance(entry, Mapping) or not {"dataset"} <= set(entry) <= set(cls.model_fields):
            raise ValueError(f"each of extra_healthy_datasets must look like {_EXAMPLE}, got {entry!r}.")
        dataset = entry["dataset"]
        if entry.get("confirmed_healthy") is not True:
            raise ValueError(
                f"data set {dataset} is not confirmed to be healthy. In a data set without tumour labels, no label "
                "may only mean that nobody looked. If its cases are known to be free of tumours, write "
                f'{{"dataset": {json.dumps(dataset)}, "confirmed_healthy": true}}.'
            )
        return entry


def _refuse_repeated(entries: tuple[ExtraHealthyDataset, ...]) -> tuple[ExtraHealthyDataset, ...]:
    names = [entry.dataset for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"extra_healthy_datasets names {repeated[0]} twice. Take one away.")
    return entries


ExtraHealthyDatasets = Annotated[
    tuple[ExtraHealthyDataset, ...], AfterValidator(_refuse_repeated), Expected("a list of data sets")
]
