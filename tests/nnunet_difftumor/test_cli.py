"""Whatever stops a command ends in one line and no traceback; commands that are printed can be typed."""

from __future__ import annotations

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import pytest

from nnunet_difftumor.cli import COMMANDS, _build_parser, main
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


def test_names_with_spaces_are_quoted_in_printed_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    output = tmp_path / "my runs"
    output.mkdir()
    for module, row in (
        (train_autoencoder, {"all": dict.fromkeys(("mae_hu", "mae_pool2_hu", "mae_pool4_hu"), 1.0)}),
        (train_diffusion, {"real": dict.fromkeys(("mean_hu", "crop_sd_hu", "wasserstein_hu"), 1.0)}),
    ):
        (output / "heldout.json").write_text(json.dumps(row))
        for name in ("after_autoencoder", "after_diffusion"):
            monkeypatch.setattr(module, name, lambda options: "Next: nothing", raising=False)
        report = module._report(Namespace(output=output), is_heldout=True)
        (command,) = [line.split(": ", 1)[1] for line in report.splitlines() if " --" in line]
        assert shlex.split(command) == ["tensorboard", "--logdir", str(output / "tensorboard")]
        assert report.endswith("Next: nothing")


def test_help_teaches_one_fold_without_a_leak(capsys: pytest.CaptureFixture[str]):
    """The order and the words of README, whose commands a slow test runs; other words of a GPU are README's alone."""
    main([])
    printed = capsys.readouterr().out.partition("options:\n")[0]
    lines = [line.strip() for line in printed.splitlines() if line.startswith("  ")]
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = [block for block in readme.split("```bash\n") if "difftumor splits" in block or "ext-trainer)" in block]
    taught = [shlex.split(line, comments=True) for block in blocks for line in block.split("```")[0].splitlines()]
    for words in map(shlex.split, lines):
        assert any(set(words) <= set(each) for each in taught), words
    order = [word for line in lines for word in shlex.split(line)[:2] if word in (*COMMANDS, "nnUNetv2_train")]
    assert order == ["splits", "train-autoencoder", "train-diffusion", "nnUNetv2_train"]
    trainings = [_build_parser(words).parse_args(words) for words in (shlex.split(line)[1:] for line in lines[2:4])]
    autoencoder, diffusion = trainings
    assert (autoencoder.data, autoencoder.fold) == (diffusion.data, diffusion.fold) == (["7"], 0)
    assert diffusion.autoencoder == autoencoder.output
    assert f"/{diffusion.output}/generator".replace("fold0", "fold{fold}") in lines[4]


def test_help_lists_every_command_once_and_research_last(capsys: pytest.CaptureFixture[str]):
    main([])
    listed = capsys.readouterr().out.partition("commands:\n")[2].splitlines()
    names = [line.split()[0] for line in listed if line.startswith("    ")]
    assert sorted(names) == sorted(COMMANDS)
    title = next(number for number, line in enumerate(listed) if line.startswith("  research"))
    daily = [line.split()[0] for line in listed[:title] if line.startswith("    ")]
    assert {"splits", "synthesize", "train-autoencoder", "train-diffusion", "score", "compare"} <= set(daily)
    assert not {"evaluate-generator", "experiment", "benchmark-overhead", "demo"} & set(daily)
