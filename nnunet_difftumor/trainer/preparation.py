"""What is settled before a training with synthetic tumours: cases, generators, its record, the words of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tqdm import tqdm

from nnunet_difftumor.cases.extra.joining import ExtraCases, choose_all_cases, refuse_copies
from nnunet_difftumor.cases.extra.requirements import TargetDataset
from nnunet_difftumor.cases.fold import (
    FoldCases,
    LeakFindings,
    PreprocessedCases,
    check_leaks,
    open_preprocessed_cases,
    require_hosts,
    roles_of,
)
from nnunet_difftumor.cases.real_edges import real_edge_law
from nnunet_difftumor.cases.real_sizes import real_size_classes, real_tumor_counts
from nnunet_difftumor.ct.label_roles import is_exophytic_organ, name_of_label, tumor_values
from nnunet_difftumor.ct.reading import check_organ_files
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.injection.injector import TumorInjector
from nnunet_difftumor.injection.log import InjectionLog
from nnunet_difftumor.injection.rules import CTIntensities, InjectionRules
from nnunet_difftumor.injection.sample_shares import TargetReader
from nnunet_difftumor.injection.sources import (
    COPY_PASTE,
    HANDCRAFTED,
    HEALTHY_ONLY,
    CopyPasteSource,
    GeneratorFolderSource,
    HandcraftedSource,
    LoadedOnce,
    SynthesizerSource,
)
from nnunet_difftumor.settings.resolving import ResolvedConfig
from nnunet_difftumor.settings.trainer_settings import EDGE_OF_FOLD, DiffTumorConfig, OrganTarget, is_generator_name
from nnunet_difftumor.settings.trainer_settings import HANDCRAFTED as NO_GENERATOR
from nnunet_difftumor.support.files.fact_cache import stamp_of
from nnunet_difftumor.synthesis.placement import Zone
from nnunet_difftumor.synthesis.tissue.generator_names import is_builtin
from nnunet_difftumor.synthesis.tissue.interface import require_in_window
from nnunet_difftumor.trainer.notices import batch_dice_notes, changed_source_notes
from nnunet_difftumor.trainer.output_record import refuse_other_training, write_output_record
from nnunet_difftumor.tumor.edge import describe_law
from nnunet_difftumor.tumor.published_contrasts import edges_in_use

if TYPE_CHECKING:
    from diffusion.generator.info import EdgeStatistics

_FEWEST_EDGES = 4
_COST_OF_PUBLISHED = (
    "The generator is converted from published weights, which draw every tumour in 96 voxels a side: about 11 "
    "CPU-seconds a tumour. Where the epochs become longer, take more loader processes (nnUNet_n_proc_DA), or train a "
    "generator of your own, which takes 0.1 to 1.5."
)


@dataclass(frozen=True)
class PreparedTraining:
    """A training in which everything that could be refused was looked at.

    Attributes:
        cases: Cases of the fold, those of the extra healthy data sets among them.
        injectors: Put tumours into crops, one for each target.
        log: Collects what was injected and writes it into the output folder.
    """

    config: DiffTumorConfig
    cases: FoldCases
    extra_healthy: tuple[ExtraCases, ...]
    injectors: tuple[TumorInjector, ...]
    log: InjectionLog


def prepare_training(trainer: nnUNetTrainer, resolved: ResolvedConfig, arm: str) -> PreparedTraining:
    """Settle cases and generators of a training, then write its record and say in its log what it does.

    Args:
        arm: What is put in: see `nnunet_difftumor.injection.sources`.

    Raises:
        DiffTumorError: If settings, cases and generators do not fit, a generator knows validation cases, or the output
            folder holds another training. Nothing is recorded then.
    """
    from diffusion.generator_folder import hash_generator  # prediction imports this module too

    config, targets = resolved.config, resolved.config.organ_targets
    output_folder = Path(str(trainer.output_folder))
    cases, extra_healthy = choose_training_cases(trainer, config)
    copies = refuse_copies(extra_healthy, Path(str(trainer.preprocessed_dataset_folder)), cases)
    for target in targets:
        TargetReader(trainer.label_manager, target.organ_label, target.tumor_label)  # refuses what cannot be learned
    data = _preprocessed_cases(trainer)
    if config.injects:
        require_hosts(cases, config)
    is_filled = config.injects and arm != HEALTHY_ONLY
    folders = [resolved.generator_folder(trainer.fold, target) for target in targets] if is_filled else []
    findings = _check_generators(folders, data, cases, resolved, trainer.fold)
    rules = [_make_rules(trainer, target, config, data, cases) for target in targets]
    hosts = cases.healthy_train if config.annotated_probability == 0 else cases.split.train
    warnings = _check_organs(trainer, data, hosts, rules) if is_filled else []
    sources = _load_sources(trainer, arm, folders, cases, config, rules) if is_filled else [None] * len(targets)
    rules, edges = _settle_edges(rules, targets, sources)
    generator_hash = "+".join(hash_generator(folder) for folder in dict.fromkeys(folders)) or None
    is_continued = trainer.current_epoch > 0
    refuse_other_training(output_folder, resolved, cases, generator_hash, is_continued=is_continued)
    if trainer.local_rank == 0:
        write_output_record(output_folder, resolved, cases, generator_hash, findings)
        _print_settings(trainer, resolved, arm)
        notes = batch_dice_notes(trainer, trains_on_healthy=bool(cases.healthy_train))
        for note in (*changed_source_notes(), *cases.notes, *copies, *warnings, *findings.notes, *edges, *notes):
            trainer.print_to_log_file(note)
    log = InjectionLog(
        output_folder,
        config.recorded_samples,
        first_epoch=trainer.current_epoch,
        target_names=[_name_of(trainer.dataset_json["labels"], target) for target in targets],
    )
    injectors = tuple(map(TumorInjector, sources, rules))
    return PreparedTraining(config, cases, extra_healthy, injectors, log)


def choose_training_cases(trainer: nnUNetTrainer, config: DiffTumorConfig) -> tuple[FoldCases, tuple[ExtraCases, ...]]:
    """Return the cases of a trainer's fold with those of the extra healthy data sets, and the latter by data set."""
    data = _preprocessed_cases(trainer)
    target = TargetDataset(
        name=trainer.plans_manager.dataset_name,
        folder=data.folder,
        plans=trainer.plans_manager.plans,
        configuration=trainer.configuration_name,
        dataset_json=trainer.dataset_json,
        identifiers=data.identifiers,
    )
    return choose_all_cases(data, config, trainer.fold, target, show_progress=trainer.local_rank == 0)


