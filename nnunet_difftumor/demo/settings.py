"""Budgets of the demo: data, steps and the small nnU-Net network, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from nnunet_difftumor.trainer.small_plans import SmallNetwork

PLANS_NAME, CONFIGURATION = "nnUNetPlansSmall", "3d_fullres"


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """What the demo runs, and for how long; sizes and spacings are (D, H, W)."""

    data: str  # "phantom" or "real"
    dataset_id: int
    dataset_name: str
    tumor_cases: int = 0
    healthy_cases: int = 0
    healthy_holdout: float = 0.0  # share of the healthy cases that trains nothing
    folds: int = 1  # of the cross-validation; fold 0 is run
    autoencoder_steps: int
    diffusion_steps: int
    target_spacing_mm: tuple[float, float, float]  # that nnU-Net resamples to
    patch_size: tuple[int, int, int]  # of nnU-Net, in voxels
    features: tuple[int, ...]  # channels of the network's stages
    strides: tuple[tuple[int, int, int], ...]
    epochs: int
    iterations: int
    val_iterations: int
    size_classes: tuple[Mapping[str, object], ...]  # of the injected tumours, as in difftumor.json
    synthesized_radius_mm: tuple[float, float]  # of the tumours that are put into one scan
    synthesized_count: int = 6
    preset: str = "tiny"

    @property
    def dataset_folder_name(self) -> str:
        """Name of the data set's folder."""
        return f"Dataset{self.dataset_id:03d}_{self.dataset_name}"

    @property
    def network(self) -> SmallNetwork:
        """Patch and network of nnU-Net."""
        return SmallNetwork(patch_size=self.patch_size, features=self.features, strides=self.strides)


def _size(name: str, low_mm: float, high_mm: float, probability: float, max_count: int = 1) -> Mapping[str, object]:
    return {"name": name, "radius_mm": [low_mm, high_mm], "probability": probability, "max_count": max_count}


_PHANTOM = DemoSettings(
    data="phantom",
    dataset_id=901,
    dataset_name="Phantom",
    tumor_cases=12,
    healthy_cases=6,
    healthy_holdout=0.2,
    folds=4,
    autoencoder_steps=60,
    diffusion_steps=90,
    target_spacing_mm=(4.0, 3.0, 3.0),
    patch_size=(16, 32, 32),  # small, so that iterations are cheap: tumours are found after about 700 of them
    features=(8, 16, 32, 48),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2)),
    epochs=16,
    iterations=100,
    val_iterations=5,
    size_classes=(_size("small", 6, 11, 0.3, 2), _size("medium", 11, 20, 0.5), _size("large", 20, 25, 0.2)),
    synthesized_radius_mm=(5.0, 16.0),
)

_REAL = DemoSettings(
    data="real",
    dataset_id=902,
    dataset_name="SoftTissue",
    autoencoder_steps=300,
    diffusion_steps=300,
    target_spacing_mm=(3.27, 2.5, 2.5),
    patch_size=(48, 64, 64),
    features=(16, 32, 64, 128),
    strides=((1, 1, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)),
    epochs=44,
    iterations=25,
    val_iterations=4,
    size_classes=(_size("small", 6, 10, 0.3, 2), _size("medium", 12, 20, 0.4), _size("large", 20, 36, 0.3)),
    synthesized_radius_mm=(6.0, 18.0),
)


def demo_settings(data: str, *, is_quick: bool = False) -> DemoSettings:
    """Look up the settings of the data "phantom" or "real".

    Args:
        is_quick: Run as little as possible: shows that the commands work together, teaches nothing.
    """
    settings = {"phantom": _PHANTOM, "real": _REAL}[data]
    if not is_quick:
        return settings
    return replace(
        settings,
        tumor_cases=min(settings.tumor_cases, 4),
        healthy_cases=min(settings.healthy_cases, 3),
        folds=min(settings.folds, 2),
        preset="nano",
        autoencoder_steps=20,
        diffusion_steps=20,
        patch_size=(32, 48, 48),
        features=(8, 16, 32, 32),
        epochs=2,
        iterations=3,
        val_iterations=1,
        synthesized_count=2,
    )
