"""What is to be scored, and the files of each case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_difftumor.ct.reading import images_among
from nnunet_difftumor.errors import DatasetError
from nnunet_difftumor.evaluation.scoring.case import OrganFilter
from nnunet_difftumor.evaluation.scoring.case_maps import CaseFiles
from nnunet_difftumor.evaluation.scoring.probabilities import find_probability_files
from nnunet_difftumor.evaluation.scoring.records import CaseError
from nnunet_difftumor.evaluation.scoring.rules import ScoringRules
from nnunet_difftumor.evaluation.scoring.scheme import LabelScheme


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """What to score.

    Attributes:
        reference: Folder of reference label maps, <case>.nii.gz or another image ending.
        prediction: Folder of predicted ones of the same names.
        labels: nnU-Net's dataset.json.
        probabilities: Folder of probabilities (see `probabilities.find_probability_files`), or None.
        tumor_labels: Names or values of the tumour labels; without any, all whose names say so.
        organ_label: Name or value of the organ; None infers it for each tumour label. Only the filter needs it.
        organ_filter: The scores are also taken without predicted tumours outside the organ; None does not.
        only_predicted: Score the cases that have a prediction, and list the others; else they are errors.
    """

    reference: Path
    prediction: Path
    labels: Path
    probabilities: Path | None = None
    tumor_labels: tuple[str, ...] = ()
    organ_label: str | None = None
    organ_filter: OrganFilter | None = None
    only_predicted: bool = False
    rules: ScoringRules = field(default_factory=ScoringRules)


@dataclass(frozen=True)
class ScoringPlan:
    """The cases of a request.

    Attributes:
        not_predicted: Cases that are left out because the request says so.
        without_reference: Predicted cases without a reference; they are among the errors.
    """

    cases: tuple[CaseFiles, ...]
    errors: tuple[CaseError, ...]
    not_predicted: tuple[str, ...]
    without_reference: tuple[str, ...]


def plan_scoring(request: ScoringRequest, scheme: LabelScheme) -> ScoringPlan:
    """Find the files of every case.

    Raises:
        DatasetError: If a folder holds no label map, or two for one case.
    """
    references = find_label_maps(request.reference, "--reference")
    predictions = find_label_maps(request.prediction, "--prediction")
    folder = request.probabilities
    is_one_folder = folder is not None and folder.resolve() == request.prediction.resolve()
    if is_one_folder:  # holds images of probabilities too, unless there is a reference of just that name
        named = {f"{case}_{label.name}" for case in predictions.keys() | references.keys() for label in scheme.tumors}
        predictions = {case: path for case, path in predictions.items() if case not in named - references.keys()}
    organ_folder = None if request.organ_filter is None else request.organ_filter.folder
    organ_masks = {} if organ_folder is None else find_label_maps(organ_folder, "--organ-filter")
    left_out = references.keys() - predictions.keys() if request.only_predicted else set()
    not_predicted = (
        f"prediction in {request.prediction}. Predict it, or score the predicted cases alone with --only-predicted"
    )
    cases, errors = [], []
    for case in sorted((references.keys() | predictions.keys()) - left_out):
        try:
            files = CaseFiles(
                case=case,
                reference=_file_of(case, references, f"reference in {request.reference}"),
                prediction=_file_of(case, predictions, not_predicted),
                probabilities={}
                if folder is None
                else find_probability_files(folder, case, scheme, is_prediction_folder=is_one_folder),
                organ_mask=organ_folder and _file_of(case, organ_masks, f"organ mask in {organ_folder}"),
            )
            cases.append(files)
        except DatasetError as error:
            errors.append(CaseError(case, type(error).__name__, str(error)))
    without_reference = sorted(predictions.keys() - references.keys())
    return ScoringPlan(tuple(cases), tuple(errors), tuple(sorted(left_out)), tuple(without_reference))


def find_label_maps(folder: Path, option: str = "") -> dict[str, Path]:
    """Find the label maps of a folder, subfolders left out.

    Args:
        option: What it was given as, for messages; "" for none.

    Returns:
        File by case identifier: the name without its ending.

    Raises:
        DatasetError: If there are none, or two of one case.
    """
    found: dict[str, Path] = {}
    for case, path in images_among(folder.glob("*")):
        if case in found:
            raise DatasetError(f"{folder} holds two label maps of {case}: {found[case].name} and {path.name}.")
        found[case] = path
    if not found:
        raise DatasetError(f"{option} {folder} holds no label map (<case>.nii.gz). Check the path.".lstrip())
    return found


def _file_of(case: str, files: Mapping[str, Path], what: str) -> Path:
    if case not in files:
        raise DatasetError(f"{case} has no {what}.")
    return files[case]
