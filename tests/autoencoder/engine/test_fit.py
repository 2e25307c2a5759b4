from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from autoencoder.engine import cpu_bfloat16
from autoencoder.engine.fit import Fit, NonFiniteLossError, run_fit
from autoencoder.engine.records import TrainingRecord
from autoencoder.engine.run_folder import OutputFolderExistsError, ResumeError
from autoencoder.engine.settings import FitSettings
from autoencoder.layers import draw_initial_weights_


class _Numbers(Dataset[dict[str, Tensor]]):
    """Item i is a batch of 4 vectors, a function of i; can stop the run like Ctrl-C."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.interrupt_at = interrupt_at
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index == self.interrupt_at:
            raise KeyboardInterrupt
        self.asked.append(index)
        return {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(index))}


def _loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    noise = torch.randn(batch["x"].shape, generator=generator, device=batch["x"].device)
    total = (model(batch["x"] + 0.1 * noise) - batch["x"].sum(dim=1, keepdim=True)).square().mean()
    return {"total": total, "half": total / 2}


def _model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))
    draw_initial_weights_(model, torch.Generator().manual_seed(0))
    return model


def _settings(**changes) -> FitSettings:
    defaults = {"steps": 12, "learning_rate": 1e-2, "ema_decay": 0.9, "checkpoint_every": 5}
    return FitSettings(**(defaults | changes))


@pytest.fixture
def make_fit(tmp_path: Path) -> Callable[..., Fit[nn.Sequential]]:
    def make(batches: Dataset | None = None, folder: str = "run", resume: bool = False, **changes) -> Fit:
        identity = changes.pop("identity", None)
        loss = changes.pop("loss", _loss)
        settings = _settings(**changes)
        return Fit(_model(), batches or _Numbers(), loss, settings, tmp_path / folder, resume, identity)

    return make


def _weights(fit: Fit) -> Tensor:
    return torch.cat([p.detach().flatten() for p in fit.model.parameters()])


def test_every_step_is_yielded_once_with_its_losses(make_fit) -> None:
    steps = list(make_fit())
    assert [step.index for step in steps] == list(range(1, 13))
    assert all(step.losses["half"] == pytest.approx(step.losses["total"] / 2) for step in steps)
    assert [step.index for step in steps if step.checkpoint_follows] == [5, 10, 12]


def test_batch_i_is_used_in_step_i(make_fit) -> None:
    batches = _Numbers()
    list(make_fit(batches))
    assert batches.asked == list(range(12))


def test_the_loss_falls(make_fit) -> None:
    losses = [step.losses["total"] for step in make_fit(steps=150)]
    assert sum(losses[-10:]) < 0.3 * sum(losses[:10])


def test_two_runs_give_the_same_bits_and_another_seed_does_not(make_fit) -> None:
    first, second, other = make_fit(folder="a"), make_fit(folder="b"), make_fit(folder="c", seed=1)
    for fit in (first, second, other):
        list(fit)
        torch.rand(3)
    assert torch.equal(_weights(first), _weights(second))
    assert not torch.equal(_weights(first), _weights(other))


def test_training_leaves_the_global_generator_alone(make_fit) -> None:
    fit = make_fit()
    before = torch.get_rng_state()
    list(fit)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop_at", [5, 7])
def test_a_run_left_and_resumed_gives_the_same_bits(make_fit, stop_at: int) -> None:
    undisturbed = make_fit(folder="undisturbed")
    list(undisturbed)
    for step in make_fit(folder="left"):
        if step.index == stop_at:
            break  # nothing is saved here: the newest checkpoint has 5 steps, or none
    resumed = make_fit(folder="left", resume=True, checkpoint_every=4)
    steps = list(resumed)
    assert steps[0].index == (1 if stop_at == 5 else 6)
    assert torch.equal(_weights(resumed), _weights(undisturbed))


def test_ctrl_c_leaves_a_checkpoint_of_the_last_finished_step(make_fit) -> None:
    interrupted = make_fit(_Numbers(interrupt_at=8))
    with pytest.raises(KeyboardInterrupt), interrupted.saved_on_interrupt():
        list(interrupted)
    resumed = make_fit(resume=True)
    assert resumed.steps_done == 8
    undisturbed = make_fit(folder="undisturbed")
    list(undisturbed), list(resumed)
    assert torch.equal(_weights(resumed), _weights(undisturbed))


@pytest.mark.parametrize("interrupted_at", [4, 8, 12])
def test_held_out_data_are_measured_at_every_due_step_after_ctrl_c_in_between(
    make_fit, tmp_path, interrupted_at
) -> None:
    """Ctrl-C comes while they are measured; the checkpoint is of that step."""

    def train(fit: Fit, interrupt_at: int | None = None) -> None:
        def evaluate(index: int, record: TrainingRecord) -> None:
            if index == interrupt_at:
                raise KeyboardInterrupt
            with fit.averaged_model() as model:
                record.add_heldout(index, {"bias": float(model[2].bias.detach())})

        run_fit(fit, "numbers", evaluate, 4, show_progress=False)

    train(make_fit(folder="undisturbed"))
    with pytest.raises(KeyboardInterrupt):
        train(make_fit(), interrupted_at)
    train(make_fit(resume=True))
    whole, resumed = ((tmp_path / name / "heldout_history.csv").read_text() for name in ("undisturbed", "run"))
    assert [line.split(",")[0] for line in whole.split()] == ["step", "4", "8", "12"]
    assert resumed == whole


def test_ctrl_c_in_the_middle_of_a_step_saves_nothing_half_done(make_fit) -> None:
    def interrupted_loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        losses = _loss(model, batch, generator)
        if fit.steps_done == 7:
            raise KeyboardInterrupt
        return losses

    fit = make_fit(loss=interrupted_loss)
    with pytest.raises(KeyboardInterrupt), fit.saved_on_interrupt():
        list(fit)
    assert make_fit(resume=True).steps_done == 5


def test_a_loop_left_early_can_be_entered_again(make_fit) -> None:
    undisturbed, paused = make_fit(folder="undisturbed"), make_fit()
    list(undisturbed)
    for step in paused:
        if step.index == 6:
            break
    assert [step.index for step in paused] == list(range(7, 13))
    assert torch.equal(_weights(paused), _weights(undisturbed))


def test_loading_processes_give_the_same_bits_as_none(make_fit) -> None:
    alone, with_worker = make_fit(folder="a"), make_fit(folder="b", workers=1)
    list(alone), list(with_worker)
    assert torch.equal(_weights(alone), _weights(with_worker))


def test_only_the_newest_checkpoints_stay_and_their_weights_are_safetensors(make_fit, tmp_path: Path) -> None:
    list(make_fit(keep_checkpoints=2))
    folders = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert folders == ["step_00000010", "step_00000012"]
    newest = tmp_path / "run" / "checkpoints" / folders[-1]
    assert (newest / "model.safetensors").is_file()
    assert (newest / "averaged_weights.safetensors").is_file()


def test_a_checkpoint_that_was_not_finished_is_ignored_and_removed(make_fit, tmp_path: Path) -> None:
    for step in make_fit():
        if step.index == 7:
            break
    half = tmp_path / "run" / "checkpoints" / ".unfinished_step_00000010"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    resumed = make_fit(resume=True)
    assert resumed.steps_done == 5
    list(resumed)
    assert not half.exists()


def test_a_finished_run_resumed_takes_no_step_and_holds_the_final_weights(make_fit) -> None:
    finished = make_fit()
    list(finished)
    again = make_fit(resume=True)
    assert list(again) == []
    assert torch.equal(_weights(again), _weights(finished))
    assert not again.model.training


def test_a_used_folder_is_refused_without_resume_and_stays_as_it_is(make_fit, tmp_path: Path) -> None:
    list(make_fit())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(OutputFolderExistsError, match="not empty"):
        make_fit()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"learning_rate": 1e-3}, r"settings\.learning_rate was 0\.01, is 0\.001"),
        ({"steps": 20}, r"settings\.steps was 12, is 20"),
        ({"identity": {"data": "other"}}, r"identity\.data was this, is other"),
    ],
)
def test_resume_with_other_settings_is_refused_by_name(make_fit, changes: dict, told: str) -> None:
    list(make_fit(identity={"data": "this"}))
    with pytest.raises(ResumeError, match=told):
        make_fit(resume=True, **({"identity": {"data": "this"}} | changes))


def test_resume_of_a_folder_without_a_run_is_refused(make_fit, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ResumeError, match="no training run to resume"):
        make_fit(resume=True)


def test_resume_without_any_folder_starts_from_the_beginning(make_fit) -> None:
    assert next(iter(make_fit(resume=True))).index == 1


def test_averaged_weights_are_lent_and_given_back(make_fit) -> None:
    fit = make_fit()
    for _ in fit:
        before = _weights(fit)
        with fit.averaged_model() as model:
            assert not model.training
            lent = _weights(fit)
        assert torch.equal(_weights(fit), before)
        assert fit.model.training
    assert not torch.equal(lent, before)


def test_averaged_weights_are_the_weighted_mean_of_the_steps_and_forget_the_start(make_fit) -> None:
    fit = make_fit(steps=6, ema_decay=0.5)
    expected = torch.full_like(_weights(fit), float("nan"))  # the random start has no weight at all
    for step in fit:
        decay = 0.0 if step.index == 1 else min(0.5, step.index / (9 + step.index))
        expected = torch.where(torch.tensor(decay == 0), _weights(fit), decay * expected + (1 - decay) * _weights(fit))
    torch.testing.assert_close(_weights(fit), expected)


def test_without_averaging_the_last_weights_stay(make_fit) -> None:
    fit = make_fit(ema_decay=None)
    for _ in fit:
        last = _weights(fit)
    assert torch.equal(_weights(fit), last)


def test_bf16_trains_in_one_process_with_fp32_and_leaves_a_plain_model(make_fit) -> None:
    list(make_fit(folder="fp32"))
    fit = make_fit(folder="bf16", mixed_precision="bf16")
    losses = [step.losses["total"] for step in fit]
    assert all(math.isfinite(loss) for loss in losses)
    numbers = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    layers = list(fit.model)
    assert torch.equal(fit.model(numbers), layers[2](layers[1](layers[0](numbers))))  # no autocast is left


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_cpu_with_wrong_gradients_in_bf16_trains_in_float32_and_says_so(make_fit, monkeypatch, is_sound) -> None:
    monkeypatch.setattr(cpu_bfloat16, "is_sound", lambda: is_sound)
    with nullcontext() if is_sound else pytest.warns(UserWarning, match="wrong gradients"):
        fit = make_fit(folder="bf16", mixed_precision="bf16")
    assert fit.accelerator.mixed_precision == ("bf16" if is_sound else "no")


def test_gradients_are_sound_where_they_are_those_of_float32(monkeypatch) -> None:
    cpu_bfloat16.is_sound.cache_clear()
    monkeypatch.setattr(cpu_bfloat16, "_KINDS", (torch.float32, torch.float32))
    assert cpu_bfloat16.is_sound()
    cpu_bfloat16.is_sound.cache_clear()
    monkeypatch.setattr(torch.autograd, "grad", lambda _output, weight, _change: (weight * math.nan,))
    assert not cpu_bfloat16.is_sound()
    cpu_bfloat16.is_sound.cache_clear()


def test_nan_stops_the_run_and_keeps_the_earlier_checkpoints(make_fit) -> None:
    def broken_loss(model: nn.Module, batch: dict[str, Tensor], generator: torch.Generator):
        losses = _loss(model, batch, generator)
        return {**losses, "total": losses["total"] * float("nan")} if fit.steps_done == 7 else losses

    fit = make_fit(loss=broken_loss)
    with pytest.raises(NonFiniteLossError, match="Step 8"):
        list(fit)
    assert make_fit(resume=True).steps_done == 5


def test_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    settings = FitSettings(steps=1000, learning_rate=1.0, warmup_steps=100)
    assert settings.learning_rate_at(0) == pytest.approx(0.01)
    assert settings.learning_rate_at(99) == pytest.approx(1.0)
    assert settings.learning_rate_at(550) == pytest.approx(0.5)
    assert 0 < settings.learning_rate_at(999) < 1e-4


def test_a_short_run_warms_up_in_a_quarter_of_its_steps() -> None:
    settings = FitSettings(steps=20, learning_rate=1.0, warmup_steps=50)
    assert settings.learning_rate_at(4) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"ema_decay": 1.0},
        {"mixed_precision": "fp8"},
        {"checkpoint_every": 0},
        {"seed": -1},
    ],
)
def test_impossible_settings_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        _settings(**changes)


def test_norms_and_biases_are_not_decayed() -> None:
    from autoencoder.engine.fit import _decay_groups

    decayed, kept = _decay_groups(_model(), 0.1)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert [p.ndim for p in decayed["params"]] == [2, 2]
    assert [p.ndim for p in kept["params"]] == [1, 1]
