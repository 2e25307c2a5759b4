"""A training that is not started yet: what it would read, each part once."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_difftumor.cases.extra.joining import ExtraCases, choose_all_cases, unfinished_cases
from nnunet_difftumor.cases.extra.requirements import TargetDataset
from nnunet_difftumor.cases.fold import FoldCases, PreprocessedCases, group_dataset, open_preprocessed_cases
from nnunet_difftumor.cases.known_cases import KnownCases, read_known_cases
from nnunet_difftumor.cases.nnunet_folders import dataset_number, find_dataset_name, read_plans, require_nnunet_folders
from nnunet_difftumor.cases.splits import HOLDOUT_FILE_NAME
from nnunet_difftumor.errors import DatasetError, list_some
from nnunet_difftumor.settings.resolving import ResolvedConfig, resolve_config
from nnunet_difftumor.settings.sources import ENVIRONMENT_VARIABLE, find_sources

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    from nnunet_difftumor.cases.healthy import CaseGroups

DEFAULT_PLANS = "nnUNetPlans"
FINAL_CHECKPOINT = "checkpoint_final.pth"


@dataclass
class PlannedTraining:
    """A training as nnU-Net's command names it; what cannot be read raises what the trainer would raise.

    Attributes:
        dataset: Number or full name.
    """

    dataset: str
    configuration: str
    plans_name: str
    fold: int | str
    trainer: str

    @cached_property
    def name(self) -> str:
        """Full name of the data set."""
        return find_dataset_name(self.dataset)

    @cached_property
    def folder(self) -> Path:
        """The data set's folder in nnUNet_preprocessed."""
        return require_nnunet_folders()[1] / self.name

    @cached_property
    def contents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Plans and dataset.json."""
        return read_plans(self.folder, self.plans_name, self.configuration)

    @cached_property
    def plans(self) -> PlansManager:
        """The plans as nnU-Net reads them."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return PlansManager(self.contents[0])

    @cached_property
    def planned(self) -> ConfigurationManager:
        """The plans' configuration."""
        return self.plans.get_configuration(self.configuration)

    @property
    def data_folder(self) -> Path:
        """Where the preprocessed cases lie."""
        return self.folder / self.planned.data_identifier

    @property
    def preprocess_command(self) -> str:
        """Command that preprocesses the data set."""
        options = ["-plans_name", self.plans_name, "-c", self.configuration]
        return shlex.join(["nnUNetv2_preprocess", "-d", str(dataset_number(self.name)), *options])

    @cached_property
    def data(self) -> PreprocessedCases:
        """The preprocessed cases, all of them to their end."""
        if not self.data_folder.is_dir() or not any(self.data_folder.iterdir()):
            raise DatasetError(f"{self.data_folder} holds no preprocessed case: {self.preprocess_command}")
        data = open_preprocessed_cases(self.folder, self.data_folder, self.contents[1])
        if unfinished := unfinished_cases(self.data_folder, data.identifiers):
            raise DatasetError(f"Interrupted at {list_some(unfinished)}. Start it again: {self.preprocess_command}")
        if missing := sorted(data.images.keys() - set(data.identifiers)):
            raise DatasetError(
                f"{len(missing)} of {len(data.images)} cases of nnUNet_raw are not preprocessed "
                f"({list_some(missing)}): {self.preprocess_command}"
            )
        return data

    @cached_property
    def settings(self) -> ResolvedConfig:
        """Settings from wherever the user gave them."""
        sources = find_sources(os.environ.get(ENVIRONMENT_VARIABLE), self.folder, self.contents[1])
        return resolve_config(self.contents[1]["labels"], sources)

    @cached_property
    def known(self) -> KnownCases:
        """What `difftumor splits` recorded of cases."""
        return read_known_cases(self.folder / HOLDOUT_FILE_NAME)

    @cached_property
    def groups(self) -> CaseGroups:
        """All cases by their label maps; those that nobody read before are read with a progress bar."""
        data, config = self.data, self.settings.config
        files = {case: data.label_file(case) for case in data.identifiers}
        return group_dataset(files, data.labels, config, data.open_cache(), self.known, show_progress=True)

    @cached_property
    def fold_cases(self) -> tuple[FoldCases, tuple[ExtraCases, ...]]:
        """Cases of the fold, and extra healthy ones by data set."""
        target = TargetDataset(
            name=self.name,
            folder=self.folder,
            plans=self.plans.plans,
            configuration=self.configuration,
            dataset_json=self.contents[1],
            identifiers=self.data.identifiers,
        )
        return choose_all_cases(self.data, self.settings.config, self.fold, target, show_progress=True)

    @property
    def cases(self) -> FoldCases:
        """Cases of the fold, extra healthy ones among them."""
        return self.fold_cases[0]

    @cached_property
    def generators(self) -> tuple[Path, ...]:
        """Generator folder of each target; none if nothing is injected."""
        config = self.settings.config
        targets = config.organ_targets if config.injects else ()
        return tuple(self.settings.generator_folder(self.fold, target) for target in targets)

    @property
    def output_folder(self) -> Path:
        """Where nnU-Net would write, by trainer, plans and configuration."""
        from nnunetv2.paths import nnUNet_results

        run = f"{self.trainer}__{self.plans.plans_name}__{self.configuration}"
        return Path(str(nnUNet_results)) / self.name / run / f"fold_{self.fold}"

    @property
    def is_unfinished(self) -> bool:
        """Whether an earlier training left checkpoints in the output folder, and did not end."""
        checkpoints = {path.name for path in self.output_folder.glob("checkpoint_*.pth")}
        return bool(checkpoints) and FINAL_CHECKPOINT not in checkpoints

    def train_command(self, *, has_gpu: bool) -> str:
        """Command that starts the training, or goes on with it."""
        words = ["nnUNetv2_train", self.dataset, self.configuration, str(self.fold), "-tr", self.trainer]
        words += ["-p", self.plans_name] * (self.plans_name != DEFAULT_PLANS)
        return shlex.join([*words, *["-device", "cpu"] * (not has_gpu), *["--c"] * self.is_unfinished])