def preprocessed_folder(trainer: nnUNetTrainer) -> Path:
    """Return the data set's folder in nnUNet_preprocessed.

    Raises:
        ConfigurationError: If nnUNet_preprocessed is not set.
    """
    if trainer.preprocessed_dataset_folder_base is None:
        raise ConfigurationError("The environment variable nnUNet_preprocessed is not set; nnU-Net needs it to train.")
    return Path(trainer.preprocessed_dataset_folder_base)


def _preprocessed_cases(trainer: nnUNetTrainer) -> PreprocessedCases:
    folder, data_folder = preprocessed_folder(trainer), str(trainer.preprocessed_dataset_folder)
    if trainer.dataset_class is None:  # as nnU-Net's own do_split
        trainer.dataset_class = infer_dataset_class(data_folder)
    return open_preprocessed_cases(folder, Path(data_folder), trainer.dataset_json)


def _check_generators(
    folders: Sequence[Path], data: PreprocessedCases, cases: FoldCases, resolved: ResolvedConfig, fold: int | str
) -> LeakFindings:
    """Compare the generators of the targets, if there are any, with the validation cases."""
    from diffusion.generator.folder_check import is_converted

    found = []
    for target, folder in zip(resolved.config.organ_targets, folders, strict=False):
        if target.knows_no_case:
            continue
        found.append(check_leaks(folder, data, cases, resolved.config, fold, target=target))
        if is_builtin(str(target.generator)):
            found.append(LeakFindings((), (_describe_builtin(target, resolved, folder),)))
        if is_converted(folder):
            found.append(LeakFindings((), (_COST_OF_PUBLISHED,)))
    return LeakFindings(
        acknowledged=tuple(dict.fromkeys(line for each in found for line in each.acknowledged)),
        notes=tuple(dict.fromkeys(line for each in found for line in each.notes)),
        warnings=tuple(dict.fromkeys(line for each in found for line in each.warnings)),
    )


