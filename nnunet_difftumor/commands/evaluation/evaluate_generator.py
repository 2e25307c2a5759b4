"""`difftumor evaluate-generator`: compare generated with real tumours."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.commands.dataset_arguments import SPLITS, add_label_names, add_raw_dataset, find_dataset
from nnunet_difftumor.tumor.published_contrasts import TARGETS, TRAINING

if TYPE_CHECKING:
    from nnunet_difftumor.cases.known_cases import KnownCases
    from nnunet_difftumor.ct.datasets import Case
    from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings

DESCRIPTION = """Compare generated with real tumours, with copy-paste, and with fills without diffusion.

Tumours are made in place of the real ones, where nothing of the real tumour is left, and in tumour-free
tissue: in place of every tumour of a case from 3 mm radius up, or as many as --most-tumors says. A network
tries to tell them from real ones. Writes into --output:
  summary.json  figures with 95% intervals over patients
  report.html   tables, plots and montages on one page; the montages are PNG files as well
  worth.csv     fills, diffusion and copy-paste side by side; worth.md has it as Markdown
  tumors.csv    one row for each tumour
  probes/       what the networks found; kept, so that an interrupted run does not train them again

--quick runs in seconds to a minute and its figures are rough."""
EXAMPLE = "difftumor evaluate-generator --generator dm_fold0/generator -d 901 -f 0 --output evaluation"

_ROW = "{:24s}{:>9s}{:>8s}{:>8s}{:>10s}{:>10s}{:>10s}{:>10s}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    several = "generator folder, or builtin:NAME; of several, the first belongs to fold 0 of --splits, and so on"
    add("--generator", required=True, nargs="+", metavar="DIR", help=several)
    target = "what requested contrasts are drawn from (default: the training tumours, of whose kind the real ones are)"
    add("--target", choices=TARGETS, default=TRAINING, help=target)
    add_raw_dataset(parser, "nnU-Net data set")
    add_label_names(parser, organ=True)
    fold = "evaluate the validation cases of this fold (of a single generator)"
    add("-f", "--fold", type=int, metavar="K", help=fold)
    add("--splits", type=Path, metavar="FILE", help=SPLITS)
    pattern = "regular expression that finds the patient in identifiers (default: as difftumor splits recorded it)"
    add("--group-pattern", metavar="REGEX", help=pattern)
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    add("--steps", type=int, default=4, metavar="T", help="denoising steps (default 4)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the generated tumours")
    add("--most-tumors", type=int, metavar="N", help="most tumours of a case that are compared (default 12)")
    add("--transplants", type=int, metavar="N", help="transplants per case and radius (default 2)")
    other_organ = "a scan, its label map and the label of an organ that the generator never saw; may be repeated"
    add("--other-organ", nargs=3, action="append", default=[], metavar=("CT", "LABEL", "ORGAN_LABEL"), help=other_organ)
    training_range = "also take the tumours of all other cases of the data set into a second range of plausible means"
    add("--training-range", action="store_true", help=training_range)
    add("--classifier-steps", type=int, metavar="N", help="training steps per fold (default 200)")
    seeds = "trainings of each classifier, whose areas are averaged (default 3)"
    add("--classifier-seeds", type=int, metavar="N", help=seeds)
    add("--workers", type=int, default=1, metavar="N", help="processes that train classifiers (default 1)")
    add("--quick", action="store_true", help="fewer tumours and a few training steps, to try it")
    add("--overwrite", action="store_true", help="replace results in --output")


def run(options: argparse.Namespace) -> int:
    """Compare, print the headline figures."""
    from nnunet_difftumor.evaluation.realism.held_out import HeldOut
    from nnunet_difftumor.evaluation.realism.request import check_request

    settings, other_organs = _settings(options), _other_organs(options.other_organ)
    find_dataset(options, needs_splits=options.fold is not None or len(options.generator) > 1)
    asked: Any = {
        "labels": (options.organ_label, options.tumor_label),
        "held_out": HeldOut(options.splits, options.fold, _known(options)),
        "overwrite": options.overwrite,
    }
    check_request(options.generator, options.data[0], options.output, **asked)
    from nnunet_difftumor.evaluation.realism.generator import evaluate_generator  # what measures takes seconds

    summary = evaluate_generator(
        options.generator,
        options.data[0],
        options.output,
        settings,
        target=options.target,
        other_organs=other_organs,
        workers=options.workers,
        **asked,
    )
    _print_summary(summary)
    print(f"Look at {options.output / 'report.html'}.")
    return 0


def _known(options: argparse.Namespace) -> KnownCases:
    """Which cases are scans of one patient: by a pattern, or as `difftumor splits` recorded it beside the splits."""
    from nnunet_difftumor.cases.known_cases import KnownCases, patients_by_pattern, read_known_cases
    from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME
    from nnunet_difftumor.ct.datasets import load_raw_dataset

    if options.group_pattern:
        cases = [case.identifier for case in load_raw_dataset(options.data[0]).cases]
        return KnownCases(patients=patients_by_pattern(cases, options.group_pattern))
    return read_known_cases(options.splits.parent / HOLDOUT_FILE_NAME) if options.splits else KnownCases()


def _settings(options: argparse.Namespace) -> EvaluationSettings:
    from dataclasses import replace

    from nnunet_difftumor.errors import ConfigurationError
    from nnunet_difftumor.evaluation.realism.settings import EvaluationSettings, quick_settings

    for name in ("steps", "most_tumors", "transplants", "classifier_steps", "classifier_seeds", "workers"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ConfigurationError(f"--{name.replace('_', '-')} must be 1 or more, got {value}.")
    settings = (quick_settings if options.quick else EvaluationSettings)(
        steps=options.steps, seed=options.seed, uses_training_range=options.training_range
    )
    if options.most_tumors is not None:
        settings = replace(settings, most_tumors=options.most_tumors)
    if options.transplants is not None:
        settings = replace(settings, places_per_radius=options.transplants)
    asked = {"steps": options.classifier_steps, "seeds": options.classifier_seeds}
    given = {name: value for name, value in asked.items() if value is not None}
    return replace(settings, classifier=replace(settings.classifier, **given))


def _other_organs(words: Sequence[Sequence[str]]) -> list[tuple[Case, int]]:
    from nnunet_difftumor.ct.datasets import Case
    from nnunet_difftumor.ct.reading import file_ending
    from nnunet_difftumor.errors import ConfigurationError

    organs = {}
    for image, label, value in words:
        if not value.isdigit():
            raise ConfigurationError(f"--other-organ needs CT LABEL ORGAN_LABEL with a number last, got {value!r}.")
        name = Path(image).name
        identifier = name.removesuffix(file_ending(Path(image)) or "").removesuffix("_0000").removesuffix("_ct")
        if (identifier, int(value)) in organs:
            raise ConfigurationError(
                f"--other-organ: two scans are named {identifier!r} (by their files), with the same organ label "
                f"{int(value)}; tables and pictures could not tell them apart. Rename one of the files."
            )
        organs[identifier, int(value)] = Case(identifier, Path(image), Path(label))
    return [(case, organ_label) for (_, organ_label), case in organs.items()]


def _print_summary(summary: Mapping[str, Any]) -> None:
    from nnunet_difftumor.evaluation.realism.report import HEADLINE
    from nnunet_difftumor.evaluation.realism.text import show

    for key, meaning, aim in HEADLINE:
        print(f"{meaning:84s}{show(summary[key]):>24s}  {aim}")
    groups = [("in place", "in_place", summary["methods"]), ("transplanted", "transplant", summary["methods"])]
    groups += [(f"in {name}", "transplant", other["methods"]) for name, other in summary["other_organ"].items()]
    for title, setting, methods in groups:
        print()
        print(_ROW.format(title[:23], "tumours", "mean", "sd", "W1", "low-pass", "hp/host", "contrast"))
        for name, tables in methods.items():
            table = tables[setting]
            if isinstance(table, str):
                print(f"{name:24s}    empty")
                continue
            keys = ("mean_hu", "sd_hu", "in_mask_w1_hu", "lowpass_sd_hu", "highpass_ratio", "contrast_hu")
            values = [show(table[key]["value"], 2 if key == "highpass_ratio" else 1) for key in keys]
            print(_ROW.format(name, str(table["tumors"]), *values))
    print()
    if summary["tumors_left_out"]:
        left_out = ", ".join(f"{count} of {case}" for case, count in summary["tumors_left_out"].items())
        print(f"Tumours that are not compared ({summary['most_tumors']} of a case at most are): {left_out}.")
    for verdict in summary["verdicts"]:
        print(verdict["sentence"])
    print(summary["worth"]["sentence"])
