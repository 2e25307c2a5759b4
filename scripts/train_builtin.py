"""Make the generator that is shipped as builtin:soft-tissue-tiny again, from the CT in DIFFTUMOR_REAL_CT."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from nnunet_difftumor import cli
from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME, write_splits
from nnunet_difftumor.demo.soft_tissue import DATASET_NAME, make_real_dataset
from nnunet_difftumor.errors import DiffTumorError, OutputExistsError
from nnunet_difftumor.synthesis.tissue.generator_names import BUILTIN_NAMES, BUILTIN_ROOT

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "generator.md"
AUTOENCODER_STEPS = 1000
DIFFUSION_STEPS = 3500

DATA_NOTE = (
    "20 soft-tissue sarcomas of 32 to 116 mm and 6 tumour-free parts of the same scans (STS_001 to STS_029 of the "
    "collection Soft-tissue-Sarcoma: Vallieres et al. 2015, The Cancer Imaging Archive, doi "
    "10.7937/K9/TCIA.2015.7GO2GSKS, CC BY 3.0, by way of the IBSI data sets; changed: cropped around the tumour, soft "
    "tissue derived by a threshold). CT of PET/CT, 0.98 x 0.98 x 3.27 mm. No tumour of liver, pancreas or kidney, and "
    "none under 32 mm, was seen: small ones are made from large ones"
)


def build_builtin(source: Path, work: Path, *, autoencoder: str | None = None, replace: bool = False) -> Path:
    """Train both stages on the training cases of the soft-tissue CT (`sts/` in `source`) and install the generator.

    What is in the work folder is gone on with.

    Args:
        autoencoder: One to keep, as `difftumor train-diffusion --autoencoder` takes it; None trains one.

    Raises:
        OutputExistsError: If the package has one and `replace` is False.
        DiffTumorError: If a stage fails.
    """
    target = BUILTIN_ROOT / BUILTIN_NAMES[0]
    if target.exists() and not replace:
        raise OutputExistsError(f"{target} exists. Add --replace to put a new generator in its place.")
    dataset, splits = _data(source, work)
    split = ["--splits", str(splits), "-f", "0", "--preset", "tiny"]
    trained, diffusion = work / "autoencoder_training", work / "diffusion_training"
    if autoencoder is None:
        _command("train-autoencoder", ["-d", str(dataset), *split], trained, AUTOENCODER_STEPS)
    kept = autoencoder or str(trained)
    words = ["-d", str(dataset), "--autoencoder", kept, *split, "--data-note", DATA_NOTE]
    _command("train-diffusion", words, diffusion, DIFFUSION_STEPS)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(diffusion / "generator", target)
    add_measures(target / "README.md")
    return target


def add_measures(card: Path) -> None:
    """Write what the docs say of how well the generator does at the end of its model card."""
    section = re.search(r"## How well it does\n.*?(?=\n## )", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    if section is None:
        raise DiffTumorError(f"{PAGE} has no section 'How well it does'.")
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", section.group(0))  # links of the page lead nowhere from the card
    card.write_text(f"{card.read_text(encoding='utf-8').rstrip()}\n\n{text.rstrip()}\n", encoding="utf-8")


def _data(source: Path, work: Path) -> tuple[Path, Path]:
    dataset, splits = work / DATASET_NAME, work / SPLITS_FILE_NAME
    if not splits.is_file():
        shutil.rmtree(dataset, ignore_errors=True)  # unfinished
        made = make_real_dataset(source, work)
        holdout = {"holdout": [], "share": 0.0, "healthy_cases": len(made.healthy)}
        write_splits(work, made.folds, holdout, overwrite=True)
    return dataset, splits


def _command(name: str, words: list[str], output: Path, steps: int) -> None:
    resume = ["--c"] if output.exists() else []
    words = [name, *words, *resume, "--steps", str(steps), "--output", str(output)]
    print("$ difftumor " + " ".join(words), flush=True)
    if cli.main(words) != 0:
        raise DiffTumorError(f"`difftumor {name}` failed; the message above says why.")


def main() -> int:
    """Run the recipe."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} One to two hours on one CPU core. Run it again to go on after an interruption.",
        epilog="example: OMP_NUM_THREADS=1 python scripts/train_builtin.py --work builtin_work --replace",
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for data set and runs")
    keep = "keep this autoencoder (builtin:soft-tissue-tiny is that of the package) and train the second stage alone"
    parser.add_argument("--autoencoder", metavar="DIR", help=keep)
    parser.add_argument("--replace", action="store_true", help="put it in the place of the one in the package")
    options = parser.parse_args()
    source = os.environ.get("DIFFTUMOR_REAL_CT")
    if not source:
        print("Set DIFFTUMOR_REAL_CT to the folder that holds sts/.", file=sys.stderr)
        return 2
    try:
        made = build_builtin(Path(source), options.work, autoencoder=options.autoencoder, replace=options.replace)
        print(f"Wrote {made}.")
    except DiffTumorError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
