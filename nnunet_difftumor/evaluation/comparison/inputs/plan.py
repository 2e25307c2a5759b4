"""What is compared: which models in which hospitals, as declared for one YAML file."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.comparison.measures import DICE, MEASURES
from nnunet_difftumor.support.files.declared import (
    AtLeastOne,
    DeclaredInYaml,
    Expected,
    File,
    Folder,
    OneOf,
    PathTemplate,
    Rising,
    Text,
    ZeroOrMore,
    check,
)
from nnunet_difftumor.support.files.entries import read_yaml

HOSPITAL_PLACEHOLDER = "{hospital}"
DEVICES = ("cuda", "cpu", "mps")
_MODEL_SOURCES = ("trained", "predictions", "scores")


class Hospital(DeclaredInYaml):
    """Where the scans of one hospital lie."""

    name: Text
    """Its name, for tables and file names."""
    images: Folder | None = None
    """Folder of `<case>_0000` images; needed where a model has to predict."""
    labels: Folder | None = None
    """Folder of label maps; needed where a model does not come with scores."""


class Model(DeclaredInYaml):
    """One model: a trained folder, predictions, or scores. Exactly one of the three is set."""

    arm: Text
    """What it is one training of; models of one arm are its seeds."""
    name: Text = ""
    """Its name, for tables and file names; arm and seed without it."""
    seed: ZeroOrMore | None = None
    """Number of the seed; needed where an arm has several models."""
    trained: Folder | None = None
    """Folder of a trained nnU-Net model (`<trainer>__<plans>__<configuration>`)."""
    folds: Annotated[tuple[int | str, ...], Expected("a list like [0, 1]")] = ()
    """Folds that predict together; all with the checkpoint without it."""
    checkpoint: Text = "checkpoint_final.pth"
    """Name of the checkpoint file."""
    predictions: PathTemplate | None = None
    """Folder of predictions, in which `{hospital}` stands for the hospital's name."""
    scores: PathTemplate | None = None
    """Output folder of `difftumor score`, in which `{hospital}` stands for the hospital's name."""

    @model_validator(mode="after")
    def _require_one_source(self) -> Model:
        given = [key for key in _MODEL_SOURCES if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                f"it must have exactly one of {', '.join(_MODEL_SOURCES)}, got {', '.join(given) or 'none'}."
            )
        if given != ["trained"] and {"folds", "checkpoint"} & self.model_fields_set:
            raise ValueError(f"folds and checkpoint go with trained, not with {given[0]}.")
        return self

    def folder_of(self, hospital: Hospital) -> Path:
        """Folder of predictions or scores of a hospital; not for trained models."""
        return Path((self.predictions or self.scores or "").replace(HOSPITAL_PLACEHOLDER, hospital.name))


class PredictionSettings(DeclaredInYaml):
    """How trained models predict."""

    device: Annotated[str, OneOf(*DEVICES)] = "cuda"
    """What networks run on."""
    mirroring: bool = True
    """Average over mirrored scans, as nnU-Net does by default."""
    step_size: Annotated[float, Field(ge=0.01, le=1)] = 0.5
    """Step of the sliding window as a share of the patch."""
    processes: AtLeastOne = 3
    """Processes that preprocess, that export, and that score."""
    probabilities: bool = False
    """Keep probabilities, so that AUROC can be measured; they are large. Of `predictions`, use the `<case>.npz` beside
    the label maps.
    """
    cpu_bfloat16: bool = False
    """On a CPU with instructions for bfloat16, the network calculates in it: some seven times as fast with a small
    patch.
    """


class StatisticsSettings(DeclaredInYaml):
    """How figures are computed."""

    seed: ZeroOrMore = 0
    """Seed of resampling and permutations."""
    draws: Annotated[int, Field(ge=1000)] = 10_000
    """Number of resamplings and of permutations."""
    minimum_patients: Annotated[int, Field(ge=2)] = 10
    """A group of fewer patients is shown as too few, without interval and test."""
    minimum_tumors: AtLeastOne = 10
    """A size bin of fewer tumours is shown as too few."""
    size_bins_mm: Rising = (10.0, 20.0, 50.0)
    """Diameters between the size bins, in mm."""
    size_diameter: Annotated[str, OneOf("equivalent", "axial")] = "equivalent"
    """Of the sphere of the same volume, or the longest in an axial slice."""
    age_bins: Rising = (50.0, 65.0)
    """Ages between the age groups, in years."""


class SharedSettings(DeclaredInYaml):
    """What a comparison and the key `compare` of a study have in common."""

    hospitals: tuple[Hospital, ...] = ()
    """Where test scans lie."""
    primary: Annotated[str, OneOf(*(measure.key for measure in MEASURES))] = DICE.key
    """Measure that was chosen beforehand."""
    labels: Annotated[tuple[Text, ...], Field(min_length=1), Expected("a list like [tumor]")] | None = None
    """Tumour labels that count; all that were scored without it."""
    metadata: File | None = None
    """CSV with the columns case, patient, hospital, age, sex, phase, scanner; all but case may be missing."""
    prediction: PredictionSettings = PredictionSettings()
    """How trained models predict."""
    statistics: StatisticsSettings = StatisticsSettings()
    """How figures are computed."""
    acknowledge_identifier_matches: bool = False
    """Go on although cases are named like training cases of a model."""


class ComparisonSettings(SharedSettings):
    """The file of `difftumor compare`."""

    title: Text | None = None
    """Heading of the report; the file's name without it."""
    baseline: Text | None = None
    """Arm that the others are compared with; the first without it."""
    hospitals: tuple[Hospital, ...] = Field()
    """Where test scans lie."""
    models: tuple[Model, ...]
    """What is compared."""
    dataset_json: File | None = None
    """nnU-Net's dataset.json, which names the labels; that of the model without it."""
    notes: Annotated[tuple[Text, ...], Field(min_length=1), Expected("a list of texts")] = ()
    """What a reader of the report should know."""


