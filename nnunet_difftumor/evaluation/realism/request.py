"""What of an evaluation can be refused before a scan or a network is read; what measures takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffusion.generator_folder import check_generator_folder
from nnunet_difftumor.ct.datasets import load_raw_dataset
from nnunet_difftumor.ct.label_roles import resolve_label_roles
from nnunet_difftumor.errors import OutputExistsError
from nnunet_difftumor.evaluation.realism.held_out import HeldOut
from nnunet_difftumor.synthesis.tissue.generator_names import resolve_generator

SUMMARY_FILE = "summary.json"


def check_request(
    generators: Sequence[str | Path],
    raw_dataset: Path,
    output: Path,
    *,
    labels: tuple[str | None, str | None],
    held_out: HeldOut,
    overwrite: bool,
) -> None:
    """Refuse arguments and files that `evaluate_generator` cannot work with, as far as they tell.

    Raises:
        DiffTumorError: If data set, labels or splits do not fit.
        GeneratorFolderError: If a generator's folder cannot be used.
        OutputExistsError: If the results exist and `overwrite` is False.
    """
    if (output / SUMMARY_FILE).exists() and not overwrite:
        raise OutputExistsError(f"{output / SUMMARY_FILE} exists; choose another --output, or add --overwrite.")
    dataset = load_raw_dataset(raw_dataset)
    resolve_label_roles(dataset.options["labels"], *labels)
    for folder in map(resolve_generator, generators):
        check_generator_folder(folder)
    held_out.folds(len(generators))
