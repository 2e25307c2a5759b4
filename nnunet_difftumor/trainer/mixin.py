"""Synthetic tumours in healthy training cases, for any trainer of nnU-Net.

Nothing here is needed to predict: settings and generator are looked at when a training starts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from nnunet_difftumor.cases.extra.joining import ExtraCases, join_datasets
from nnunet_difftumor.cases.fold import FoldCases
from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.injection.data_loader import (
    REPORT_KEY,
    DiffTumorDataLoader,
    HostCases,
    SamplingPlan,
    sampling_probabilities,
)
from nnunet_difftumor.injection.sample_shares import describe_shares
from nnunet_difftumor.injection.sources import DIFFUSION, HEALTHY_ONLY, MISPLACED
from nnunet_difftumor.own_packages import require_own_packages
from nnunet_difftumor.settings.resolving import ResolvedConfig, resolve_config
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, find_sources
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig
from nnunet_difftumor.trainer import preparation
from nnunet_difftumor.trainer.output_record import read_recorded_config, refuse_other_split
from nnunet_difftumor.trainer.schedule import ScheduleMixin
from nnunet_difftumor.trainer.short_errors import short_errors
from nnunet_difftumor.trainer.supported_plans import refuse_unsupported_plans

_PREVIEWED_SAMPLES = 200


class DiffTumorMixin(ScheduleMixin):
    """Gives a trainer of nnU-Net synthetic tumours in healthy training samples; everything else stays the trainer's.

    It goes before the trainer: `class MyTrainer(DiffTumorMixin, nnUNetTrainerDA5)`. Settings: see `DiffTumorConfig`;
    they come from the file named by nnUNet_difftumor, difftumor.json beside the plans, or dataset.json["difftumor"].
    Validation and prediction never see a synthetic tumour.

    Attributes:
        arm: What is put in: see `nnunet_difftumor.injection.sources`.
    """

    arm: ClassVar[str] = DIFFUSION
    _prepared: preparation.PreparedTraining | None = None
    _fold_cases: FoldCases | None = None
    _extra_healthy: tuple[ExtraCases, ...] = ()

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse trainers that this mixin cannot be combined with, when the class is written."""
        super().__init_subclass__(**options)
        later = cls.__mro__[cls.__mro__.index(DiffTumorMixin) + 1 :]
        if nnUNetTrainer not in later:
            raise TypeError(
                f"{cls.__name__} must name DiffTumorMixin before a trainer of nnU-Net: "
                f"class {cls.__name__}(DiffTumorMixin, nnUNetTrainer)."
            )
        owner = next(base for base in later if "get_dataloaders" in vars(base))
        if owner is not nnUNetTrainer:
            raise TypeError(
                f"{cls.__name__} cannot get synthetic tumours: {owner.__name__} makes its own data loaders "
                "(get_dataloaders), and the tumours are put in by this one's. Use a trainer that changes transforms, "
                "loss, network or schedule."
            )

    def on_train_start(self) -> None:
        """Check settings, cases and generator before anything else, then start as nnU-Net does."""
        with short_errors(self.plans_manager.dataset_name, self.fold):
            self._prepare_training()
            super().on_train_start()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return training and validation cases: healthy cases train in every fold, the holdout in none."""
        if self._fold_cases is None:
            output_folder = Path(str(self.output_folder))
            config = read_recorded_config(output_folder) or self._resolve_config().config
            self._fold_cases, self._extra_healthy = preparation.choose_training_cases(self, config)
            refuse_other_split(output_folder, self._fold_cases)
        split = self._fold_cases.split
        return list(split.train), list(split.val)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Open the cases as nnU-Net does, and join those of the extra healthy data sets to the training cases."""
        train, val = super().get_tr_and_val_datasets()
        return join_datasets(train, self._extra_healthy), val

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Make the loaders as nnU-Net does (an explicit copy, see `notices`), with ours for training."""
        prepared = self._prepare_training()
        configuration: Any = self.configuration_manager
        scales = self._get_deep_supervision_scales()
        rotation, in_plane_only, crop_size, mirror_axes = (
            self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        labels: dict[str, Any] = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        tr_transforms = self.get_training_transforms(
            configuration.patch_size,
            rotation,
            scales,
            mirror_axes,
            in_plane_only,
            use_mask_for_norm=configuration.use_mask_for_norm,
            **labels,
        )
        val_transforms = self.get_validation_transforms(scales, **labels)
        dataset_tr, dataset_val = self.get_tr_and_val_datasets()
        dl_tr = self._make_training_loader(dataset_tr, crop_size, tr_transforms)
        if self.local_rank == 0 and prepared.config.injects:
            for line in describe_shares(dl_tr.preview(_PREVIEWED_SAMPLES)):
                self.print_to_log_file(f"Expected before augmentation. {line}")
        dl_val = nnUNetDataLoader(
            dataset_val,
            self.batch_size,
            configuration.patch_size,
            configuration.patch_size,
            self.label_manager,
            oversample_foreground_percent=self.oversample_foreground_percent,
            transforms=val_transforms,
            probabilistic_oversampling=self.probabilistic_oversampling,
        )
        return self._start_workers(dl_tr, dl_val)

    def on_train_epoch_start(self) -> None:
        """Start counting synthetic tumours anew."""
        super().on_train_epoch_start()
        self._prepare_training().log.clear()

    def train_step(self, batch: dict) -> dict:
        """Collect the loader's report, then train on the batch as nnU-Net does."""
        report = batch.pop(REPORT_KEY, None)
        if report is not None:
            self._prepare_training().log.add(report)
        return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the epoch as nnU-Net does, and log what was injected, summed over all ranks."""
        super().on_train_epoch_end(train_outputs)
        self._log_injections()

    def _log_injections(self) -> None:
        log = self._prepare_training().log
        reports = self._of_all_ranks(log.collected)
        log.clear()
        for report in reports:
            log.add(report)
        if self.local_rank == 0:
            for line in log.write_epoch(self.current_epoch):
                self.print_to_log_file(line)

    def _prepare_training(self) -> preparation.PreparedTraining:
        """Settle settings, cases and generator, once; every refusal happens here."""
        if self._prepared is None:
            require_own_packages()
            refuse_unsupported_plans(self.configuration_name, self.configuration_manager, self.dataset_json)
            self._prepared = preparation.prepare_training(self, self._resolve_config(), self.arm)
            self._fold_cases, self._extra_healthy = self._prepared.cases, self._prepared.extra_healthy
        return self._prepared

    def _resolve_config(self) -> ResolvedConfig:
        """Settings from wherever the user gave them."""
        given, folder = os.environ.get(ENVIRONMENT_VARIABLE), preparation.preprocessed_folder(self)
        return resolve_config(self.dataset_json["labels"], find_sources(given, folder, self.dataset_json))

    def _schedule_settings(self) -> DiffTumorConfig | None:
        """Settings of the training; of a validation without the data set, those on record, if any."""
        try:
            return self._resolve_config().config
        except DiffTumorError:
            return read_recorded_config(Path(str(self.output_folder)))

    def _make_training_loader(self, dataset: Any, crop_size: Any, transforms: Any) -> DiffTumorDataLoader:
        prepared = self._prepare_training()
        config, cases = prepared.config, prepared.cases
        healthy = {case: cases.groups.places[case] for case in cases.healthy_train}
        annotated = dict.fromkeys(cases.tumor_train, range(len(config.organ_targets)))
        return DiffTumorDataLoader(
            dataset,
            self.batch_size,
            crop_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            injectors=prepared.injectors,
            plan=SamplingPlan(
                healthy=HostCases(healthy, config.healthy_probability),
                annotated=HostCases(annotated, config.annotated_probability),
                seed_words=(config.seed, self.local_rank),
                first_sample=self.current_epoch * self.num_iterations_per_epoch * self.batch_size,
                target_weights=[target.probability for target in config.organ_targets],
                is_control=self.arm == HEALTHY_ONLY,
                is_misplaced=self.arm == MISPLACED,
                sham_probability=config.sham_probability if config.injects else 0.0,
            ),
            oversample_foreground_percent=self.oversample_foreground_percent,
            sampling_probabilities=sampling_probabilities(dataset.identifiers, set(healthy), config.healthy_share),
            transforms=transforms,
            probabilistic_oversampling=self.probabilistic_oversampling,
        )

    def _start_workers(self, dl_tr: nnUNetDataLoader, dl_val: nnUNetDataLoader) -> tuple[Any, Any]:
        """Run the loaders in background processes as nnU-Net does, and wait for a first batch of each."""
        processes = get_allowed_n_proc_DA()
        if processes == 0:
            train, val = SingleThreadedAugmenter(dl_tr, None), SingleThreadedAugmenter(dl_val, None)
        else:
            pin_memory = self.device.type == "cuda"
            train, val = (
                NonDetMultiThreadedAugmenter(loader, None, workers, cached, None, pin_memory, wait_time=0.002)
                for loader, workers, cached in (
                    (dl_tr, processes, max(6, processes // 2)),
                    (dl_val, max(1, processes // 2), max(3, processes // 4)),
                )
            )
        _ = next(train)
        _ = next(val)
        return train, val
