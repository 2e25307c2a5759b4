"""nnU-Net's folders and data set names, with errors that say what to set."""

from __future__ import annotations

from pathlib import Path

from nnunet_difftumor.errors import ConfigurationError, DatasetError


def require_nnunet_folders() -> tuple[Path, Path]:
    """Return nnUNet_raw and nnUNet_preprocessed.

    Raises:
        ConfigurationError: If one of the environment variables is not set, or empty.
    """
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    if not nnUNet_raw.get() or not nnUNet_preprocessed.get():
        raise ConfigurationError(
            "nnUNet_raw and nnUNet_preprocessed must be set, as for nnU-Net: export nnUNet_raw=/path/to/nnUNet_raw "
            "nnUNet_preprocessed=/path/to/nnUNet_preprocessed"
        )
    return Path(str(nnUNet_raw)), Path(str(nnUNet_preprocessed))


def find_dataset_name(dataset: str) -> str:
    """Find the full name (`DatasetXXX_Name`) of a data set in nnU-Net's folders, by number or full name.

    Raises:
        DatasetError: If there is none, or several have the number.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    try:
        return maybe_convert_to_dataset_name(int(dataset) if dataset.isdigit() else dataset)
    except (RuntimeError, ValueError) as error:
        raise DatasetError(
            f"There is no data set {dataset!r} in nnU-Net's folders ({error}). Give the number or the full name, "
            "such as 802 or Dataset802_Healthy."
        ) from error
