"""Whatever stops a command ends in one line and no traceback; commands that are printed can be typed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_difftumor.cases.extra.requirements import ExtraDataset, TargetDataset
from nnunet_difftumor.cli import main
from nnunet_difftumor.commands.training import train_autoencoder, train_diffusion


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError("Unable to allocate 3 TiB"), "not enough memory (Unable to allocate 3 TiB). Use smaller images"),
        (MemoryError(), "not enough memory (no details). Use"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "not enough memory (CUDA)"),
        (TypeError("'NoneType' object"), "unexpected TypeError: 'NoneType' object. Add --traceback"),
        (OverflowError("too large"), "unexpected OverflowError"),
        (ValueError("named"), "ValueError: named"),
    ],
)
def test_every_error_ends_in_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(options: object) -> int:
        raise error

    command = ModuleType("splits")
    vars(command).update(DESCRIPTION="", EXAMPLE="", add_arguments=lambda parser: None, run=run)
    monkeypatch.setitem(sys.modules, "nnunet_difftumor.commands.data.splits", command)
    assert main(["splits"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"difftumor splits: {says}")
    assert told.count("\n") == 1
    with pytest.raises(type(error)):
        main(["splits", "--traceback"])


def test_names_with_spaces_are_quoted_in_printed_commands(tmp_path: Path):
    output = tmp_path / "my runs"
    output.mkdir()
    for report, row in (
        (train_autoencoder._report, {"all": dict.fromkeys(("mae_hu", "mae_pool2_hu", "mae_pool4_hu"), 1.0)}),
        (train_diffusion._report, {"real": dict.fromkeys(("mean_hu", "crop_sd_hu", "wasserstein_hu"), 1.0)}),
    ):
        (output / "heldout.json").write_text(json.dumps(row))
        typed = [line.split(": ", 1)[1] for line in report(output, is_heldout=True).splitlines() if " --" in line]
        assert len(typed) == 2
        for command in typed:
            assert any(word.startswith(str(output)) for word in shlex.split(command))
    target = TargetDataset(
        name="Dataset901_A",
        folder=tmp_path,
        plans={"plans_name": "my plans v2"},
        configuration="3d_fullres",
        dataset_json={},
        identifiers=(),
    )
    assert shlex.split(ExtraDataset("Dataset802_B", target).command)[6:8] == ["--plans", "my plans v2"]
