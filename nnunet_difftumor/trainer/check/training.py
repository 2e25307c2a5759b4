"""What a training would be refused for, or do badly with: data set, settings, cases, generator, output folder."""

from __future__ import annotations

import time
from dataclasses import replace

from nnunet_difftumor.cases.extra.joining import refuse_copies
from nnunet_difftumor.cases.fold import check_leaks, require_hosts
from nnunet_difftumor.cases.splits import SPLITS_FILE_NAME
from nnunet_difftumor.ct.label_roles import name_of_label
from nnunet_difftumor.errors import list_some
from nnunet_difftumor.synthesis.tissue.interface import DescribedTissue, require_in_window
from nnunet_difftumor.trainer.check.findings import Check, Finding, ok, warning
from nnunet_difftumor.trainer.check.planned import FINAL_CHECKPOINT, PlannedTraining
from nnunet_difftumor.trainer.output_record import refuse_other_training
from nnunet_difftumor.trainer.supported_plans import refuse_unsupported_plans

LEAK_SECONDS = 4.0
"""Time after which no further validation case is compared in its content: the trainer compares them all."""
_AT_ONCE = 2
_UNSET = ("default", "label names in dataset.json")


def check_plans(training: PlannedTraining) -> Finding:
    """Look at the data set's plans."""
    refuse_unsupported_plans(training.configuration, training.planned, training.contents[1])
    patch = " x ".join(map(str, training.planned.patch_size))
    return ok(f"{training.name}, {training.plans_name}, {training.configuration}: patch {patch}")


def check_preprocessed(training: PlannedTraining) -> Finding:
    """Look whether each case of the raw data set is preprocessed to its end."""
    return ok(f"{len(training.data.identifiers)} cases")


def check_settings(training: PlannedTraining) -> Finding:
    """Look at the settings that the user gave."""
    origins = training.settings.origins
    places = dict.fromkeys(origin for origin in origins.values() if origin not in _UNSET)
    given = [f"{', '.join(key for key in origins if origins[key] == place)} [{place}]" for place in places]
    return ok("; ".join(given) or "none given: all are the defaults")


def check_labels(training: PlannedTraining) -> Finding:
    """Look at what the labels mean, and whether tumours can be told from organs in the targets of the network."""
    from nnunet_difftumor.injection.sample_shares import TargetReader

    labels, told = training.data.labels, []
    for target in training.settings.config.organ_targets:
        manager = training.plans.get_label_manager(training.contents[1])
        TargetReader(manager, target.organ_label, target.tumor_label)
        values = (target.organ_label, target.tumor_label)
        organ, tumor = (f"'{name_of_label(labels, value)}' ({value})" for value in values)
        told.append(f"organ {organ}, tumour {tumor}")
    return ok("; ".join(told))


def check_cases(training: PlannedTraining) -> Finding:
    """Look at all cases by their label maps."""
    groups = training.groups
    text = f"{len(groups.tumor)} with annotated tumour, {len(groups.healthy)} healthy, {len(groups.other)} neither"
    if not groups.tumor:
        return warning(f"{text}: validation can tell false alarms, but not how many real tumours are found.")
    patients = {training.known.patient_of(case) for case in training.data.identifiers}
    alone = "" if training.known.patients else ", each scan one (else: difftumor splits --group-pattern REGEX)"
    return ok(f"{text}; {len(patients)} patients{alone}")


def check_fold(training: PlannedTraining) -> Finding:
    """Look at the cases that train and validate."""
    cases = training.cases
    require_hosts(cases, training.settings.config)
    text = (
        f"{len(cases.tumor_train)} annotated and {len(cases.healthy_train)} healthy cases train, "
        f"{len(cases.split.val)} validate, {len(cases.holdout)} healthy held out"
    )
    if training.fold == "all":
        return ok(text)
    if not (training.folder / SPLITS_FILE_NAME).is_file():
        return warning(f"{text}, as there is no {SPLITS_FILE_NAME}; to use the same elsewhere: difftumor splits -d ID")
    if lost := cases.unlisted:
        listed = f"{SPLITS_FILE_NAME} leaves out {len(lost)} further cases ({list_some(lost)})"
        return warning(f"{text}; {listed}: if that is not meant so, difftumor splits -d ID --overwrite")
    return ok(text)


