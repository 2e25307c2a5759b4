"""From an arm of a study to the trainer that nnU-Net is asked for."""

from __future__ import annotations

from typing import NamedTuple

from nnunet_difftumor.errors import ConfigurationError, unknown_key_message
from nnunet_difftumor.study.exposure import EQUAL
from nnunet_difftumor.study.plan import Arm, StudyPlan
from nnunet_difftumor.study.settings import BACKBONES
from nnunet_difftumor.trainer.discovery import find_trainer
from nnunet_difftumor.trainer.schedule import STOCK_SCHEDULE, ScheduleMixin

STOCK = "stock"
_CLASS_NAMES = {
    "healthy-only": "nnUNetTrainerHealthyOnly",
    "copy-paste": "nnUNetTrainerCopyPaste",
    "hand-crafted": "nnUNetTrainerHandcrafted",
    "difftumor": "nnUNetTrainerDiffTumor",
    "misplaced": "nnUNetTrainerMisplaced",
}
_ADVICE = (
    "Let its class begin with nnunet_difftumor.trainer.schedule.ScheduleMixin (class MyTrainer(ScheduleMixin, ...))"
)
_SUFFIXES: dict[str, str] = dict(zip(BACKBONES, ("", "UNet", "SwinUNETR"), strict=True))


class TrainerFacts(NamedTuple):
    """What a study must know of a trainer.

    Attributes:
        name: The class, for `nnUNetv2_train -tr`.
        tumors: What it puts in (see `injection.sources`); None: no trainer of this package's data loading.
    """

    name: str
    tumors: str | None


def trainer_of(arm: Arm, study: StudyPlan) -> TrainerFacts:
    """Find the trainer of an arm, as nnU-Net will.

    Raises:
        ConfigurationError: If nnU-Net cannot find it, or it cannot be matched with the other arms.
    """
    from nnunet_difftumor.trainer.mixin import DiffTumorMixin

    schedule = study.schedule.of_trainer(arm.epochs)
    is_steered = study.exposure == EQUAL or arm.length is not None  # lengths of its own, or samples to be counted
    name = _class_name(arm, study, has_own_schedule=schedule == STOCK_SCHEDULE and not is_steered)
    where = f"{study.path}, arm {arm.name!r}"
    try:
        found = find_trainer(name)
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{where}: nnU-Net finds no trainer {name}. Correct trainer, or export nnUNet_extTrainer with the "
            "folder of the trainer's file."
        ) from error
    tumors = found.arm if issubclass(found, DiffTumorMixin) else None
    takes_schedule = issubclass(found, (DiffTumorMixin, ScheduleMixin))
    if not takes_schedule and is_steered:
        raise ConfigurationError(
            f"{where}: {name} trains for epochs of its own and counts no samples, so exposure: equal and length: "
            f"longest cannot be had with it. {_ADVICE}."
        )
    if not takes_schedule and schedule != STOCK_SCHEDULE:
        raise ConfigurationError(
            f"{where}: {name} trains for epochs of its own and cannot be matched with {schedule['num_epochs']} epochs "
            f"of {schedule['num_iterations_per_epoch']} iterations. {_ADVICE}, or use nnU-Net's own schedule in all "
            "arms."
        )
    if tumors is None and arm.healthy is None:
        raise ConfigurationError(
            f"{where}: {name} trains on whatever its splits list. Say whether healthy cases are among it: healthy: "
            "true or healthy: false."
        )
    if tumors is not None and arm.healthy is False:
        raise ConfigurationError(
            f"{where}: {name} works on healthy cases; healthy: false goes with trainers that put nothing in, such as "
            "stock."
        )
    return TrainerFacts(name, tumors)


def _class_name(arm: Arm, study: StudyPlan, *, has_own_schedule: bool) -> str:
    """Name of an arm's trainer class; plain nnU-Net is itself only with its own schedule."""
    suffix = _SUFFIXES[arm.backbone]
    if arm.trainer == STOCK:
        return f"nnUNetTrainer{suffix}" if suffix or has_own_schedule else "nnUNetTrainerScheduled"
    if arm.trainer in _CLASS_NAMES:
        return _CLASS_NAMES[arm.trainer] + suffix
    known = (STOCK, *_CLASS_NAMES)
    if not arm.trainer.isidentifier():
        message = unknown_key_message(arm.trainer, known, f"trainer of arm {arm.name!r} of {study.path}")
        raise ConfigurationError(f"{message} Or write the class name of a trainer.")
    if suffix:
        raise ConfigurationError(
            f"{study.path}, arm {arm.name!r}: backbone goes with the short names {', '.join(known)}; {arm.trainer} has "
            "a network of its own. Remove backbone."
        )
    return arm.trainer