class ComparisonPlan(ComparisonSettings):
    """What is compared, with all defaults filled in, and the file that it was read from."""

    path: Path
    title: str = Field()
    baseline: str = Field()

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms: the baseline, then the others as written."""
        return (self.baseline, *(arm for arm in dict.fromkeys(m.arm for m in self.models) if arm != self.baseline))

    def models_of(self, arm: str) -> tuple[Model, ...]:
        """Models of one arm, by seed."""
        return tuple(sorted((m for m in self.models if m.arm == arm), key=lambda model: model.seed or 0))


def read_experiment(path: Path) -> ComparisonPlan:
    """Read an experiment and check it; nothing is predicted.

    Paths start from the file's folder; `~` and environment variables are replaced.

    Raises:
        ConfigurationError: If the file cannot be read, or a key or value in it is wrong.
    """
    content, folder = read_yaml(path, "experiment"), path.resolve().parent
    written = check(content, ComparisonSettings, path, "the experiment", folder=folder)
    models = tuple(_completed(model, f"{path}, models[{number}]") for number, model in enumerate(written.models))
    check_names("hospitals", [hospital.name for hospital in written.hospitals], path)
    for problem in _problems(models, written.hospitals):
        raise ConfigurationError(f"{path}: {problem}")
    check_names("models", [model.name for model in models], path)
    arms = list(dict.fromkeys(model.arm for model in models))
    baseline = written.baseline or arms[0]
    if baseline not in arms:
        raise ConfigurationError(f"{path}: baseline must be one of the arms {', '.join(arms)}, got {baseline!r}.")
    filled = {"title": written.title or path.stem, "baseline": baseline, "models": models, "path": path}
    return ComparisonPlan.model_construct(**{**dict(written), **filled})


def _completed(model: Model, where: str) -> Model:
    """The model with its name, and the folds that predict: as written, or all with the checkpoint."""
    name = model.name or (model.arm if model.seed is None else f"{model.arm} seed {model.seed}")
    if model.trained is None:
        return model.model_copy(update={"name": name})
    places = sorted(model.trained.glob("fold_*"))
    found = [fold.name.removeprefix("fold_") for fold in places if (fold / model.checkpoint).is_file()]
    folds = model.folds if "folds" in model.model_fields_set else [fold for fold in found if fold != "all"] or found
    _refuse_missing_folds(model, folds, found, where)
    folds = tuple(fold if fold == "all" else int(fold) for fold in folds)
    return model.model_copy(update={"name": name, "folds": folds})


def _refuse_missing_folds(model: Model, folds: Sequence[int | str], found: Sequence[str], where: str) -> None:
    assert model.trained is not None
    if not folds:
        raise ConfigurationError(
            f"{where}: no fold of {model.trained} has {model.checkpoint}, and folds must be a list like [0, 1], "
            f"got {[] if 'folds' in model.model_fields_set else None}. Correct trained or checkpoint."
        )
    for fold in folds:
        if str(fold) not in found:
            raise ConfigurationError(
                f"{where}: {model.trained / f'fold_{fold}' / model.checkpoint} does not exist. "
                f"Folds with that checkpoint: {', '.join(found) or 'none'}. Correct folds or checkpoint."
            )


def file_name_of(name: str) -> str:
    """Turn the name of a hospital or model into one that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "_"


def check_names(key: str, names: Sequence[str], path: Path) -> None:
    """Raise if there is no name, or two name the same file."""
    if not names:
        raise ConfigurationError(f"{path}: {key} must list at least one; see `difftumor compare --help`.")
    files: dict[str, str] = {}
    for name in names:
        file = file_name_of(name).lower()
        if file in files:
            raise ConfigurationError(
                f"{path}: two {key} are named {files[file]!r} and {name!r}; they need different names"
                f"{' (name:) or seeds' if key == 'models' else ''}."
            )
        files[file] = name


def _problems(models: Sequence[Model], hospitals: Sequence[Hospital]) -> Iterator[str]:
    """What keeps models from being told apart, or from being scored in hospitals."""
    for arm in dict.fromkeys(model.arm for model in models):
        seeds = [model.seed for model in models if model.arm == arm]
        if len(seeds) > 1 and (None in seeds or len(set(seeds)) < len(seeds)):
            yield (
                f"the arm {arm!r} has {len(seeds)} models with the seeds {seeds}. Give each a seed of its own, or "
                "another arm."
            )
    for model in models:
        written = model.predictions or model.scores
        if written is not None and len(hospitals) > 1 and HOSPITAL_PLACEHOLDER not in written:
            yield (
                f"{model.name!r} would take all {len(hospitals)} hospitals from {written}. Write "
                f"{HOSPITAL_PLACEHOLDER} where the path holds the hospital's name."
            )
    for hospital, model in itertools.product(hospitals, models):
        yield from _lacks(hospital, model)


def _lacks(hospital: Hospital, model: Model) -> Iterator[str]:
    if model.trained is not None and hospital.images is None:
        yield f"the hospital {hospital.name!r} needs images, because {model.name!r} has to predict there."
    if model.scores is None and hospital.labels is None:
        yield f"the hospital {hospital.name!r} needs labels, because {model.name!r} comes without scores."
    if model.trained is None and not model.folder_of(hospital).is_dir():
        kind = "predictions" if model.predictions else "scores"
        yield (
            f"{model.folder_of(hospital)}, where {model.name!r} should have its {kind} of {hospital.name!r}, is no "
            f"folder. {HOSPITAL_PLACEHOLDER} in the path stands for the hospital's name."
        )
