"""What may be typed after a training, with the values of this run."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnunet_difftumor.commands.training.training_arguments import add_training_arguments

if TYPE_CHECKING:
    from nnunet_difftumor.ct.datasets import Case

_SHARED = ("preset", "splits", "fold", "exclude_cases", "seed", "workers", "precision", "cache")
_PLANS, _CONFIGURATION = "nnUNetPlans", "3d_fullres"


def typed(*words: object) -> str:
    """Return the words as they are typed in a shell."""
    return shlex.join(map(str, words))


def as_list(commands: Sequence[str]) -> str:
    """Return commands under the word Next, one a line."""
    return "\n".join(["Next:", *(f"  {command}" for command in commands)])


def after_autoencoder(options: argparse.Namespace) -> str:
    """Say how stage two is trained on the same cases with the same settings."""
    from nnunet_difftumor.generator_training.case_selection import open_data_folder

    annotated = [folder for folder in options.data if open_data_folder(folder).tumor_values]
    if not annotated:
        return (
            f"Next: stage two, with --autoencoder {typed(options.output)} and -d of annotated tumours, which no "
            "data set above names (see difftumor train-diffusion --help)."
        )
    name = options.output.resolve().name
    name = f"dm{name[2:]}" if re.match("ae(?![a-z])", name) else f"{name}_dm"
    words = ["-d", *annotated, "--autoencoder", options.output, "--output", _unused(options.output.parent / name)]
    return as_list([typed("difftumor", "train-diffusion", *words, *_shared_words(options))])


def after_diffusion(options: argparse.Namespace) -> str:
    """Say how to look at the generator, and how nnU-Net trains with it where the splits tell the data set."""
    generator, lines = options.output / "generator", []
    if scan := _scan_to_look_at(options):
        case, organ_label = scan
        words = ["--ct", case.image_path, "--organ-mask", case.label_path, "--organ-label", organ_label]
        words += ["--generator", generator, "--output", _unused(options.output / "look")]
        lines.append(f"Look at it: {typed('difftumor', 'synthesize', *words)}")
    folder = options.splits.resolve().parent if options.splits else None
    of_fold = re.sub(rf"(fold_?){options.fold}(?!\d)", r"\1{fold}", str(generator.resolve()))
    setting = json.dumps({"generator": of_fold}, ensure_ascii=False)
    if folder is None or not _is_dataset_of_nnunet(folder):
        return "\n".join([*lines, f"Next: {setting} in difftumor.json beside the plans that nnU-Net trains with."])
    config = folder / "difftumor.json"
    if config.exists():
        lines.append(f"Its setting, for {config}: {setting}")
        return "\n".join([*lines, as_list([*_to_train(folder, options.fold)])])
    write = f"echo {shlex.quote(setting)} > {shlex.quote(str(config))}"
    return "\n".join([*lines, as_list([write, *_to_train(folder, options.fold)])])


def stage_three(dataset: int, configuration: str, fold: int | str, *options: str) -> list[str]:
    """Return the commands that train nnU-Net, with the variable that it finds the trainer by if that is not set."""
    from nnunet_difftumor.trainer.discovery import trainer_search_environment

    variables = trainer_search_environment().items()
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables if os.environ.get(name) != value]
    trainer = ("-tr", "nnUNetTrainerDiffTumor")
    return [*exports, typed("nnUNetv2_train", dataset, configuration, fold, *trainer, *options)]


def _to_train(folder: Path, fold: int) -> Iterator[str]:
    """Commands for the data set in a folder of nnUNet_preprocessed: planning if it is not planned, then training."""
    import torch

    from nnunet_difftumor.cases.nnunet_folders import dataset_number

    number, has_gpu = dataset_number(folder.name), torch.cuda.is_available()
    needed = folder / (f"{_PLANS}_{_CONFIGURATION}" if has_gpu else f"{_PLANS}.json")
    if not needed.exists():
        plan = ("nnUNetv2_plan_and_preprocess", "-d", number, "-c", _CONFIGURATION)
        yield typed(*plan, *(() if has_gpu else ("--no_pp",)))
    if has_gpu:
        yield from stage_three(number, _CONFIGURATION, fold)
    else:
        yield typed("difftumor", "small-plans", "-d", number, "-f", fold)


def _shared_words(options: argparse.Namespace) -> Iterator[object]:
    """Words of what both stages take and was chosen for this run; steps are those of a stage."""
    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    for name in _SHARED:
        if (value := getattr(options, name)) != parser.get_default(name):
            yield from ("-f" if name == "fold" else f"--{name.replace('_', '-')}", value)
    if options.skip_bad:
        yield "--skip-bad"


def _scan_to_look_at(options: argparse.Namespace) -> tuple[Case, int] | None:
    """A case with the value of its organ: one that trains nothing if there is one, healthy if possible."""
    from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME, read_holdout
    from nnunet_difftumor.ct.datasets import load_raw_dataset
    from nnunet_difftumor.ct.label_roles import resolve_label_roles
    from nnunet_difftumor.errors import ConfigurationError

    listed = json.loads((options.output / "cases.json").read_text(encoding="utf-8"))
    holdout = read_holdout(options.splits.parent / HOLDOUT_FILE_NAME) if options.splits else ()
    names = [*(holdout or ()), *listed["heldout"], *listed["training"]]
    for folder in options.data:
        dataset = load_raw_dataset(folder)
        cases = {case.identifier: case for case in dataset.cases}
        try:
            organ_label, _ = resolve_label_roles(dataset.options["labels"], tumor=options.tumor_label)
        except ConfigurationError:  # no label of an organ
            continue
        if found := next((cases[name] for name in names if name in cases), None):
            return found, organ_label
    return None


def _is_dataset_of_nnunet(folder: Path) -> bool:
    from nnunetv2.paths import nnUNet_preprocessed

    root, is_named = nnUNet_preprocessed.get(), re.fullmatch(r"Dataset\d{3}_.+", folder.name) is not None
    return is_named and bool(root) and folder.parent == Path(str(root)).resolve()


def _unused(path: Path) -> Path:
    """Return the path, with a number if there is something."""
    numbered = (path.with_name(f"{path.name}_{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not each.exists())
