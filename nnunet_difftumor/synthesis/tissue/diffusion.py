"""What produces tumour tissue in a region of interest: the interface, and the diffusion model behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.synthesis.tissue.precision import BFLOAT16, synthesis_precision
from nnunet_difftumor.tumor.appearance import Appearance
from nnunet_difftumor.tumor.region import RoiRule

if TYPE_CHECKING:
    from diffusion.generator.info import GeneratorInfo
    from diffusion.generator_folder import LoadedGenerator

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class GeneratedRegions:
    """Smooth tissue for a batch of regions, without the host's noise.

    Attributes:
        tumor_hu: Region with the tumour, in HU. Shape (N, S, S, S).
        reconstruction_hu: The same model's reconstruction of the host, in HU. Shape (N, S, S, S).
    """

    tumor_hu: FloatArray
    reconstruction_hu: FloatArray


class TissueGenerator(Protocol):
    """Makes tumour tissue for regions of interest; the same seed and region give the same tissue."""

    @property
    def roi_rule(self) -> RoiRule:
        """Regions that the generator can work on."""
        ...

    @property
    def window_hu(self) -> tuple[float, float]:
        """Lowest and highest value that the generator represents, in HU."""
        ...

    @property
    def appearances(self) -> tuple[Appearance, ...]:
        """Looks of the tumours that the generator learned from, as far as they are known."""
        ...

    def generate(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> GeneratedRegions:
        """Generate tissue for regions of one side.

        Args:
            host_hu: Regions of the host in HU. Shape (N, S, S, S).
            tumor_masks: True inside the tumour. Shape (N, S, S, S).
            appearances: Requested look of each region's tumour; contrast against `rim_median_hu` of the region (see
                `diffusion.conditioning`).
            seeds: One seed a region.

        Returns:
            Tissue of shape (N, S, S, S).
        """
        ...


class DescribedTissue:
    """Regions, window and looks of a generator folder, whatever the tissue is made by."""

    def __init__(self, info: GeneratorInfo) -> None:
        """Take the description of a generator.

        Args:
            info: Content of generator.json.
        """
        self._info = info

    @property
    def roi_rule(self) -> RoiRule:
        """Regions that the generator was trained on."""
        info = self._info
        return RoiRule(
            sides=tuple(info.roi_sides),
            margin_voxels=info.margin_voxels,
            spacing_range_mm=(info.spacing_range_mm[0], info.spacing_range_mm[1]),
        )

    @property
    def window_hu(self) -> tuple[float, float]:
        """Window of the generator in HU."""
        return (self._info.low_hu, self._info.high_hu)

    @property
    def appearances(self) -> tuple[Appearance, ...]:
        """Contrast and heterogeneity of each training tumour."""
        return tuple(
            Appearance(contrast_hu=tumor.contrast_hu, heterogeneity_hu=tumor.heterogeneity_hu)
            for tumor in self._info.training_tumors
        )


class DiffusionTissue(DescribedTissue):
    """Tumour tissue from a trained generator folder, on the CPU unless told otherwise.

    Attributes:
        precision: What the networks calculate in, "float32" or "bfloat16" (see `synthesis_precision`).
    """

    def __init__(self, loaded: LoadedGenerator, *, steps: int = 4, sampler: str = "angle") -> None:
        """Wrap a loaded generator.

        Args:
            loaded: Pipeline with its description.
            steps: Denoising steps T.
            sampler: How a rectified flow is followed, "angle" or "straight" (see `diffusion.flow`).

        Raises:
            ConfigurationError: If the precision that the environment asks for does not exist.
        """
        super().__init__(loaded.info)
        self.precision = synthesis_precision(loaded.pipeline.denoiser.device)
        self._loaded = loaded
        self._steps = steps
        self._sampler = sampler

    @classmethod
    def from_folder(cls, folder: Path, *, steps: int = 4, device: str = "cpu") -> DiffusionTissue:
        """Load a generator folder.

        Args:
            folder: Folder that `difftumor train-diffusion` wrote (its `generator` subfolder).
            steps: Denoising steps T.
            device: Torch device.

        Returns:
            The generator.
        """
        from diffusion.generator_folder import load_generator

        return cls(load_generator(folder, device=device), steps=steps)

    def generate(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> GeneratedRegions:
        """Generate tissue for regions of one side (see `TissueGenerator.generate`)."""
        import torch

        with torch.inference_mode():
            output = self._loaded.pipeline(
                **self._inputs(host_hu, tumor_masks, appearances, seeds),
                num_inference_steps=self._steps,
                sampler=self._sampler,
                autocast_dtype=torch.bfloat16 if self.precision == BFLOAT16 else None,
            )
        return GeneratedRegions(
            output.tumor_hu[:, 0].float().cpu().numpy(), output.reconstruction_hu[:, 0].float().cpu().numpy()
        )

    def fill(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> FloatArray:
        """Fill the regions as `generate` does before it draws, texture included.

        Args:
            host_hu: As for `generate`.
            tumor_masks: As for `generate`.
            appearances: As for `generate`.
            seeds: As for `generate`.

        Returns:
            What the network sees of the tumours, in HU. Shape (N, S, S, S).
        """
        filled_hu = self._loaded.pipeline.fill(**self._inputs(host_hu, tumor_masks, appearances, seeds))
        return filled_hu[:, 0].float().cpu().numpy()

    def _inputs(
        self,
        host_hu: FloatArray,
        tumor_masks: NDArray[np.bool_],
        appearances: Sequence[Appearance],
        seeds: list[int],
    ) -> dict[str, Any]:
        """Regions and requests as the pipeline takes them."""
        import torch

        device = next(self._loaded.pipeline.denoiser.parameters()).device
        contrasts_hu = [_or_nan(appearance.contrast_hu) for appearance in appearances]
        heterogeneities_hu = [_or_nan(appearance.heterogeneity_hu) for appearance in appearances]
        return {
            "image_hu": torch.from_numpy(np.ascontiguousarray(host_hu[:, None], dtype=np.float32)).to(device),
            "tumor_mask": torch.from_numpy(tumor_masks[:, None].astype(np.float32)).to(device),
            "contrast_hu": torch.tensor(contrasts_hu, dtype=torch.float32, device=device),
            "heterogeneity_hu": torch.tensor(heterogeneities_hu, dtype=torch.float32, device=device),
            "generators": [torch.Generator().manual_seed(seed) for seed in seeds],
        }


def require_in_window(level_hu: float, window_hu: tuple[float, float], what: str) -> None:
    """Refuse an organ that a generator cannot represent: its autoencoder limits all values to its window.

    Args:
        level_hu: Typical value of the organ in HU.
        window_hu: The generator's window in HU.
        what: What has that value, for the message.

    Raises:
        DiffTumorError: If the value lies outside the window.
    """
    low_hu, high_hu = window_hu
    if not low_hu < level_hu < high_hu:
        raise DiffTumorError(
            f"{what} is at {level_hu:.0f} HU, but this generator represents {low_hu:g} to {high_hu:g} HU only. Train "
            "one on such tissue (difftumor train-autoencoder, then train-diffusion), or check that the image is in HU."
        )


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
