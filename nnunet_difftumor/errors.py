"""Errors that a caller may want to catch; each message says what was expected, what arrived and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class DiffTumorError(ValueError):
    """Base of every error that this package raises about its input."""


class EmptyOrganError(DiffTumorError):
    """The organ mask has no voxel."""


class GeometryMismatchError(DiffTumorError):
    """An image and a mask do not lie on the same grid."""


class NotHounsfieldError(DiffTumorError):
    """The values of an image are not Hounsfield units."""


class CorruptImageError(DiffTumorError):
    """An image file cannot be read, or holds NaN or infinite values."""


class UnsupportedImageError(DiffTumorError):
    """An image file is whole, but of a kind that is not a single 3D scalar volume."""


class MissingLabelError(DiffTumorError):
    """A label that was asked for is not in the data."""


class DatasetError(DiffTumorError):
    """A data set folder is incomplete or inconsistent."""


class ConfigurationError(DiffTumorError):
    """A configuration key or value is wrong."""


class LeakError(DiffTumorError):
    """A generator was trained on data that would be used to validate with it."""


class OutputExistsError(DiffTumorError):
    """An output exists already and would be overwritten."""


class ModelExportError(DiffTumorError):
    """A trained model cannot be exported to stock nnU-Net, or the export does not predict the same."""


def unknown_key_message(key: str, known: Iterable[str], where: str) -> str:
    """Say that a key is unknown, which one may have been meant, and which there are."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.4)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"Unknown setting '{key}' in {where}.{hint} Known: {', '.join(names)}."


def list_some(names: Sequence[str]) -> str:
    """Return the first five names, and dots for more."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
