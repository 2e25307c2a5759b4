"""What a data set must fulfil to be trained on as extra healthy cases."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_difftumor.cases.healthy import count_label_voxels, group_cases
from nnunet_difftumor.cases.known_cases import KnownCases, read_known_cases
from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME
from nnunet_difftumor.ct.label_roles import LabelRoles, declared_values, require_declared
from nnunet_difftumor.errors import ConfigurationError, DatasetError, list_some
from nnunet_difftumor.support.files.fact_cache import CASE_FACTS_FILE_NAME, FactCache

_SAME_PLANS = ("transpose_forward", "foreground_intensity_properties_per_channel")
_SAME_CONFIGURATION = (
    "spacing",
    "normalization_schemes",
    "use_mask_for_norm",
    "preprocessor_name",
    "resampling_fn_data",
    "resampling_fn_data_kwargs",
    "resampling_fn_seg",
    "resampling_fn_seg_kwargs",
)


@dataclass(frozen=True, kw_only=True)
class TargetDataset:
    """The data set that is trained on, which extra cases must fit.

    Attributes:
        folder: Its folder in nnUNet_preprocessed.
        plans: Content of its plans file.
    """

    name: str
    folder: Path
    plans: Mapping[str, Any]
    configuration: str
    dataset_json: Mapping[str, Any]
    identifiers: tuple[str, ...]


@dataclass(frozen=True)
class ExtraDataset:
    """A further data set, preprocessed or to be preprocessed for the one that is trained on."""

    name: str
    target: TargetDataset

    @property
    def folder(self) -> Path:
        """Its folder in nnUNet_preprocessed."""
        return self.target.folder.parent / self.name

    @property
    def plans_name(self) -> str:
        """Name of the target's plans in this folder."""
        return f"{self.target.plans['plans_name']}_for_{self.target.name}"

    @property
    def plans_file(self) -> Path:
        """The transferred plans."""
        return self.folder / f"{self.plans_name}.json"

    @property
    def data_folder(self) -> Path:
        """Where the preprocessed cases lie, once the plans are transferred."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        configuration = PlansManager(str(self.plans_file)).get_configuration(self.target.configuration)
        return self.folder / configuration.data_identifier

    @property
    def command(self) -> str:
        """Command that prepares it."""
        target = self.target
        words = ["difftumor", "add-healthy", "-d", target.name, "--from", self.name]
        options = ["--plans", target.plans["plans_name"], "-c", target.configuration, "--confirmed-healthy"]
        return shlex.join([*words, *options])

    def check_description(self, dataset_json: Mapping[str, Any]) -> None:
        """Check that its channels and labels mean what they mean in the data set that is trained on.

        Raises:
            ConfigurationError: If they do not; the message names what differs.
        """
        name, target = self.name, self.target.name
        channels, expected = (_channels(each) for each in (dataset_json, self.target.dataset_json))
        if channels != expected:
            raise ConfigurationError(
                f"{name} has the channels {channels}, but {target} has {expected}. Extra healthy cases need the same."
            )
        labels, known = (dict(each["labels"]) for each in (dataset_json, self.target.dataset_json))
        foreign = sorted(set(labels) - set(known))
        if foreign:
            raise ConfigurationError(
                f"{name} has labels that {target} lacks: {', '.join(foreign)}. Merge them into background or into a "
                f"label of {target} ({', '.join(known)}), in the label files and in dataset.json of {name}."
            )
        clashing = [label for label in labels if labels[label] != known[label]]
        if clashing:
            listed = ", ".join(f"{label} is {labels[label]} there and {known[label]} here" for label in clashing)
            raise ConfigurationError(
                f"Labels of {name} have other values than in {target}: {listed}. Change the values in the label "
                f"files and in dataset.json of {name}."
            )
        has_regions = any(isinstance(value, (list, tuple)) for value in known.values())
        lacking = [label for label in known if label not in labels]
        if lacking and (has_regions or "ignore" in known):
            raise ConfigurationError(
                f"{name} does not declare the labels {', '.join(lacking)}. With regions or an ignore label, nnU-Net "
                f'needs the same "labels" in both data sets: write those of {target} into dataset.json of {name} '
                "(also in nnUNet_preprocessed), although no case has a voxel of them, and run difftumor add-healthy "
                "--overwrite."
            )

    def check_plans(self) -> None:
        """Check that it was preprocessed as the data set that is trained on.

        Raises:
            ConfigurationError: If spacing, normalisation, resampling or the order of axes differ.
        """
        plans = json.loads(self.plans_file.read_text(encoding="utf-8"))
        theirs, ours = (_settings_of(each, self.target.configuration) for each in (plans, self.target.plans))
        differing = [key for key in ours if theirs.get(key) != ours[key]]
        if differing:
            shown = ", ".join(f"{key} ({_short(theirs.get(key))} there, {_short(ours[key])} here)" for key in differing)
            raise ConfigurationError(
                f"{self.name} was preprocessed for other plans than those of {self.target.name}: they differ in "
                f"{shown}. Preprocess it again: {self.command} --overwrite"
            )

    def check_healthy(
        self,
        label_files: Mapping[str, Path],
        roles: Sequence[LabelRoles],
        labels: Mapping[str, Any],
        *,
        show_progress: bool = False,
    ) -> dict[str, tuple[int, ...]]:
        """Check that none of its cases has a tumour, by their labels on the raw grid or by recorded metadata.

        Returns:
            Cases with an organ, sorted, each with the numbers of the roles whose organ it has.

        Raises:
            DatasetError: If a label file is missing, or holds values that dataset.json does not name.
            ConfigurationError: If a case has a tumour.
        """
        cache = FactCache(self.folder / CASE_FACTS_FILE_NAME if self.folder.is_dir() else None)
        voxels = count_label_voxels(label_files, cache, show_progress=show_progress)
        require_declared({label_files[case]: values for case, values in voxels.items()}, declared_values(labels))
        known = [read_known_cases(folder / HOLDOUT_FILE_NAME).tumor for folder in (self.folder, self.target.folder)]
        with_organ = {case: {**each, roles[0].organ: 1} for case, each in voxels.items()}  # it need not be there
        healthy = group_cases(
            with_organ, roles, confirmed_healthy=True, known=KnownCases((*known[0], *known[1]))
        ).healthy
        if ill := sorted(set(voxels).difference(healthy)):
            tumors = {value for role in roles for value in (role.tumor, *role.tumor_parts, *role.other_tumors)}
            raise ConfigurationError(
                f"{len(ill)} cases of {self.name} have voxels of a tumour label "
                f"({', '.join(map(str, sorted(tumors)))}): {list_some(ill)}, or a tumour by the metadata of "
                "`difftumor splits`. An extra data set must be healthy: take them out of the raw one and run "
                "`difftumor add-healthy` again, or make one data set of both."
            )
        places = {
            case: tuple(number for number, role in enumerate(roles) if voxels[case].get(role.organ))
            for case in sorted(voxels)
        }
        return {case: numbers for case, numbers in places.items() if numbers}

    def refuse_collisions(self, identifiers: Collection[str], taken: Mapping[str, str]) -> None:
        """Check that none of its cases has an identifier that another data set, named for each, uses already.

        Raises:
            DatasetError: If one has.
        """
        twice = sorted(identifier for identifier in identifiers if identifier in taken)
        if twice:
            raise DatasetError(
                f"{len(twice)} cases of {self.name} have identifiers that {taken[twice[0]]} uses too: "
                f"{list_some(twice)}. Rename their files in {self.name}, and run difftumor add-healthy again with "
                "--overwrite."
            )


def _settings_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    try:
        content: Mapping[str, Any] = PlansManager(dict(plans)).get_configuration(configuration).configuration
    except RuntimeError:
        content = {}
    settings = {key: plans.get(key) for key in _SAME_PLANS}
    settings |= {key: content.get(key) for key in _SAME_CONFIGURATION}
    return json.loads(json.dumps(settings))


def _channels(dataset_json: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in dict(dataset_json.get("channel_names", {})).items()}


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
