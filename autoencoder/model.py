"""The autoencoder as diffusers saves and loads it."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from autoencoder.network import AutoencoderNetwork


class AutoencoderKL3D(AutoencoderNetwork, ModelMixin, ConfigMixin):
    """`AutoencoderNetwork` with `from_pretrained`, `save_pretrained` and a config of what it was made with."""

    __init__ = register_to_config(AutoencoderNetwork.__init__)

    def set_latent_statistics(self, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
        """Store the statistics in the config too (see `AutoencoderNetwork.set_latent_statistics`)."""
        super().set_latent_statistics(mean, std)
        self.register_to_config(latents_mean=self.latents_mean, latents_std=self.latents_std)
