"""The notice that nnU-Net makes its data loaders in another way than the copy of it."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_difftumor.trainer.notices import COPIED_FROM, changed_source_notes


@pytest.mark.skipif(version("nnunetv2") != COPIED_FROM, reason=f"the copy is of nnU-Net {COPIED_FROM}")
def test_the_release_that_was_copied_gives_no_notice():
    assert changed_source_notes() == ()


def test_a_changed_method_is_told_with_the_version_to_install(monkeypatch):
    def get_dataloaders(self):
        return None, None

    monkeypatch.setattr(nnUNetTrainer, "get_dataloaders", get_dataloaders)
    (note,) = changed_source_notes()
    assert f"pip install nnunetv2=={COPIED_FROM}" in note
    assert version("nnunetv2") in note
