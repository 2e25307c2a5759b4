from __future__ import annotations

import csv
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from autoencoder.adversarial import AdversarialPair, Scores, hinge_loss, make_discriminator
from autoencoder.engine.settings import RunSettings
from autoencoder.intensity import ABDOMEN_WINDOW
from autoencoder.presets import AUTOENCODER_PRESETS, LossWeights
from autoencoder.training import train_autoencoder

pytest.importorskip("monai", reason="the adversarial term needs MONAI (extra: adversarial)")

NANO = AUTOENCODER_PRESETS["nano"]
ADVERSARIAL = replace(NANO, losses=LossWeights(adversarial=0.5, adversarial_from=0.5), ema_decay=0.9)


class Noise(Dataset[dict[str, Tensor]]):
    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image_hu": 60.0 * torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(index))}


def make_pair() -> AdversarialPair:
    autoencoder = NANO.build_model(ABDOMEN_WINDOW, torch.Generator().manual_seed(0))
    return AdversarialPair(autoencoder, make_discriminator(1))


def gradients_of(pair: AdversarialPair, strength: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the hinge loss alone, in the autoencoder and in the discriminator."""
    pair.zero_grad()
    unit = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    _, scores = pair(unit, None, strength)
    assert scores is not None
    hinge_loss(scores).backward()
    return tuple(
        {name: value.grad.clone() for name, value in part.named_parameters() if value.grad is not None}
        for part in (pair.autoencoder, pair.discriminator)
    )  # type: ignore[return-value]


def test_the_hinge_loss_by_hand():
    scores = Scores(torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 1.0]))
    assert hinge_loss(scores).item() == pytest.approx(0.5 * (0 + 1) + 0.5 * (0 + 2))


def test_only_the_autoencoders_gradient_is_reversed_and_scaled():
    pair = make_pair()
    weak, own = gradients_of(pair, 0.1)
    strong, same = gradients_of(pair, 0.3)
    assert weak
    for name, gradient in weak.items():
        torch.testing.assert_close(3.0 * gradient, strong[name], rtol=1e-3, atol=1e-7)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, same[name])


def test_the_autoencoder_is_pulled_towards_what_looks_real():
    """A step along the negative gradient raises the score of decoded crops."""
    pair = make_pair()
    unit = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def score() -> float:
        with torch.no_grad():
            return pair(unit, None, 1.0)[1].decoded.mean().item()

    before = score()
    gradients, _ = gradients_of(pair, 1.0)
    with torch.no_grad():
        for name, parameter in pair.autoencoder.named_parameters():
            if name in gradients:
                parameter -= 1e-3 * gradients[name]
    assert score() > before


def test_the_discriminator_sees_what_the_autoencoder_decoded():
    pair = make_pair()
    unit = torch.rand(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    output, scores = pair(unit, None, 0.3)
    assert torch.equal(scores.decoded, pair.discriminator(output.reconstruction)[-1])
    assert torch.equal(scores.real, pair.discriminator(unit)[-1])


def test_the_seed_alone_decides_the_discriminator_and_a_score_sees_34_voxels():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    network, same, other = (make_discriminator(seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(network[name], same[name]) for name in network)
    assert any(not torch.equal(network[name], other[name]) for name in network)
    model = make_discriminator(1)
    assert not list(model.buffers())  # only parameters are averaged
    for part in model.modules():  # a norm sees the whole crop
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = lambda features: features  # type: ignore[method-assign]
    crop = torch.zeros(1, 1, 64, 64, 64, requires_grad=True)
    scores = model(crop)[-1]
    scores[0, 0, 7, 7, 7].backward()
    assert crop.grad is not None
    assert [len(where.unique()) for where in crop.grad[0, 0].nonzero(as_tuple=True)] == [34, 34, 34]


def test_without_monai_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    with pytest.raises(ImportError, match=r'pip install "nnunet-difftumor\[adversarial\]"'):
        train(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train_autoencoder(Noise(), [Noise()[9]["image_hu"]], NANO, tmp_path / "plain", RunSettings(steps=1))


def test_off_it_costs_nothing_and_every_parameter_has_a_gradient():
    pair = make_pair()
    output, scores = pair(torch.zeros(1, 1, 16, 16, 16), None, 0.0)
    assert scores is None
    output.reconstruction.sum().backward()
    for parameter in pair.discriminator.parameters():
        assert parameter.grad is not None  # several processes wait for each other's gradients
        assert not parameter.grad.any()


def train(folder: Path) -> list[dict[str, str]]:
    run = RunSettings(steps=8, checkpoint_every=3, evaluate_every=4)
    train_autoencoder(Noise(), [Noise()[1000]["image_hu"]], ADVERSARIAL, folder, run)
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def test_it_is_switched_on_late_and_not_saved(tmp_path):
    rows = train(tmp_path / "run")
    values = [float(row["adversarial"]) for row in rows]
    assert values[:4] == [0.0] * 4
    assert min(values[4:]) > 0.5
    saved = load_file(next((tmp_path / "run" / "autoencoder").glob("*.safetensors")))
    assert not [name for name in saved if "discriminator" in name]
    assert {name.split(".")[0] for name in saved} <= {"encoder", "decoder", "shortcut"}


def test_a_resumed_run_ends_with_the_same_weights(tmp_path):
    class Interrupted(Noise):
        def __getitem__(self, index: int) -> dict[str, Tensor]:
            if index == 7 and not (tmp_path / "seen").exists():
                (tmp_path / "seen").touch()
                raise RuntimeError("interrupted")
            return super().__getitem__(index)

    train(tmp_path / "whole")
    arguments = ([Noise()[1000]["image_hu"]], ADVERSARIAL, tmp_path / "cut")
    options = {"steps": 8, "checkpoint_every": 3, "evaluate_every": 4, "show_progress": False}
    with pytest.raises(RuntimeError, match="interrupted"):
        train_autoencoder(Interrupted(), *arguments, RunSettings(**options))
    train_autoencoder(Noise(), *arguments, RunSettings(resume=True, **options))
    whole, cut = (load_file(next((tmp_path / name / "autoencoder").glob("*.safetensors"))) for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_large_presets_build_and_fit_together():
    from diffusion.presets import DIFFUSION_PRESETS

    autoencoder = AUTOENCODER_PRESETS["large"].build_model(ABDOMEN_WINDOW, torch.Generator().manual_seed(0))
    denoiser = DIFFUSION_PRESETS["large"].build_model(autoencoder.latent_channels, torch.Generator().manual_seed(0))
    base = DIFFUSION_PRESETS["base"].build_model(8, torch.Generator().manual_seed(0))
    assert denoiser.num_parameters() > 2 * base.num_parameters()
    assert autoencoder.encode(torch.zeros(1, 1, 16, 16, 16)).shape == (1, 8, 4, 4, 4)
    assert set(DIFFUSION_PRESETS) == set(AUTOENCODER_PRESETS)


def test_wrong_weights_are_refused():
    for wrong in ({"adversarial": -1.0}, {"adversarial_from": 1.0}):
        with pytest.raises(ValueError, match="adversarial_from in"):
            LossWeights(**wrong)
