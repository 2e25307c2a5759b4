"""An experiment: which models are compared in which hospitals, read from one YAML file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.comparison.measures import MEASURES
from nnunet_difftumor.support.files.entries import Entries, read_entries

HOSPITAL_PLACEHOLDER = "{hospital}"
_DEVICES = ("cuda", "cpu", "mps")


@dataclass(frozen=True, kw_only=True)
class Hospital:
    """Where the scans of one hospital lie.

    Attributes:
        name: Its name, for tables and file names.
        images: Folder of `<case>_0000` images; None where no model has to predict.
        labels: Folder of label maps; None where every model comes with scores.
    """

    name: str
    images: Path | None = None
    labels: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Model:
    """One model: a trained folder, predictions, or scores. Exactly one of the three is set.

    Attributes:
        name: Its name, for tables and file names.
        arm: What it is one training of; models of one arm are its seeds.
        seed: Number of the seed; None for the only model of an arm.
        trained: Folder of a trained nnU-Net model (`<trainer>__<plans>__<configuration>`).
        folds: Folds that predict together.
        checkpoint: Name of the checkpoint file.
        predictions: Folder of predictions, in which `{hospital}` stands for the hospital.
        scores: Output folder of `difftumor score`, in which `{hospital}` stands for the hospital.
    """

    name: str
    arm: str
    seed: int | None = None
    trained: Path | None = None
    folds: tuple[int | str, ...] = ()
    checkpoint: str = "checkpoint_final.pth"
    predictions: str | None = None
    scores: str | None = None

    def folder_of(self, hospital: Hospital) -> Path:
        """Folder of predictions or scores of a hospital; not for trained models."""
        return Path((self.predictions or self.scores or "").replace(HOSPITAL_PLACEHOLDER, hospital.name))


@dataclass(frozen=True, kw_only=True)
class PredictionSettings:
    """How trained models predict.

    Attributes:
        device: "cuda", "cpu" or "mps".
        mirroring: Average over mirrored scans, as nnU-Net does by default.
        step_size: Step of the sliding window as a share of the patch.
        processes: Processes that preprocess, that export, and that score.
        probabilities: Keep probabilities, so that AUROC can be measured; they are large.
        cpu_bfloat16: On a CPU, the network calculates in bfloat16.
    """

    device: str = "cuda"
    mirroring: bool = True
    step_size: float = 0.5
    processes: int = 3
    probabilities: bool = False
    cpu_bfloat16: bool = False


@dataclass(frozen=True, kw_only=True)
class StatisticsSettings:
    """How figures are computed.

    Attributes:
        seed: Seed of resampling and permutations.
        draws: Number of resamplings and of permutations.
        minimum_patients: A group of fewer patients gets no interval and no test.
        minimum_tumors: A size bin of fewer tumours gets none either.
        size_bins_mm: Diameters between the size bins, in mm.
        size_diameter: "equivalent" (sphere of the same volume) or "axial" (longest in an axial slice).
        age_bins: Ages between the age groups, in years.
    """

    seed: int = 0
    draws: int = 10_000
    minimum_patients: int = 10
    minimum_tumors: int = 10
    size_bins_mm: tuple[float, ...] = (10.0, 20.0, 50.0)
    size_diameter: str = "equivalent"
    age_bins: tuple[float, ...] = (50.0, 65.0)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is compared.

    Attributes:
        path: The file that it was read from.
        title: Heading of the report.
        baseline: Arm that the others are compared with.
        primary: Key of the measure that was chosen beforehand.
        labels: Tumour labels that count; None takes all that were scored.
        dataset_json: nnU-Net's dataset.json, which names the labels; None takes that of the model.
        metadata: CSV of cases, patients, hospitals, age, sex, phase, scanner.
        prediction: How trained models predict.
        statistics: How figures are computed.
        acknowledge_identifier_matches: Go on although cases are named like training cases of a model.
        notes: What a reader of the report should know.
    """

    path: Path
    title: str
    baseline: str
    primary: str
    labels: tuple[str, ...] | None
    dataset_json: Path | None
    metadata: Path | None
    hospitals: tuple[Hospital, ...]
    models: tuple[Model, ...]
    prediction: PredictionSettings = field(default_factory=PredictionSettings)
    statistics: StatisticsSettings = field(default_factory=StatisticsSettings)
    acknowledge_identifier_matches: bool = False
    notes: tuple[str, ...] = ()

    @property
    def arms(self) -> tuple[str, ...]:
        """Names of the arms: the baseline, then the others as written."""
        return (self.baseline, *(arm for arm in dict.fromkeys(m.arm for m in self.models) if arm != self.baseline))

    def models_of(self, arm: str) -> tuple[Model, ...]:
        """Models of one arm, by seed."""
        return tuple(sorted((m for m in self.models if m.arm == arm), key=lambda model: model.seed or 0))