def _check_organs(
    trainer: nnUNetTrainer, data: PreprocessedCases, hosts: Sequence[str], rules: Sequence[InjectionRules]
) -> list[str]:
    """Look for air in the organs that tumours are put into: in the raw CT, if 1% is at an end of nnU-Net's window."""
    dataset: Any = trainer.dataset_class and trainer.dataset_class(str(trainer.preprocessed_dataset_folder))
    low, high = rules[0].intensities.normalise(np.array([-np.inf, np.inf])) * (1.0 - 1e-4)
    organs, cache = tuple(sorted({rule.organ_label for rule in rules})), data.open_cache()

    def look_at(case: str) -> str:
        image, labels = (array[:] for array in dataset.load_case(case)[:2])
        inside = image[np.isin(labels, organs)]
        is_odd = ((inside <= low) | (inside >= high)).sum() > 0.01 * len(inside)
        return check_organ_files(data.images[case], data.label_file(case), organs) if is_odd else ""

    found = []
    for case in tqdm(sorted(data.images.keys() & hosts), "Looking at organs", leave=False, delay=3.0):
        fact = f"air in {organs} of {stamp_of(data.images[case])}"
        found.append(cache.get_or_compute(data.label_file(case), fact, partial(look_at, case)))
    cache.save()
    return [f"WARNING: {line}" for line in found if line]


def _load_sources(
    trainer: nnUNetTrainer,
    arm: str,
    folders: Sequence[Path],
    cases: FoldCases,
    config: DiffTumorConfig,
    rules: Sequence[InjectionRules],
) -> list[LoadedOnce]:
    """Load what makes the tumours of each target, so that what is unusable is told here and not in a worker."""
    shared: dict[SynthesizerSource, LoadedOnce] = {}
    sources = []
    for target, folder, rule in zip(config.organ_targets, folders, rules, strict=True):
        if arm == COPY_PASTE:
            source = CopyPasteSource(
                generator_folder=folder,
                dataset_class=trainer.dataset_class,
                data_folder=Path(str(trainer.preprocessed_dataset_folder)),
                cases=cases.tumor_train,
                tumor_labels=_tumor_labels(trainer.dataset_json["labels"], target),
                rules=rule,
            )
        elif arm == HANDCRAFTED or target.generator == NO_GENERATOR:
            source = HandcraftedSource(folder)
        else:
            source = GeneratorFolderSource(folder, config.steps)
        loaded = shared.setdefault(source, LoadedOnce(source))
        tissue = loaded().tissue
        require_in_window(rule.intensities.mean_hu, tissue.window_hu, "The labelled tissue of this data set")
        replace(rule.appearances, examples=tissue.appearances)  # refuses looks that cannot be drawn
        sources.append(loaded)
    return sources


def _tumor_labels(labels: Mapping[str, Any], target: OrganTarget) -> tuple[int, ...]:
    roles = roles_of(labels, target)
    return (roles.tumor, *roles.tumor_parts)


def _make_rules(
    trainer: nnUNetTrainer, target: OrganTarget, config: DiffTumorConfig, data: PreprocessedCases, cases: FoldCases
) -> InjectionRules:
    tumor_labels = _tumor_labels(data.labels, target)
    every_tumor = tumor_values(data.labels, {each.organ_label for each in config.organ_targets})
    files, cache = [data.label_file(case) for case in cases.tumor_train], data.open_cache()
    size_classes = target.size_classes
    if isinstance(size_classes, str):
        size_classes = real_size_classes(files, tumor_labels, cache)
    if config.tumors_per_case is None:
        counts = real_tumor_counts(files, tumor_labels, cache)
    else:
        fewest, most = config.tumors_per_case
        counts = tuple(range(fewest, most + 1))
    depth, height, width = (float(value) for value in trainer.configuration_manager.spacing)
    outside = target.outside_share or ("kidney" if is_exophytic_organ(data.labels, target.organ_label) else None)
    return InjectionRules(
        organ_label=target.organ_label,
        tumor_label=target.tumor_label,
        exophytic=target.exophytic,
        spacing_mm=(depth, height, width),
        intensities=CTIntensities.from_plans(trainer.plans_manager.plans),
        size_classes=tuple(size_classes),
        appearances=target.appearances,
        zone=Zone(
            surface_distance_mm=target.surface_distance_mm,
            avoid_distance_mm=target.avoid_distance_mm,
            outside_share=outside if target.exophytic else None,
        ),
        avoid_labels=target.avoid_labels,
        tumor_counts=counts or None,
        edges=_edges(target, data, cases),
        real_tumor_labels=tuple(
            sorted(every_tumor.union(*(_tumor_labels(data.labels, each) for each in config.organ_targets)))
        ),
    )


