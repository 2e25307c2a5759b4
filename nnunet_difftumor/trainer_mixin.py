"""Synthetic tumours in healthy training cases, for any trainer of nnU-Net.

Nothing here is needed to predict: settings and generator are looked at when a training starts.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed as dist

from nnunet_difftumor.builtin import is_builtin
from nnunet_difftumor.collision import require_own_packages
from nnunet_difftumor.config import ENVIRONMENT_VARIABLE, DiffTumorConfig, ResolvedConfig, find_sources, resolve_config
from nnunet_difftumor.data_loader import REPORT_KEY, DiffTumorDataLoader
from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.extra_cases import (
    ExtraCases,
    add_extra_cases,
    join_datasets,
    open_extra_healthy,
    refuse_copies,
)
from nnunet_difftumor.extra_healthy import TargetDataset
from nnunet_difftumor.generators import require_in_window
from nnunet_difftumor.injection import GeneratorFolderSource, TumorInjector, make_rules
from nnunet_difftumor.injection_log import InjectionLog
from nnunet_difftumor.intensities import CTIntensities
from nnunet_difftumor.label_roles import LabelRoles
from nnunet_difftumor.output_record import (
    find_output_conflicts,
    find_split_conflicts,
    hash_generator,
    read_recorded_config,
    refuse_conflicts,
    write_output_record,
)
from nnunet_difftumor.supported_plans import refuse_unsupported_plans
from nnunet_difftumor.training_setup import (
    FoldCases,
    LeakFindings,
    PreprocessedCases,
    check_leaks,
    choose_cases,
    find_raw_images,
)

if TYPE_CHECKING:
    _Trainer = nnUNetTrainer
else:
    _Trainer = object


class DiffTumorMixin(_Trainer):
    """Gives a trainer of nnU-Net synthetic tumours in healthy training samples; everything else stays the trainer's.

    It goes before the trainer: `class MyTrainer(DiffTumorMixin, nnUNetTrainerDA5)`. Settings: see `DiffTumorConfig`;
    they come from the file named by nnUNet_difftumor, difftumor.json beside the plans, or dataset.json["difftumor"].
    Validation and prediction never see a synthetic tumour.
    """

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

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ) -> None:
        """Create the trainer as nnU-Net does; nothing of ours is read yet."""
        super().__init__(plans, configuration, fold, dataset_json, device)
        self._resolved: ResolvedConfig | None = None
        self._fold_cases: FoldCases | None = None
        self._extra_healthy: tuple[ExtraCases, ...] = ()
        self._injection_log: InjectionLog | None = None
        self._source: GeneratorFolderSource | None = None

    def initialize(self) -> None:
        """Apply the schedule from the settings, then initialise as nnU-Net does."""
        if not self.was_initialized:
            config = self._config_if_any()
            for key in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
                if config is not None and getattr(config, key) is not None:
                    setattr(self, key, getattr(config, key))
        super().initialize()

    def on_train_start(self) -> None:
        """Check settings, cases and generator before anything else, then start as nnU-Net does."""
        self._prepare_training()
        super().on_train_start()

    def do_split(self) -> tuple[list[str], list[str]]:
        """Return training and validation cases: healthy cases train in every fold, the holdout in none."""
        if self._fold_cases is None:
            config = read_recorded_config(self._output) or self._resolve_config().config
            self._fold_cases = self._choose_cases(config)
            refuse_conflicts(self._output, find_split_conflicts(self._output, self._fold_cases))
        split = self._fold_cases.split
        return list(split.train), list(split.val)

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Open the cases as nnU-Net does, and join those of the extra healthy data sets to the training cases."""
        train, val = super().get_tr_and_val_datasets()
        return join_datasets(train, self._extra_healthy), val

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Make the loaders as nnU-Net 2.8 does (an explicit copy), with ours for training."""
        self._prepare_training()
        if self.dataset_class is None:
            self.dataset_class = infer_dataset_class(str(self.preprocessed_dataset_folder))
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
        dl_tr = self._make_training_loader(dataset_tr, crop_size, tr_transforms, in_plane_only)
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
        if self._injection_log is not None:
            self._injection_log.clear()

    def train_step(self, batch: dict) -> dict:
        """Collect the loader's report, then train on the batch as nnU-Net does."""
        report = batch.pop(REPORT_KEY, None)
        if report is not None and self._injection_log is not None:
            self._injection_log.add(report)
        return super().train_step(batch)

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """End the epoch as nnU-Net does, and log what was injected, summed over all ranks."""
        super().on_train_epoch_end(train_outputs)
        self._log_injections()

    def _log_injections(self) -> None:
        """Sum the epoch's reports over all ranks and write them."""
        log = self._injection_log
        if log is None:
            return
        if self.is_ddp:
            reports: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(reports, log.collected())
            log.clear()
            for report in reports:
                log.add(report)
        if self.local_rank == 0:
            self.print_to_log_file(log.write_epoch(self.current_epoch))

    def _start_workers(self, dl_tr: nnUNetDataLoader, dl_val: nnUNetDataLoader) -> tuple[Any, Any]:
        """Run the loaders in background processes as nnU-Net does, and wait for a first batch of each."""
        processes = get_allowed_n_proc_DA()
        if processes == 0:
            train, val = SingleThreadedAugmenter(dl_tr, None), SingleThreadedAugmenter(dl_val, None)
        else:
            shared: dict[str, Any] = {
                "transform": None,
                "seeds": None,
                "pin_memory": self.device.type == "cuda",
                "wait_time": 0.002,
            }
            train = NonDetMultiThreadedAugmenter(
                data_loader=dl_tr, num_processes=processes, num_cached=max(6, processes // 2), **shared
            )
            val = NonDetMultiThreadedAugmenter(
                data_loader=dl_val,
                num_processes=max(1, processes // 2),
                num_cached=max(3, processes // 4),
                **shared,
            )
        _ = next(train)
        _ = next(val)
        return train, val

    @property
    def _output(self) -> Path:
        return _required(self.output_folder, "nnUNet_results")

    @property
    def _preprocessed(self) -> Path:
        return _required(self.preprocessed_dataset_folder_base, "nnUNet_preprocessed")

    def _prepare_training(self) -> None:
        """Settle settings, cases and generator, once; every refusal happens here."""
        if self._resolved is not None:
            return
        require_own_packages()
        refuse_unsupported_plans(self.configuration_name, self.configuration_manager, self.dataset_json)
        resolved = self._resolve_config()
        output_folder = self._output
        cases = self._choose_cases(resolved.config)
        copies = refuse_copies(self._extra_healthy, self._data_folder, cases, self.fold)
        generator_hash, findings = None, LeakFindings((), ())
        if resolved.config.injection_probability > 0:
            _require_healthy(cases)
            folder = resolved.generator_folder(self.fold)
            findings = check_leaks(folder, self._preprocessed_cases(), cases, resolved.config, self.fold)
            if is_builtin(str(resolved.config.generator)):
                findings = replace(findings, notes=(*findings.notes, _describe_builtin(resolved)))
            self._source = GeneratorFolderSource(folder, resolved.config.steps)
            synthesizer = self._source()  # loaded here, so that an unusable generator is told now, not in a worker
            foreground_hu = CTIntensities.from_plans(self.plans_manager.plans).mean_hu
            require_in_window(foreground_hu, synthesizer.tissue.window_hu, "The labelled tissue of this data set")
            replace(resolved.config.appearances, examples=synthesizer.tissue.appearances)  # so are unusable looks
            generator_hash = hash_generator(folder)
        is_continued = self.current_epoch > 0
        conflicts = find_output_conflicts(output_folder, resolved, cases, generator_hash, is_continued=is_continued)
        refuse_conflicts(output_folder, conflicts)
        if self.local_rank == 0:
            write_output_record(
                output_folder, resolved, cases, generator_hash, findings.acknowledged, findings.warnings
            )
            self._print_settings(resolved, (*cases.notes, *copies, *findings.notes))
        self._injection_log = InjectionLog(
            output_folder, resolved.config.recorded_samples, first_epoch=self.current_epoch
        )
        self._resolved, self._fold_cases = resolved, cases

    def _resolve_config(self) -> ResolvedConfig:
        sources = find_sources(os.environ.get(ENVIRONMENT_VARIABLE), self._preprocessed, self.dataset_json)
        return resolve_config(self.dataset_json["labels"], sources)

    def _config_if_any(self) -> DiffTumorConfig | None:
        """Settings for the schedule; None where there are none, as for validation without the data set."""
        try:
            return self._resolve_config().config
        except DiffTumorError:
            return read_recorded_config(self._output)

    def _choose_cases(self, config: DiffTumorConfig) -> FoldCases:
        data, show_progress = self._preprocessed_cases(), self.local_rank == 0
        cases = choose_cases(data, config, self.fold, show_progress=show_progress)
        target = TargetDataset(
            name=self.plans_manager.dataset_name,
            folder=self._preprocessed,
            plans=self.plans_manager.plans,
            configuration=self.configuration_name,
            dataset_json=self.dataset_json,
            identifiers=data.identifiers,
        )
        roles = [LabelRoles.of_dataset(data.labels, config.organ_label, config.tumor_label)]
        self._extra_healthy = open_extra_healthy(
            config.extra_healthy_datasets, target, roles, show_progress=show_progress
        )
        return add_extra_cases(cases, self._extra_healthy)

    @property
    def _data_folder(self) -> Path:
        return _required(self.preprocessed_dataset_folder, "nnUNet_preprocessed")

    def _preprocessed_cases(self) -> PreprocessedCases:
        data_folder = str(self._data_folder)
        dataset_class = self.dataset_class or infer_dataset_class(data_folder)
        name = self.plans_manager.dataset_name
        return PreprocessedCases(
            folder=self._preprocessed,
            identifiers=tuple(sorted(dataset_class.get_identifiers(data_folder))),
            label_ending=self.dataset_json["file_ending"],
            images=find_raw_images(Path(str(nnUNet_raw)) / name) if nnUNet_raw.is_set() else {},
            labels=self.dataset_json["labels"],
        )

    def _make_training_loader(
        self, dataset: Any, crop_size: Any, transforms: Any, in_plane_only: bool
    ) -> DiffTumorDataLoader:
        if self._resolved is None or self._fold_cases is None:
            raise RuntimeError("_prepare_training must run before the loaders are made.")
        config = self._resolved.config
        patch_size = self.configuration_manager.patch_size
        rules = make_rules(config, self.plans_manager.plans, self.configuration_manager.spacing, patch_size)
        return DiffTumorDataLoader(
            dataset,
            self.batch_size,
            crop_size,
            patch_size,
            self.label_manager,
            injector=TumorInjector(self._source, rules),
            healthy_cases=self._fold_cases.healthy_train,
            injection_probability=config.injection_probability,
            in_plane_only=in_plane_only,
            seed_words=(config.seed, self.local_rank, self.current_epoch),
            oversample_foreground_percent=self.oversample_foreground_percent,
            transforms=transforms,
            probabilistic_oversampling=self.probabilistic_oversampling,
        )

    def _print_settings(self, resolved: ResolvedConfig, notes: tuple[str, ...]) -> None:
        self.print_to_log_file("Settings of the synthetic tumours:", add_timestamp=False)
        for key, value in resolved.config.to_json().items():
            self.print_to_log_file(f"  {key}: {value}  [{resolved.origins[key]}]", add_timestamp=False)
        for note in notes:
            self.print_to_log_file(note)


def _describe_builtin(resolved: ResolvedConfig) -> str:
    config, origins = resolved.config, resolved.origins
    return (
        f"Synthetic tumours come from {config.generator} [{origins['generator']}], which was trained on tumours of "
        f"other organs; their contrasts are drawn from '{config.target}' [{origins['target']}] unless contrast_hu is "
        'set. To use a generator of your own, set "generator": "DIR" in difftumor.json beside the plans.'
    )


def _require_healthy(cases: FoldCases) -> None:
    if not cases.healthy_train:
        raise ConfigurationError(
            f"No healthy case is among the {len(cases.split.train)} training cases, so there is nowhere to put "
            "synthetic tumours. Add cases with the organ and without tumour to the data set, or set "
            '"injection_probability": 0 to train without synthetic tumours.'
        )


def _required(folder: str | None, variable: str) -> Path:
    if folder is None:
        raise ConfigurationError(f"The environment variable {variable} is not set; nnU-Net needs it to train.")
    return Path(folder)
