"""The diffusers pipeline around autoencoder, denoiser and scheduler."""

import os
from pathlib import Path
from typing import Any, Self

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging

from autoencoder.model import AutoencoderKL3D
from diffusion.generator.folder_check import LOCAL_SAFETENSORS, check_component_classes
from diffusion.sampling import TumorSampler
from diffusion.unet import DenoisingUNet3D


class TumorDiffusionPipeline(TumorSampler, DiffusionPipeline):
    """`TumorSampler` with `from_pretrained`, `save_pretrained` and `to`."""

    autoencoder: AutoencoderKL3D
    denoiser: DenoisingUNet3D

    def __init__(self, autoencoder: AutoencoderKL3D, denoiser: DenoisingUNet3D, scheduler: Any) -> None:
        DiffusionPipeline.__init__(self)
        self.register_modules(autoencoder=autoencoder, denoiser=denoiser, scheduler=scheduler)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a pipeline from a local folder that names our own classes and holds no pickle, in evaluation mode.

        diffusers imports whatever module `model_index.json` names, so the file is checked first.

        Raises:
            GeneratorFolderError: If the folder is incomplete, names other classes or holds pickle files.
        """
        folder = Path(pretrained_model_name_or_path)
        check_component_classes(folder)
        was_enabled = diffusers_logging.is_progress_bar_enabled()
        diffusers_logging.disable_progress_bar()
        try:
            return super().from_pretrained(str(folder), **{**kwargs, **LOCAL_SAFETENSORS})
        finally:
            if was_enabled:
                diffusers_logging.enable_progress_bar()


def make_pipeline(autoencoder: AutoencoderKL3D, denoiser: DenoisingUNet3D) -> TumorDiffusionPipeline:
    """Combine the two stages with the scheduler of the denoiser's objective."""
    return TumorDiffusionPipeline(autoencoder, denoiser, denoiser.objective.make_scheduler())
