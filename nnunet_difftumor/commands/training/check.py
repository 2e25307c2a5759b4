"""`difftumor check`: what stands in the way of a training, in one screen."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable, Iterator

from nnunet_difftumor.trainer.check.findings import FAULT, OK, WARNING, Finding, run_checks

DESCRIPTION = """Look for what stands in the way of a training, before it starts: one line a check, with what to do.

Without -d: this installation, nnU-Net's folders and variables, GPU, disk, memory, workers. With -d also the training
that nnU-Net's command would start: plans, preprocessed cases, settings, labels, healthy and annotated cases, fold,
generator, what the generator was trained on, output folder. Nothing is trained and no weights are loaded.

Exit status: 1 if there is a fault, else 0; warnings do not stop a training."""
EXAMPLE = "difftumor check -d 7 -f 0"

_DEFAULTS = {"-c": "3d_fullres", "-p": "nnUNetPlans", "-tr": "nnUNetTrainerDiffTumor"}
_MARKS = {OK: "✓", WARNING: "!", FAULT: "✗"}
_PLAIN_MARKS = {OK: "ok", WARNING: "! ", FAULT: "X "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("-d", "--dataset", metavar="ID", help="nnU-Net data set: number or full name")
    add("-f", "--fold", default="0", type=_fold, metavar="K", help="fold, a number or all (default 0)")
    for option, name in (("-c", "--configuration"), ("-p", "--plans"), ("-tr", "--trainer")):
        add(option, name, default=_DEFAULTS[option], metavar="NAME", help=f"default {_DEFAULTS[option]}")


def run(options: argparse.Namespace) -> int:
    """Make the checks and print what they find as they find it."""
    from nnunet_difftumor.trainer.check.environment import ENVIRONMENT_CHECKS, NEEDED_CHECKS

    found = dict(_show(run_checks(ENVIRONMENT_CHECKS, None)))
    following = _again(options, options.dataset or "ID")
    if options.dataset is not None and any(found[check.name].level == FAULT for check in NEEDED_CHECKS):
        print("The data set was not looked at.")
    elif options.dataset is not None:
        following = _check_training(options, found) or following
    faults, warnings = ([name for name, each in found.items() if each.level == level] for level in (FAULT, WARNING))
    if faults:
        again = "difftumor check" if options.dataset is None else following
        print(f"\nFaults: {', '.join(faults)}. Correct them, then: {again}")
        return 1
    if warnings:
        print(f"\nWarnings: {', '.join(warnings)}; a training can start all the same.")
    print(f"\nNext: {following}")
    return 0


def _check_training(options: argparse.Namespace, found: dict[str, Finding]) -> str:
    """Add what is found about the training, and return the command that starts it if there is no fault."""
    from nnunet_difftumor.trainer.check.planned import PlannedTraining
    from nnunet_difftumor.trainer.check.training import TRAINING_CHECKS

    training = PlannedTraining(options.dataset, options.configuration, options.plans, options.fold, options.trainer)
    findings = run_checks(TRAINING_CHECKS, training)
    found.update(_show((name, each.about(options.dataset, options.fold)) for name, each in findings))
    if any(each.level == FAULT for each in found.values()):
        return ""
    return training.train_command(has_gpu=found["GPU"].level == OK)


def _again(options: argparse.Namespace, dataset: str) -> str:
    """The command that looks at the same training, or at that of another data set."""
    given = {"-f": str(options.fold), "-c": options.configuration, "-p": options.plans, "-tr": options.trainer}
    words = [word for option, value in given.items() if value != _DEFAULTS.get(option) for word in (option, value)]
    return shlex.join(["difftumor", "check", "-d", dataset, *words])


def _show(findings: Iterable[tuple[str, Finding]]) -> Iterator[tuple[str, Finding]]:
    marks = _MARKS if _can_print("".join(_MARKS.values())) else _PLAIN_MARKS
    for name, finding in findings:
        print(f"{marks[finding.level]} {name}: {finding.text}", flush=True)
        yield name, finding


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _fold(text: str) -> int | str:
    if text == "all":
        return text
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no fold; give a number such as 0, or all")
    return int(text)
