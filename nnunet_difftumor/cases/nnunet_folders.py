"""nnU-Net's folders and data set names, with errors that say what to set."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from nnunet_difftumor.errors import ConfigurationError, DatasetError, list_some


def require_nnunet_folders() -> tuple[Path, Path]:
    """Return nnUNet_raw and nnUNet_preprocessed.

    Raises:
        ConfigurationError: If one of the environment variables is not set, or empty, or is quoted twice.
    """
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    if not nnUNet_raw.get() or not nnUNet_preprocessed.get():
        raise ConfigurationError(
            "nnUNet_raw and nnUNet_preprocessed must be set, as for nnU-Net: export nnUNet_raw=/path/to/nnUNet_raw "
            "nnUNet_preprocessed=/path/to/nnUNet_preprocessed"
        )
    for name, folder in (("nnUNet_raw", str(nnUNet_raw)), ("nnUNet_preprocessed", str(nnUNet_preprocessed))):
        if (bare := folder.strip("'\"")) != folder:
            raise ConfigurationError(
                f"{name} is {folder}, and the quotes are part of it. Set it without them: "
                f"export {name}={shlex.quote(bare)}"
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
        folders = require_nnunet_folders()
        there = sorted({path.name for folder in folders for path in folder.glob("Dataset*_*")})
        raise DatasetError(
            f"There is no data set {dataset!r} in nnUNet_raw or nnUNet_preprocessed ({str(error).partition('. ')[0]}); "
            f"there {'are' if len(there) > 1 else 'is'} {list_some(there) if there else 'none'}. Give the number or "
            "the full name (-d), or set nnUNet_raw to the folder that holds it."
        ) from error


def read_plans(folder: Path, plans: str, configuration: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the plans of a data set and its dataset.json from its folder in nnUNet_preprocessed.

    Raises:
        DatasetError: If a file is missing or no JSON, or the plans have no such configuration.
    """
    contents = []
    for path in (folder / f"{plans}.json", folder / "dataset.json"):
        try:
            contents.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            found = ", ".join(sorted(each.stem for each in folder.glob("*Plans*.json"))) or "none"
            command = ["nnUNetv2_plan_and_preprocess", "-d", str(dataset_number(folder.name)), "-c", configuration]
            raise DatasetError(
                f"{path} is missing. Run {shlex.join(command)}, or name other plans (-p; there are: {found})."
            ) from error
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} cannot be read ({error}). Run nnUNetv2_plan_and_preprocess again.") from error
    if configuration not in contents[0]["configurations"]:
        names = ", ".join(contents[0]["configurations"])
        raise DatasetError(f"{plans} has no configuration '{configuration}', but {names}. Name one of them (-c).")
    return contents[0], contents[1]


def dataset_number(name: str) -> int:
    """Return the number of a data set (`DatasetXXX_Name`), which some of nnU-Net's commands insist on."""
    return int(name.removeprefix("Dataset").partition("_")[0])