def read_experiment(path: Path) -> Experiment:
    """Read an experiment and check it; nothing is predicted.

    Paths start from the file's folder; `~` and environment variables are replaced.

    Raises:
        ConfigurationError: If the file cannot be read, or a key or value in it is wrong.
    """
    path = Path(path)
    entries = read_entries(path)
    entries.refuse_unknown(_EXPERIMENT_KEYS)
    hospitals = tuple(read_hospital(entry) for entry in entries.list_of("hospitals"))
    models = tuple(_read_model(entry) for entry in entries.list_of("models"))
    check_names("hospitals", [hospital.name for hospital in hospitals], path)
    _check_seeds(models, path)
    check_names("models", [model.name for model in models], path)
    _check_sources(models, hospitals, path)
    arms = list(dict.fromkeys(model.arm for model in models))
    baseline = entries.text("baseline", arms[0])
    if baseline not in arms:
        raise ConfigurationError(f"{path}: baseline must be one of the arms {', '.join(arms)}, got {baseline!r}.")
    primary = entries.text("primary", "dice")
    if primary not in {measure.key for measure in MEASURES}:
        keys = ", ".join(measure.key for measure in MEASURES)
        raise ConfigurationError(f"{path}: primary must be one of {keys}, got {primary!r}.")
    return Experiment(
        path=path,
        title=entries.text("title", path.stem),
        baseline=baseline,
        primary=primary,
        labels=entries.texts("labels"),
        dataset_json=entries.existing("dataset_json", is_folder=False),
        metadata=entries.existing("metadata", is_folder=False),
        hospitals=hospitals,
        models=models,
        prediction=read_prediction(entries.mapping("prediction")),
        statistics=read_statistics(entries.mapping("statistics")),
        acknowledge_identifier_matches=entries.boolean("acknowledge_identifier_matches", False),
        notes=entries.texts("notes") or (),
    )


