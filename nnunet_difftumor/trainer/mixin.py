"""Synthetic tumours in healthy training cases, for any trainer of nnU-Net.

Nothing here is needed to predict: settings and generator are looked at when a training starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import distributed as dist

from diffusion.generator_folder import hash_generator
from nnunet_difftumor.cases.extra.joining import (
    ExtraCases,
    add_extra_cases,
    join_datasets,
    open_extra_healthy,
    refuse_copies,
)
from nnunet_difftumor.cases.extra.requirements import TargetDataset
from nnunet_difftumor.cases.fold import (
    FoldCases,
    LeakFindings,
    PreprocessedCases,
    check_leaks,
    choose_cases,
    find_raw_images,
    roles_of,
)
from nnunet_difftumor.cases.real_sizes import real_size_classes, real_tumor_counts
from nnunet_difftumor.ct.label_roles import is_exophytic_organ, name_of_label
from nnunet_difftumor.errors import ConfigurationError, DiffTumorError
from nnunet_difftumor.injection.data_loader import REPORT_KEY, DiffTumorDataLoader, sampling_probabilities
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.intensities import CTIntensities
from nnunet_difftumor.injection.log import InjectionLog
from nnunet_difftumor.injection.rules import InjectionRules, make_rules
from nnunet_difftumor.injection.sample_shares import describe_shares
from nnunet_difftumor.injection.sample_streams import HostCases, SamplingPlan
from nnunet_difftumor.injection.sources import (
    COPY_PASTE,
    DIFFUSION,
    HANDCRAFTED,
    HEALTHY_ONLY,
    MISPLACED,
    CopyPasteSource,
    GeneratorFolderSource,
    HandcraftedSource,
    LoadedOnce,
    SynthesizerSource,
)
from nnunet_difftumor.injection.target_reader import TargetReader
from nnunet_difftumor.own_packages import require_own_packages
from nnunet_difftumor.settings.resolving import ResolvedConfig, resolve_config
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, find_sources
from nnunet_difftumor.settings.trainer_settings import HANDCRAFTED as NO_GENERATOR
from nnunet_difftumor.settings.trainer_settings import DiffTumorConfig, OrganTarget
from nnunet_difftumor.synthesis.tissue.generator_names import is_builtin
from nnunet_difftumor.synthesis.tissue.interface import require_in_window
from nnunet_difftumor.trainer.copied_source import changed_source_notes
from nnunet_difftumor.trainer.cpu_training import CpuTrainingMixin
from nnunet_difftumor.trainer.loss_notice import batch_dice_notes
from nnunet_difftumor.trainer.output_record import (
    find_output_conflicts,
    find_split_conflicts,
    read_recorded_config,
    refuse_conflicts,
    write_output_record,
)
from nnunet_difftumor.trainer.schedule import set_schedule
from nnunet_difftumor.trainer.supported_plans import refuse_unsupported_plans

_PREVIEWED_SAMPLES = 200


class DiffTumorMixin(CpuTrainingMixin):
    """Gives a trainer of nnU-Net synthetic tumours in healthy training samples; everything else stays the trainer's.

    It goes before the trainer: `class MyTrainer(DiffTumorMixin, nnUNetTrainerDA5)`. Settings: see `DiffTumorConfig`;
    they come from the file named by nnUNet_difftumor, difftumor.json beside the plans, or dataset.json["difftumor"].
    Validation and prediction never see a synthetic tumour.

    Attributes:
        arm: What is put in: see `nnunet_difftumor.injection.sources`.
    """

    arm: ClassVar[str] = DIFFUSION

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
        self._sources: list[LoadedOnce | None] = []

    def initialize(self) -> None:
        """Apply the schedule from the settings, then initialise as nnU-Net does."""
        if not self.was_initialized:
            set_schedule(self, self._config_if_any())
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
        return self.with_extra_cases(train), val

    def with_extra_cases(self, train: Any) -> Any:
        """Join the cases of the extra healthy data sets to nnU-Net's data set of the training cases."""
        return join_datasets(train, self._extra_healthy)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Make the loaders as nnU-Net does (an explicit copy, see `copied_source`), with ours for training."""
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
        dl_tr = self._make_training_loader(dataset_tr, crop_size, tr_transforms)
        self._print_expected_shares(dl_tr)
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
            for line in log.write_epoch(self.current_epoch):
                self.print_to_log_file(line)

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
        targets = resolved.config.organ_targets
        for target in targets:
            TargetReader(self.label_manager, target.organ_label, target.tumor_label)  # refuses what cannot be learned
        self._sources = [None] * len(targets)
        if resolved.config.injects:
            _require_hosts(cases, resolved.config)
        if resolved.config.injects and self.arm != HEALTHY_ONLY:
            generator_hash, findings = self._prepare_sources(resolved, cases)
        is_continued = self.current_epoch > 0
        conflicts = find_output_conflicts(output_folder, resolved, cases, generator_hash, is_continued=is_continued)
        refuse_conflicts(output_folder, conflicts)
        if self.local_rank == 0:
            write_output_record(
                output_folder, resolved, cases, generator_hash, findings.acknowledged, findings.warnings
            )
            loss_notes = batch_dice_notes(
                plans_name=self.plans_manager.plans_name,
                configuration=self.configuration_name,
                is_batch_dice=self.configuration_manager.batch_dice,
                trains_on_healthy=bool(cases.healthy_train),
            )
            self._print_settings(
                resolved, (*changed_source_notes(), *cases.notes, *copies, *findings.notes, *loss_notes)
            )
        labels = self.dataset_json["labels"]
        self._injection_log = InjectionLog(
            output_folder,
            resolved.config.recorded_samples,
            first_epoch=self.current_epoch,
            target_names=[_name_of(labels, target) for target in targets],
        )
        self._resolved, self._fold_cases = resolved, cases

    def _prepare_sources(self, resolved: ResolvedConfig, cases: FoldCases) -> tuple[str, LeakFindings]:
        """Load what makes the tumours of each target, after its generator was compared with the validation cases.

        Returns:
            Hash of all generators, and what the leak guard found.
        """
        config = resolved.config
        folders = [resolved.generator_folder(self.fold, target) for target in config.organ_targets]
        findings: list[LeakFindings] = []
        notes: list[str] = []
        shared: dict[Any, LoadedOnce] = {}
        for number, (target, folder) in enumerate(zip(config.organ_targets, folders, strict=True)):
            found = check_leaks(folder, self._preprocessed_cases(), cases, config, self.fold, target=target)
            findings.append(found)
            notes += found.notes
            if is_builtin(str(target.generator)):
                notes.append(_describe_builtin(target, resolved))
            source = self._make_source(target, folder, cases, config.steps)
            loaded = shared.setdefault(source, LoadedOnce(source))
            synthesizer = loaded()  # so that what is unusable is told now, not in a worker
            foreground_hu = CTIntensities.from_plans(self.plans_manager.plans).mean_hu
            require_in_window(foreground_hu, synthesizer.tissue.window_hu, "The labelled tissue of this data set")
            replace(target.appearances, examples=synthesizer.tissue.appearances)  # so are unusable looks
            self._sources[number] = loaded
        hashes = [hash_generator(folder) for folder in dict.fromkeys(folders)]
        acknowledged, warnings = (
            tuple(dict.fromkeys(line for found in findings for line in getattr(found, kind)))
            for kind in ("acknowledged", "warnings")
        )
        return "+".join(hashes), LeakFindings(acknowledged, tuple(dict.fromkeys(notes)), warnings)

    def _make_source(self, target: OrganTarget, folder: Path, cases: FoldCases, steps: int) -> SynthesizerSource:
        """What makes the tumours of a target in this arm."""
        if self.arm == COPY_PASTE:
            data = self._preprocessed_cases()
            roles = roles_of(data.labels, target)
            depth, height, width = (float(value) for value in self.configuration_manager.spacing)
            return CopyPasteSource(
                generator_folder=folder,
                dataset_class=self.dataset_class or infer_dataset_class(str(self.preprocessed_dataset_folder)),
                data_folder=Path(str(self.preprocessed_dataset_folder)),
                cases=cases.tumor_train,
                organ_label=target.organ_label,
                tumor_labels=(roles.tumor, *roles.tumor_parts),
                spacing_mm=(depth, height, width),
                intensities=CTIntensities.from_plans(self.plans_manager.plans),
            )
        if self.arm == HANDCRAFTED or target.generator == NO_GENERATOR:
            return HandcraftedSource(folder)
        return GeneratorFolderSource(folder, steps)

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
        roles = [roles_of(data.labels, each) for each in config.organ_targets]
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

    def _make_training_loader(self, dataset: Any, crop_size: Any, transforms: Any) -> DiffTumorDataLoader:
        if self._resolved is None or self._fold_cases is None:
            raise RuntimeError("_prepare_training must run before the loaders are made.")
        config, cases = self._resolved.config, self._fold_cases
        targets = range(len(config.organ_targets))
        injectors = [
            TumorInjector(source, self._make_rules(target))
            for source, target in zip(self._sources, config.organ_targets, strict=True)
        ]
        return DiffTumorDataLoader(
            dataset,
            self.batch_size,
            crop_size,
            self.configuration_manager.patch_size,
            self.label_manager,
            injectors=injectors,
            plan=SamplingPlan(
                healthy=HostCases(
                    {case: cases.groups.places[case] for case in cases.healthy_train}, config.healthy_probability
                ),
                annotated=HostCases(dict.fromkeys(cases.tumor_train, targets), config.annotated_probability),
                seed_words=(config.seed, self.local_rank),
                first_sample=self.current_epoch * self.num_iterations_per_epoch * self.batch_size,
                target_weights=[target.probability for target in config.organ_targets],
                is_control=self.arm == HEALTHY_ONLY,
                is_misplaced=self.arm == MISPLACED,
            ),
            oversample_foreground_percent=self.oversample_foreground_percent,
            sampling_probabilities=sampling_probabilities(
                dataset.identifiers, set(cases.healthy_train), config.healthy_share
            ),
            transforms=transforms,
            probabilistic_oversampling=self.probabilistic_oversampling,
        )

    def _make_rules(self, target: OrganTarget) -> InjectionRules:
        data, cases = self._preprocessed_cases(), self._fold_cases
        if self._resolved is None or cases is None:
            raise RuntimeError("_prepare_training must run before the loaders are made.")
        config, roles = self._resolved.config, roles_of(data.labels, target)
        tumor_labels = (roles.tumor, *roles.tumor_parts)
        files, cache = [data.label_file(case) for case in cases.tumor_train], data.open_cache()
        size_classes = target.size_classes
        if isinstance(size_classes, str):
            size_classes = real_size_classes(files, tumor_labels, cache)
        if config.tumors_per_case is None:
            counts = real_tumor_counts(files, tumor_labels, cache)
        else:
            fewest, most = config.tumors_per_case
            counts = tuple(range(fewest, most + 1))
        others = [roles_of(data.labels, each) for each in config.organ_targets]
        return make_rules(
            target,
            size_classes,
            self.plans_manager.plans,
            self.configuration_manager.spacing,
            tumor_counts=counts,
            real_tumor_labels=sorted({value for each in others for value in (each.tumor, *each.tumor_parts)}),
            is_kidney=is_exophytic_organ(data.labels, target.organ_label),
        )

    def _print_expected_shares(self, loader: DiffTumorDataLoader) -> None:
        """Say before the first epoch what samples will show, by the labels of some that are drawn to be looked at."""
        if self.local_rank == 0 and self._resolved is not None and self._resolved.config.injects:
            for line in describe_shares(loader.preview(_PREVIEWED_SAMPLES)):
                self.print_to_log_file(f"Expected before augmentation. {line}")

    def _print_settings(self, resolved: ResolvedConfig, notes: tuple[str, ...]) -> None:
        self.print_to_log_file("Settings of the synthetic tumours:", add_timestamp=False)
        self.print_to_log_file(f"  tumours of this arm: {self.arm}", add_timestamp=False)
        for key, value in resolved.config.to_json().items():
            self.print_to_log_file(f"  {key}: {value}  [{resolved.origins[key]}]", add_timestamp=False)
        for note in notes:
            self.print_to_log_file(note)


def _describe_builtin(target: OrganTarget, resolved: ResolvedConfig) -> str:
    origins = resolved.origins
    return (
        f"Synthetic tumours come from {target.generator} [{origins['generator']}], which was trained on tumours of "
        f"other organs; their contrasts are drawn from '{target.target}' [{origins['target']}] unless contrast_hu is "
        'set. To use a generator of your own, set "generator": "DIR" in difftumor.json beside the plans.'
    )


def _name_of(labels: Mapping[str, Any], target: OrganTarget) -> str:
    """Name of a target in tables: its tumour's, with the organ's if that is not part of it."""
    organ, tumor = (name_of_label(labels, value) for value in (target.organ_label, target.tumor_label))
    return tumor if organ.lower() in tumor.lower() else f"{organ} {tumor}"


def _require_hosts(cases: FoldCases, config: DiffTumorConfig) -> None:
    if config.annotated_probability > 0 and not cases.tumor_train:
        raise ConfigurationError(
            f'inject_into is "{config.inject_into}", but no training case has an annotated tumour. Set "inject_into": '
            '"healthy".'
        )
    if config.healthy_probability > 0 and not cases.healthy_train:
        raise ConfigurationError(
            f"No healthy case is among the {len(cases.split.train)} training cases, so there is nowhere to put "
            "synthetic tumours. Add cases with the organ and without tumour to the data set, or use those of another "
            '(difftumor add-healthy -d ID --from OTHER), or put tumours into annotated cases ("inject_into": '
            '"annotated"), or set "injection_probability": 0 to train without synthetic tumours.'
        )


def _required(folder: str | None, variable: str) -> Path:
    if folder is None:
        raise ConfigurationError(f"The environment variable {variable} is not set; nnU-Net needs it to train.")
    return Path(folder)