def check_copies(training: PlannedTraining) -> Finding:
    """Look for training cases with the CT of a validation case, or of one with another annotation."""
    cases, extra = training.fold_cases
    found = refuse_copies(extra, training.data_folder, cases)
    return warning(" ".join(found)) if found else ok("no CT is there twice")


def check_generators(training: PlannedTraining) -> Finding:
    """Look at the records of generators, and whether their files are whole; no weights are loaded."""
    from diffusion.generator.folder_check import require_whole_weights
    from diffusion.generator_folder import check_generator_folder
    from nnunet_difftumor.injection.rules import CTIntensities

    told = {}
    level_hu = CTIntensities.from_plans(training.plans.plans).mean_hu
    for target, folder in zip(training.settings.config.organ_targets, training.generators, strict=False):
        info, provenance = check_generator_folder(folder)
        require_whole_weights(folder)
        tissue = DescribedTissue(info)
        require_in_window(level_hu, tissue.window_hu, "The labelled tissue of this data set")
        replace(target.appearances, examples=tissue.appearances)  # refuses looks that cannot be drawn
        learned = info.data_note.partition(" (")[0] or "unnamed data"
        cases = f"{len(provenance.diffusion)} cases" if provenance.is_complete else "cases that are not all known"
        told[folder] = f"{target.generator}, preset {info.preset}, trained on {cases}: {learned}"
    return ok("; ".join(told.values()) or "none is needed, as no case carries tumours")


def check_leak(training: PlannedTraining) -> Finding:
    """Compare what trained the generators with the validation cases: by name all, by content as time allows."""
    from nnunet_difftumor.cases.leak_guard import CaseContent, find_overlap, read_provenance

    cases, config, data = training.cases, training.settings.config, training.data
    if training.fold == "all":
        return ok("fold 'all' makes no claim about validation")
    names, end = [*cases.split.val, *cases.beside], time.monotonic() + LEAK_SECONDS
    warnings, left = list[str](), list[str]()
    for target, folder in zip(config.organ_targets, training.generators, strict=False):
        if target.knows_no_case:
            continue
        overlap = find_overlap([CaseContent(identifier=name) for name in names], read_provenance(folder))
        namesakes = {name for stage in overlap.values() for name in stage.only_named}
        left = sorted(names, key=lambda name: name not in namesakes)
        while left and time.monotonic() < end:
            some, left = left[:_AT_ONCE], left[_AT_ONCE:]
            part = replace(cases, split=replace(cases.split, val=tuple(some)), beside=(), holdout=())
            found = check_leaks(folder, data, part, config, training.fold, target=target)
            warnings += [*found.warnings, *found.acknowledged]
    if unseen := sorted({*names}.intersection(data.identifiers).difference(data.images)):
        warnings.append(f"The CT of {list_some(unseen)} is not in nnUNet_raw: copies under other names go unnoticed.")
    if warnings:
        return warning(" ".join(dict.fromkeys(warnings)))
    compared = f"{len(names) - len(left)} of " if left else ""
    later = "; the trainer compares the rest at its start" if left else ""
    return ok(f"the generator knows none of {compared}{len(names)} validation cases{later}")


def check_output(training: PlannedTraining) -> Finding:
    """Look at what an earlier training left where this one would write."""
    from diffusion.generator_folder import hash_generator

    folder = training.output_folder
    if not any(folder.glob("checkpoint_*.pth")):
        return ok(f"{folder} holds no training yet")
    generator_hash = "+".join(hash_generator(each) for each in dict.fromkeys(training.generators)) or None
    refuse_other_training(folder, training.settings, training.cases, generator_hash, is_continued=True)
    if training.is_unfinished:
        return ok(f"{folder} holds a training with these settings, which --c continues")
    return warning(
        f"{folder} holds a finished training ({FINAL_CHECKPOINT}), which another one would overwrite: move it away, "
        "or predict with it."
    )


TRAINING_CHECKS = (
    Check("plans", check_plans),
    Check("preprocessed", check_preprocessed),
    Check("settings", check_settings),
    Check("labels", check_labels),
    Check("cases", check_cases),
    Check("fold", check_fold),
    Check("copies", check_copies),
    Check("generator", check_generators),
    Check("leak", check_leak),
    Check("output", check_output),
)
