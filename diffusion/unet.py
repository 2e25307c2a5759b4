"""The denoiser as diffusers saves and loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin

from diffusion.network import FIXED_ENTRIES, DenoisingNetwork, free_entries
from diffusion.texture import TextureProfile


class DenoisingUNet3D(DenoisingNetwork, ModelMixin, ConfigMixin):
    """`DenoisingNetwork` with `from_pretrained`, `save_pretrained` and a config of what it was made with."""

    __init__ = register_to_config(DenoisingNetwork.__init__)

    def register_to_config(self, **entries: Any) -> None:
        """Store entries in the config, beside those that have one value."""
        super().register_to_config(**{**FIXED_ENTRIES, **entries})

    @classmethod
    def extract_init_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> Any:
        """Leave out of a config what has one value (see `free_entries`)."""
        return super().extract_init_dict(free_entries(config_dict, cls.__name__), **kwargs)

    def set_differences(
        self, std: Sequence[float] | None, floor: Sequence[float] | None, per_hu: Sequence[float] | None
    ) -> None:
        """Store the deviations in the config too (see `DenoisingNetwork.set_differences`)."""
        super().set_differences(std, floor, per_hu)
        names = ("difference_std", "difference_floor", "difference_per_hu")
        self.register_to_config(**{name: getattr(self, name) for name in names})

    def set_texture_share(self, texture_share: float) -> None:
        """Store the share in the config too (see `DenoisingNetwork.set_texture_share`)."""
        super().set_texture_share(texture_share)
        self.register_to_config(texture_share=self.texture_share)

    def set_texture_profiles(self, profiles: Sequence[TextureProfile]) -> None:
        """Store the profiles in the config too (see `DenoisingNetwork.set_texture_profiles`)."""
        super().set_texture_profiles(profiles)
        self.register_to_config(texture_profiles=json.loads(json.dumps([asdict(profile) for profile in profiles])))
