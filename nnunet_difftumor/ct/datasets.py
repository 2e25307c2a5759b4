"""Cases: a CT and its labels, found in nnU-Net raw data sets and in plain folders of CTs or label maps."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnunet_difftumor.ct.reading import IMAGE_ENDINGS, file_ending, images_among
from nnunet_difftumor.errors import DatasetError, list_some

_DATASET_KEYS: dict[str, tuple[type, str]] = {
    "channel_names": (dict, '{"0": "CT"}'),
    "labels": (dict, '{"background": 0, "liver": 1, "tumor": 2}'),
    "file_ending": (str, '".nii.gz"'),
    "dataset": (dict, '{"case": {"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}}'),
}

_MASKS = r"labels?|labelmaps?|gt|ground[_-]?truths?|segs?|segmentations?|masks?|msk|gtv|annotations?|pred(iction)?s?"
_NO_CT_NAME = re.compile(
    rf"(?i)(^|[._-])(\d*({_MASKS}|pet|suv|suvbw)([._-]?\d+)*|pt)(\.(nii|nrrd|mh[ad])|$)"
    r"|^(label|seg|segmentation|mask)s?[._-]"
)
_NO_CT_FOLDER = re.compile(
    rf"(?i)(^|[._-])({_MASKS}|instances|derivatives)([_-]?(tr|ts|va|train|test|val))?\d*$|^segs?[._-]"
)
"""Masks and pictures of other kinds, by the words that public data sets name their files and folders with."""

_CT_SUFFIX = re.compile(r"(_0000|[_-]ct)$", re.IGNORECASE)
_NAMED_BY_FOLDER = frozenset("ct data image img imaging volume".split())
"""Files of layouts with one folder a case: AbdomenAtlas, PanTS and TotalSegmentator (ct), KiTS (imaging)."""


@dataclass(frozen=True)
class Case:
    """One CT scan with nnU-Net's case identifier, and its label map if there is one."""

    identifier: str
    image_path: Path
    label_path: Path | None = None


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """An nnU-Net raw data set (`DatasetXXX_Name`) with one CT channel.

    Attributes:
        labels: See `parse_labels`.
        cases: Training cases, sorted by identifier.
        options: The whole of dataset.json.
    """

    folder: Path
    labels: Mapping[str, tuple[int, ...]]
    file_ending: str
    cases: tuple[Case, ...]
    options: Mapping[str, Any]


def load_raw_dataset(folder: Path, *, needs_labels: bool = True) -> RawDataset:
    """Read dataset.json and find the training cases in imagesTr and labelsTr; nothing is decoded.

    Args:
        needs_labels: Refuse cases without a label map.

    Raises:
        DatasetError: If dataset.json is missing or wrong, the channel is not one CT, or a file is missing.
    """
    folder = Path(folder)
    options = read_dataset_json(folder / "dataset.json")
    channels = options.get("channel_names", {})
    if len(channels) != 1 or str(next(iter(channels.values()))).lower() != "ct":
        raise DatasetError(
            f"{folder / 'dataset.json'} should name one channel, {{'0': 'CT'}}, but has channel_names={channels}. "
            "Tumours can be made on single-channel CT only; keep the CT channel in a data set of its own."
        )
    ending = str(options["file_ending"])
    listed = options.get("dataset")
    cases = tuple(_named_cases(folder, ending) if listed is None else _listed_cases(folder, listed))
    if not cases:
        raise DatasetError(
            f"{folder / 'imagesTr'} holds no file named <case>_0000{ending}. nnU-Net wants the channel in the name of "
            "an image: add _0000 before the ending, or correct file_ending in dataset.json."
        )
    refuse_broken_links(folder, [path for case in cases for path in (case.image_path, case.label_path) if path])
    missing = [case.identifier for case in cases if case.label_path is None or not case.label_path.is_file()]
    if not needs_labels:
        cases = tuple(replace(case, label_path=None) if case.identifier in missing else case for case in cases)
    elif missing:
        raise DatasetError(
            f"{folder / 'labelsTr'} lacks the labels of {len(missing)} of {len(cases)} cases: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}. Add <case>{ending}, or remove the images."
        )
    labels = parse_labels(options["labels"], folder / "dataset.json")
    return RawDataset(folder=folder, labels=labels, file_ending=ending, cases=cases, options=options)


def find_ct_files(folder: Path) -> tuple[Case, ...]:
    """Find the CTs of a plain folder, subfolders included, sorted by path; they have no labels.

    The identifier is the file name without its ending and without a final `_0000` or `_ct`; of a file named ct,
    data, image, img, imaging or volume, the name of its folder. Masks and PET are left out by the names of their
    files and folders. Links are followed; what they lead to counts once.

    Raises:
        DatasetError: If there is no CT, two have one identifier, or a link leads nowhere.
    """
    folder = Path(folder)
    paths = [path for path in _walk(folder) if not _NO_CT_NAME.search(path.name)]
    refuse_broken_links(folder, paths)
    cases: dict[str, Case] = {}
    seen: set[Path] = set()
    for stem, path in images_among(paths):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        name = _CT_SUFFIX.sub("", stem)
        identifier = Path(os.path.abspath(path)).parent.name if name.lower() in _NAMED_BY_FOLDER else name
        if identifier in cases:
            raise DatasetError(
                f"{cases[identifier].image_path} and {path} both have the identifier '{identifier}'. "
                "Rename one, or give the folders one by one."
            )
        cases[identifier] = Case(identifier, path)
    if not cases:
        raise DatasetError(_nothing_found(folder))
    return tuple(cases.values())


