"""The command `difftumor`: one subcommand a task, each in a module of a room of `nnunet_difftumor.commands`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from nnunet_difftumor import __version__
from nnunet_difftumor.own_packages import require_own_packages

ROOMS: dict[str, dict[str, str]] = {
    "data": {
        "phantom": "make a CT phantom data set to try everything on",
        "describe": "measure where the visible edge of annotated tumours lies against their labels",
        "splits": "write splits_final.json for tumour and healthy cases",
        "add-healthy": "prepare healthy cases of another data set to train with",
    },
    "training": {
        "train-autoencoder": "stage 1: learn latents of CT, no labels needed",
        "train-diffusion": "stage 2: learn tumours from annotated cases",
        "convert-weights": "make a generator of weights that DiffTumor's authors publish",
        "check": "look for what stands in the way of a training, before it starts",
        "small-plans": "stage 3 without a GPU: plans with a small network, for a first run",
        "ext-trainer": "stage 3: print the folder for nnUNet_extTrainer",
        "benchmark-overhead": "measure what synthetic tumours cost a training on your machine",
        "export-model": "rewrite a trained model so that stock nnU-Net predicts with it",
    },
    "synthesis": {
        "synthesize": "put tumours into a CT of your own and look at them",
    },
    "evaluation": {
        "evaluate-generator": "compare generated with real tumours on cases that it never saw",
        "score": "score predicted label maps: Dice, surfaces, tumours found, false alarms",
        "calibrate": "measure on healthy scans how certain a network must be of a tumour",
        "drop-uncertain": "predictions without the tumours that the network is not certain of",
        "compare": "compare models over hospitals: predict, score, test, report",
    },
    "study": {
        "experiment": "train the matched arms of a study, predict, compare",
        "demo": "run all stages on a small data set and write a report",
    },
}
"""Name and one-line help of every subcommand, by the room in `commands` that holds its module."""

COMMANDS: dict[str, str] = {name: summary for room in ROOMS.values() for name, summary in room.items()}

RESEARCH = ("phantom", "describe", "benchmark-overhead", "evaluate-generator", "experiment", "demo")
"""Commands that a daily use does not need, which `--help` lists last."""

_DESCRIPTION = """Train nnU-Net with synthetic tumours, placed in healthy CT while it trains.

Fold 0 of data set 7 in nnU-Net's format, which holds cases with annotated tumours and healthy ones:

  nnUNetv2_plan_and_preprocess -d 7 -c 3d_fullres
  difftumor splits -d 7
  difftumor train-autoencoder -d 7 -f 0 --preset base --output ae_fold0
  difftumor train-diffusion -d 7 -f 0 --preset base --autoencoder ae_fold0 --output dm_fold0
  echo '{"generator": "'$PWD'/dm_fold{fold}/generator"}' > $nnUNet_preprocessed/Dataset007_Pancreas/difftumor.json
  export nnUNet_extTrainer=$(difftumor ext-trainer)
  nnUNetv2_train 7 3d_fullres 0 -tr nnUNetTrainerDiffTumor

Each fold has a generator of its own: one that has seen a fold's validation cases is refused. Without a GPU take
--preset tiny, and plans of `difftumor small-plans -d 7`.

Research use only; not a medical device."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the command's name; those of the process by default.

    Returns:
        Exit status: 0 if it worked, 1 for a named error, 2 for wrong arguments, 130 if interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _build_parser(words)
    options = parser.parse_args(words)
    if options.command is None:
        parser.print_help()
        return 2
    try:
        if options.command != "check":  # which tells it among others
            require_own_packages()
        return int(options.run(options))
    except KeyboardInterrupt:
        print(f"\ndifftumor {options.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if options.traceback:
            raise
        print(f"difftumor {options.command}: {_describe(error)}", file=sys.stderr)
        return 1


def _describe(error: Exception) -> str:
    """Say what is wrong, and what to do about an error that is no named one."""
    if isinstance(error, ImportError | OSError | ValueError):  # DiffTumorError; OSError: no permission, no space
        return f"{type(error).__name__}: {error}"
    text = " ".join(str(error).split()) or "no details"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, not loaded here
        return f"not enough memory ({text}). Use smaller images or fewer workers, or a machine with more memory."
    return f"unexpected {type(error).__name__}: {text}. Add --traceback to see where, and report it with that."


def _build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Parser with every subcommand; only the one that is called is imported."""
    parser = argparse.ArgumentParser(
        prog="difftumor", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"difftumor {__version__}")
    subparsers = parser.add_subparsers(
        dest="command", metavar="COMMAND", title="commands", description=_list_commands()
    )
    called = next((word for word in words if not word.startswith("-")), None)
    for name in COMMANDS:
        if name == called:
            _add_called(subparsers, name)
        else:
            subparsers.add_parser(name, add_help=False)
    return parser


def _list_commands() -> str:
    width = max(map(len, COMMANDS))
    groups = {room: [name for name in commands if name not in RESEARCH] for room, commands in ROOMS.items()}
    groups["research, and to try it out"] = list(RESEARCH)
    lines = []
    for title, names in groups.items():
        lines += [f"{title}:", *(f"  {name:{width}}  {COMMANDS[name]}" for name in names)] if names else []
    return "\n".join(lines)


def _add_called(subparsers: argparse._SubParsersAction, name: str) -> None:
    room = next(room for room, commands in ROOMS.items() if name in commands)
    module = importlib.import_module(f"nnunet_difftumor.commands.{room}.{name.replace('-', '_')}")
    subparser = subparsers.add_parser(
        name,
        description=module.DESCRIPTION,
        epilog=f"example:\n  {module.EXAMPLE.strip()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(subparser)
    subparser.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
    subparser.set_defaults(run=module.run)