def file_name_of(name: str) -> str:
    """Turn the name of a hospital or model into one that every file system takes."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "_"


_EXPERIMENT_KEYS = (
    "title",
    "baseline",
    "primary",
    "labels",
    "dataset_json",
    "metadata",
    "hospitals",
    "models",
    "prediction",
    "statistics",
    "acknowledge_identifier_matches",
    "notes",
)
_MODEL_SOURCES = ("trained", "predictions", "scores")


def read_hospital(entries: Entries) -> Hospital:
    """Read one hospital; its folders must exist."""
    entries.refuse_unknown(("name", "images", "labels"))
    return Hospital(name=entries.text("name"), images=entries.existing("images"), labels=entries.existing("labels"))


def _read_model(entries: Entries) -> Model:
    entries.refuse_unknown(("name", "arm", "seed", *_MODEL_SOURCES, "folds", "checkpoint"))
    given = [key for key in _MODEL_SOURCES if entries.has(key)]
    if len(given) != 1:
        raise ConfigurationError(
            f"{entries.where} must have exactly one of {', '.join(_MODEL_SOURCES)}, got {', '.join(given) or 'none'}."
        )
    if given != ["trained"] and (entries.has("folds") or entries.has("checkpoint")):
        raise ConfigurationError(f"{entries.where}: folds and checkpoint go with trained, not with {given[0]}.")
    arm, seed = entries.text("arm"), entries.whole("seed", None, 0)
    trained, checkpoint = entries.existing("trained"), entries.text("checkpoint", "checkpoint_final.pth")
    return Model(
        name=entries.text("name", arm if seed is None else f"{arm} seed {seed}"),
        arm=arm,
        seed=seed,
        trained=trained,
        folds=_read_folds(entries, trained, checkpoint) if trained is not None else (),
        checkpoint=checkpoint,
        predictions=entries.template("predictions"),
        scores=entries.template("scores"),
    )


def _read_folds(entries: Entries, trained: Path, checkpoint: str) -> tuple[int | str, ...]:
    """Folds as written, or all with the checkpoint; each must have it."""
    found = {
        fold.name.removeprefix("fold_"): fold
        for fold in sorted(trained.glob("fold_*"))
        if (fold / checkpoint).is_file()
    }
    written = entries.get("folds")
    folds = [name for name in found if name != "all"] or list(found) if written is None else written
    if not isinstance(folds, list) or not folds:
        raise ConfigurationError(
            f"{entries.where}: no fold of {trained} has {checkpoint}, and folds must be a list like [0, 1], "
            f"got {written!r}. Correct trained or checkpoint."
        )
    for fold in folds:
        if str(fold) not in found:
            raise ConfigurationError(
                f"{entries.where}: {trained / f'fold_{fold}' / checkpoint} does not exist. "
                f"Folds with that checkpoint: {', '.join(found) or 'none'}. Correct folds or checkpoint."
            )
    return tuple("all" if str(fold) == "all" else int(fold) for fold in folds)


def read_prediction(entries: Entries) -> PredictionSettings:
    """Read how trained models predict."""
    defaults = PredictionSettings()
    entries.refuse_unknown(tuple(vars(defaults)))
    return PredictionSettings(
        device=entries.choice("device", defaults.device, _DEVICES),
        mirroring=entries.boolean("mirroring", defaults.mirroring),
        step_size=entries.number("step_size", defaults.step_size, 0.01, 1.0),
        processes=entries.whole("processes", defaults.processes, 1) or defaults.processes,
        probabilities=entries.boolean("probabilities", defaults.probabilities),
        cpu_bfloat16=entries.boolean("cpu_bfloat16", defaults.cpu_bfloat16),
    )


def read_statistics(entries: Entries) -> StatisticsSettings:
    """Read how figures are computed."""
    defaults = StatisticsSettings()
    entries.refuse_unknown(tuple(vars(defaults)))
    whole = {
        key: entries.whole(key, getattr(defaults, key), least)
        for key, least in (("seed", 0), ("draws", 1000), ("minimum_patients", 2), ("minimum_tumors", 1))
    }
    return StatisticsSettings(
        **{key: value for key, value in whole.items() if value is not None},
        size_bins_mm=entries.rising("size_bins_mm", defaults.size_bins_mm),
        size_diameter=entries.choice("size_diameter", defaults.size_diameter, ("equivalent", "axial")),
        age_bins=entries.rising("age_bins", defaults.age_bins),
    )


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


def _check_seeds(models: Sequence[Model], path: Path) -> None:
    for arm in dict.fromkeys(model.arm for model in models):
        seeds = [model.seed for model in models if model.arm == arm]
        if len(seeds) > 1 and (None in seeds or len(set(seeds)) < len(seeds)):
            raise ConfigurationError(
                f"{path}: the arm {arm!r} has {len(seeds)} models with the seeds {seeds}. Give each a seed of its own, "
                "or another arm."
            )


def _check_sources(models: Sequence[Model], hospitals: Sequence[Hospital], path: Path) -> None:
    for model in models:
        written = model.predictions or model.scores
        if written is not None and len(hospitals) > 1 and HOSPITAL_PLACEHOLDER not in written:
            raise ConfigurationError(
                f"{path}: {model.name!r} would take all {len(hospitals)} hospitals from {written}. Write "
                f"{HOSPITAL_PLACEHOLDER} where the path holds the hospital's name."
            )
    for hospital in hospitals:
        for model in models:
            if model.trained is not None and hospital.images is None:
                raise ConfigurationError(
                    f"{path}: the hospital {hospital.name!r} needs images, because {model.name!r} has to predict there."
                )
            if model.scores is None and hospital.labels is None:
                raise ConfigurationError(
                    f"{path}: the hospital {hospital.name!r} needs labels, because {model.name!r} comes without scores."
                )
            if model.trained is None and not model.folder_of(hospital).is_dir():
                raise ConfigurationError(
                    f"{path}: {model.folder_of(hospital)}, where {model.name!r} should have its "
                    f"{'predictions' if model.predictions else 'scores'} of {hospital.name!r}, is no folder. "
                    f"{HOSPITAL_PLACEHOLDER} in the path stands for the hospital's name."
                )