def refuse_broken_links(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse links to images, or to folders, whose target is missing, among the paths below a folder.

    Raises:
        DatasetError: If there are some; it names them.
    """
    broken = [path for path in paths if path.is_symlink() and not path.exists()]
    names = [str(path) for path in sorted(broken) if file_ending(path) or not path.suffix.strip(".0123456789")]
    if names:
        raise DatasetError(
            f"{folder} holds {len(names)} links whose target is missing: {list_some(names)}. Fetch what they lead to "
            "(DataLad: datalad get PATH), mount its disk, or remove the links."
        )


def find_label_maps(folder: Path, option: str = "") -> dict[str, Path]:
    """Find the label maps of a folder, subfolders left out, by case identifier: the name without its ending.

    Args:
        option: What it was given as, for messages; "" for none.

    Raises:
        DatasetError: If there are none, or two of one case.
    """
    found: dict[str, Path] = {}
    refuse_broken_links(folder, folder.glob("*"))
    for case, path in images_among(folder.glob("*")):
        if case in found:
            raise DatasetError(f"{folder} holds two label maps of {case}: {found[case].name} and {path.name}.")
        found[case] = path
    if not found:
        raise DatasetError(f"{option} {folder} holds no label map (<case>.nii.gz). Check the path.".lstrip())
    return found


def read_dataset_json(path: Path) -> dict[str, Any]:
    """Read a dataset.json of nnU-Net v2, with `channel_names`, `labels` and `file_ending`.

    Raises:
        DatasetError: If it is missing, no JSON object, or lacks a key.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist; a raw data set needs it. To use CTs alone, name imagesTr itself.")
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DatasetError(f"{path} is not valid JSON ({error}). Correct it.") from error
    if not isinstance(options, dict):
        raise DatasetError(f"{path} must hold a JSON object, got {type(options).__name__}. See nnU-Net's format.")
    missing = [key for key in ("channel_names", "labels", "file_ending") if key not in options]
    if missing:
        raise DatasetError(
            f"{path} lacks {', '.join(missing)}. Write it in nnU-Net v2's format (a version 1 data set: "
            "nnUNetv2_convert_old_nnUNet_dataset; one of the Medical Segmentation Decathlon: "
            "nnUNetv2_convert_MSD_dataset)."
        )
    for key, (kind, example) in _DATASET_KEYS.items():
        if key in options and not isinstance(options[key], kind):
            raise DatasetError(f"{path}: {key} must look like {example}, got {options[key]!r}. Correct it.")
    return options


def parse_labels(labels: Mapping[str, Any], path: Path) -> dict[str, tuple[int, ...]]:
    """Read label values by name from the `labels` of a dataset.json (`path`, for messages), background left out.

    A region has several values.

    Raises:
        DatasetError: If a value is neither a whole number nor a list of whole numbers.
    """
    parsed = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in labels.items()}
    for name, values in parsed.items():
        if not values or not all(isinstance(number, int) and not isinstance(number, bool) for number in values):
            raise DatasetError(
                f'{path} should map label names to whole numbers ("tumor": 2), but has {name!r}: {labels[name]!r}.'
            )
    return {name: values for name, values in parsed.items() if name != "background"}


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, links to folders followed; hidden folders, folders of masks and repetitions left out."""
    seen: set[Path] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != "." and not _NO_CT_FOLDER.search(name))
        real = Path(root).resolve()
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(root, name) for name in files if name[0] != ".")


def _nothing_found(folder: Path) -> str:
    found = f"{folder} holds neither dataset.json (nnU-Net raw data set) nor a CT file ({', '.join(IMAGE_ENDINGS)})."
    paths = [path for path in folder.rglob("*") if path.is_file()]
    if any(map(_is_dicom, paths)):
        return f"{found} It holds DICOM files; convert each series to NIfTI first, for example with dcm2niix."
    if any(map(file_ending, paths)):
        return f"{found} By the names of files and folders, its images are masks or no CT. Name the CTs' folder."
    return f"{found} Check the path."


def _is_dicom(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return path.suffix.lower() in (".dcm", ".ima") or file.read(132)[128:] == b"DICM"
    return False


def _named_cases(folder: Path, ending: str) -> Iterator[Case]:
    images = folder / "imagesTr"
    if not images.is_dir():
        raise DatasetError(f"{images} does not exist; an nnU-Net raw data set keeps its training images there.")
    suffix = f"_0000{ending}"
    extra = sorted(path.name for path in images.glob(f"*_0001{ending}"))
    if extra:
        raise DatasetError(f"{images} holds a second channel ({extra[0]}), but dataset.json names one. Remove it.")
    for path in sorted(images.iterdir()):
        if path.name.endswith(suffix) and path.name[0] != ".":
            name = path.name.removesuffix(suffix)
            yield Case(name, path, folder / "labelsTr" / f"{name}{ending}")


def _listed_cases(folder: Path, listed: Mapping[str, Any]) -> Iterator[Case]:
    for identifier, entry in sorted(listed.items()):
        try:  # environment variables as nnU-Net expands them
            images, label = list(entry["images"]), folder / os.path.expandvars(entry["label"])
            image = folder / os.path.expandvars(images[0])
        except (TypeError, KeyError, IndexError) as error:
            raise DatasetError(
                f'{folder / "dataset.json"}: case {identifier!r} of "dataset" must look like '
                f'{{"images": ["imagesTr/case_0000.nii.gz"], "label": "labelsTr/case.nii.gz"}}, got {entry!r}.'
            ) from error
        if len(images) != 1:
            raise DatasetError(f"Case {identifier} of {folder} has {len(images)} images; one CT is needed.")
        unset = [str(path) for path in (image, label) if "$" in str(path) and not path.exists()]
        if unset:
            raise DatasetError(
                f"{folder / 'dataset.json'}: case {identifier!r} names {unset[0]}, which does not exist. Export the "
                "environment variable in it as for nnU-Net, or correct the path."
            )
        yield Case(identifier, image, label)
