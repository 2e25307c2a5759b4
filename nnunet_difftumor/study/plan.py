"""A study: which arms are trained on which cases, read from one YAML file."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.evaluation.comparison.inputs.plan import SharedSettings, check_names
from nnunet_difftumor.evaluation.comparison.measures import AUROC
from nnunet_difftumor.settings.sources import with_full_paths
from nnunet_difftumor.study.exposure import EQUAL
from nnunet_difftumor.study.settings import ALL_ANNOTATED, STUDY_GENERATOR, ArmSettings, StudySettings
from nnunet_difftumor.support.files.declared import check
from nnunet_difftumor.support.files.entries import read_yaml

Annotated = int | str
_AXES = ("backbone", "healthy_share", "injection_probability", "steps")


class Arm(ArmSettings):
    """One arm with one value of every setting; what it does not say is as the study says.

    Attributes:
        settings: All settings of the trainer, the study's among them, with full paths.
        epochs: Epochs of each run, before equal exposure or the longest other run stretch them.
        wall_clock_factor: By how much `epochs` was multiplied to take the time of another arm; None: equal epochs.
    """

    backbone: str = Field()
    annotated: tuple[Annotated, ...] = Field()
    epochs: int


class StudyPlan(StudySettings):
    """What is trained and compared, with all defaults filled in.

    Attributes:
        path: The file that it was read from.
        annotated: All numbers of annotated cases of the arms, rising, "all" last.
        arms: One for each combination of the keys that hold a list, and for equal epochs and equal wall-clock time.
    """

    path: Path
    title: str = Field()
    baseline: str = Field()
    arms: tuple[Arm, ...]


def read_study(path: Path) -> StudyPlan:
    """Read a study and check it, as far as that goes without the data set and nnU-Net.

    Raises:
        ConfigurationError: If the file cannot be read, or a key or value in it is wrong.
    """
    written = check(read_yaml(path, "study"), StudySettings, path, "the study", folder=path.resolve().parent)
    arms = tuple(arm for number in range(len(written.arms)) for arm in _read_arms(written, number, path))
    if not arms:
        raise ConfigurationError(f"{path}: arms must list at least one, got []; see `difftumor experiment --help`.")
    names = [arm.name for arm in arms]
    check_names("arms", names, path)
    baseline = written.baseline or names[0]
    if baseline not in names:
        raise ConfigurationError(f"{path}: baseline must be one of the arms {', '.join(names)}, got {baseline!r}.")
    _check_use_of_generators(path, arms, has_generators=written.generators is not None)
    _check_comparison(written.compare, path)
    counts = {count for arm in arms for count in arm.annotated}
    filled: dict[str, Any] = {
        "path": path,
        "title": written.title or path.stem,
        "annotated": tuple(sorted(counts, key=lambda count: (count == ALL_ANNOTATED, count))),
        "arms": arms,
        "baseline": baseline,
    }
    return StudyPlan.model_construct(**{**dict(written), **filled})


def _read_arms(study: StudySettings, number: int, path: Path) -> Iterator[Arm]:
    entry = study.arms[number]
    _check_length(entry, study.exposure, f"{path}, arms[{number}]")
    written = {key: getattr(entry, key) for key in _AXES}
    lists = [value if isinstance(value, tuple) else (value,) for value in written.values()]
    for values in itertools.product(*lists):
        point = dict(zip(_AXES, values, strict=True))
        varied = [f"{key} {value}" for key, value in point.items() if isinstance(written[key], tuple)]
        of_trainer = {key: point[key] for key in _AXES if key != "backbone"} | {"generator": entry.generator}
        settings = {**study.settings, **entry.settings}
        settings |= {key: value for key, value in of_trainer.items() if value is not None}
        filled: dict[str, Any] = {
            **point,
            "name": ", ".join([entry.name, *varied]),
            "annotated": entry.annotated or study.annotated,
            "settings": with_full_paths(settings, path.resolve().parent, str(path), [STUDY_GENERATOR]),
            "epochs": study.schedule.epochs,
            "seconds_per_epoch": entry.seconds_per_epoch or study.seconds_per_epoch,
            "wall_clock_factor": None,
        }
        arm = Arm.model_construct(**{**dict(entry), **filled})
        yield arm
        factor = entry.wall_clock_factor
        if factor is not None:  # once more, for equal wall-clock time in place of equal epochs
            name = f"{arm.name} (wall-clock control, epochs x {factor:g})"
            epochs = max(1, round(arm.epochs * factor))
            yield arm.model_copy(update={"name": name, "epochs": epochs, "wall_clock_factor": factor})


def _check_length(arm: ArmSettings, exposure: str, where: str) -> None:
    """Refuse an arm whose epochs would follow two rules."""
    factor = arm.wall_clock_factor
    if factor is None or (exposure != EQUAL and arm.length is None):
        return
    other = f"exposure: {EQUAL}" if arm.length is None else f"length: {arm.length}"
    raise ConfigurationError(
        f"{where}: wall_clock_factor {factor:g} and {other} both say how long the arm is trained. Remove one of them; "
        "for equal time beside an arm of another length, write a second study."
    )


def _check_use_of_generators(path: Path, arms: Sequence[Arm], *, has_generators: bool) -> None:
    users = [arm.name for arm in arms if STUDY_GENERATOR in _generators_of(arm.settings)]
    if users and not has_generators:
        raise ConfigurationError(
            f"{path}: arm {users[0]!r} has generator: {STUDY_GENERATOR}, which the study is to train, but nothing says "
            "how. Write for example generators: {preset: base}, or name a generator folder."
        )
    if has_generators and not users:
        raise ConfigurationError(
            f"{path}: generators says how generators are trained, but no arm uses them. Write generator: "
            f"{STUDY_GENERATOR} in an arm, or remove generators."
        )


def _generators_of(settings: Mapping[str, Any]) -> list[Any]:
    return [entry.get("generator") for entry in (settings, *settings.get("targets", ()))]


def _check_comparison(compare: SharedSettings, path: Path) -> None:
    """Check what `difftumor compare` will be given before anything is trained, not after weeks of it."""
    has_hospitals = "hospitals" in compare.model_fields_set
    if has_hospitals:
        check_names("hospitals", [hospital.name for hospital in compare.hospitals], path)
    for hospital in compare.hospitals:
        if hospital.images is None or hospital.labels is None:
            raise ConfigurationError(f"{path}, compare: the hospital {hospital.name!r} needs images and labels.")
    if compare.primary == AUROC.key and not (has_hospitals and compare.prediction.probabilities):
        raise ConfigurationError(
            f"{path}, compare: primary is {AUROC.key}, which needs probabilities, and nnU-Net keeps none of its "
            "validation cases. Name test data in hospitals and write prediction: {probabilities: true}, or choose "
            "another primary."
        )