def _settle_edges(
    rules: Sequence[InjectionRules], targets: Sequence[OrganTarget], sources: Sequence[SynthesizerSource | None]
) -> tuple[list[InjectionRules], list[str]]:
    """Take the edges of a target's generator where no others were asked for, and none are better.

    Returns:
        The rules with them, and notes for the log.
    """
    settled, notes = [], []
    for rule, target, source in zip(rules, targets, sources, strict=True):
        whose = "given" if not isinstance(target.edge, str) else "measured on the fold's annotated cases"
        if source and not rule.edges:
            measured = source().tissue.edges
            is_named = is_generator_name(str(target.generator))
            rule = replace(rule, edges=edges_in_use(target.target, measured, is_own=not is_named))
            whose = "those of the generator's training tumours" if rule.edges == measured else "as published"
        settled.append(rule)
        notes.append(f"Visible edges, {whose}: {describe_law(rule.edges)}.")
    return settled, notes if any(sources) else []


def _edges(target: OrganTarget, data: PreprocessedCases, cases: FoldCases) -> tuple[EdgeStatistics, ...]:
    """The edges that a target's setting asks for; none for those of its generator.

    A builtin generator learned from tumours of other organs: of the fold's annotated cases, a few tell more.
    """
    from diffusion.generator.info import EdgeStatistics

    if not isinstance(target.edge, str):
        return (EdgeStatistics.exactly(*target.edge),)
    is_asked = target.edge == EDGE_OF_FOLD
    if not is_asked and not is_generator_name(str(target.generator)):
        return ()
    files = {case: data.label_file(case) for case in cases.tumor_train}
    try:
        law = real_edge_law(data.images, files, roles_of(data.labels, target), cases.known, data.open_cache())
    except ConfigurationError:
        if is_asked:
            raise
        return ()
    return law if is_asked or sum(each.tumors for each in law) >= _FEWEST_EDGES else ()


def _print_settings(trainer: nnUNetTrainer, resolved: ResolvedConfig, arm: str) -> None:
    settings = [f"  {key}: {value}  [{resolved.origins[key]}]" for key, value in resolved.config.to_json().items()]
    for line in ("Settings of the synthetic tumours:", f"  tumours of this arm: {arm}", *settings):
        trainer.print_to_log_file(line, add_timestamp=False)


def _describe_builtin(target: OrganTarget, resolved: ResolvedConfig, folder: Path) -> str:
    from diffusion.generator_folder import read_generator_info

    origins, note = resolved.origins, read_generator_info(folder).data_note.partition(" (")[0]
    return (
        f"Synthetic tumours come from {target.generator} [{origins['generator']}], which learned from {note} and knows "
        f"no others; their contrasts are drawn from '{target.target}' [{origins['target']}] unless contrast_hu is set. "
        "Two ways to tumours of your organ: train a generator on your annotated cases (difftumor train-autoencoder, "
        "train-diffusion), or convert published weights of liver, pancreas or kidney tumours (difftumor "
        'convert-weights); then set "generator": "DIR" in difftumor.json beside the plans.'
    )


def _name_of(labels: Mapping[str, Any], target: OrganTarget) -> str:
    """Name of a target in tables: its tumour's, with the organ's if that is not part of it."""
    organ, tumor = (name_of_label(labels, value) for value in (target.organ_label, target.tumor_label))
    return tumor if organ.lower() in tumor.lower() else f"{organ} {tumor}"
