"""Preprocessed cases of several folders as one data set of nnU-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class PreprocessedDataset(Protocol):
    """The part of nnU-Net's data sets (`nnUNetBaseDataset`) that its loaders use."""

    identifiers: list[str]

    def load_case(self, identifier: str) -> Any:
        """Open one case: image, labels, labels of the previous stage, properties."""
        ...


class CompositeDataset:
    """Cases of several preprocessed folders under one list of identifiers; nothing is copied.

    Attributes:
        identifiers: All identifiers, sorted as nnU-Net sorts those of one folder.
    """

    def __init__(self, parts: Sequence[PreprocessedDataset]) -> None:
        """Join data sets.

        Raises:
            ValueError: If two parts share an identifier.
        """
        self._parts = {identifier: part for part in parts for identifier in part.identifiers}
        self.identifiers = sorted(self._parts)
        if len(self.identifiers) != sum(len(part.identifiers) for part in parts):
            raise ValueError("Two preprocessed data sets share a case identifier; rename the case in one of them.")

    def __getitem__(self, identifier: str) -> Any:
        """Open one case, as nnU-Net's data sets do."""
        return self.load_case(identifier)

    def load_case(self, identifier: str) -> Any:
        """Open one case from the folder that it lies in."""
        return self._parts[identifier].load_case(identifier)
