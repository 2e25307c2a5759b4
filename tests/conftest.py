"""Fixtures that several test folders share."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

SLOW_TEST_S = 3600
ROOT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time than pyproject.toml gives all, unless they say how much they need."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TEST_S))


@pytest.fixture(autouse=True)
def _nothing_stays_on_sigterm() -> Iterator[None]:
    """No code leaves a handler of SIGTERM behind: workers of later process pools inherit it, and may then never end."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    after = signal.signal(signal.SIGTERM, before)
    assert after == before


@pytest.fixture(scope="session")
def load_file() -> Callable[[str], ModuleType]:
    """Import a Python file of the checkout that is in no package: `load_file("scripts/tabulate_study.py")`."""

    def load(path: str) -> ModuleType:
        name = ".".join(Path(path).with_suffix("").parts)
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, ROOT / path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        return sys.modules[name]

    return load


@pytest.fixture(scope="session")
def official_format() -> Path:
    """Files of the structure of the published weights, whose weights are random."""
    folder = Path(os.environ.get("DIFFTUMOR_REAL_CT", ROOT.parent / "shared" / "data")) / "official_format"
    if not folder.is_dir():
        pytest.skip("DIFFTUMOR_REAL_CT names no folder with official_format/")
    return folder


@pytest.fixture(scope="session")
def official(official_format: Path) -> dict[str, Tensor]:
    """Inputs and outputs of the authors' own networks with these weights."""
    import numpy as np
    import torch

    with np.load(official_format / "io.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture(scope="session")
def nano_generator_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete generator folder of the smallest size with untrained weights: for plumbing, not for looks."""
    import torch

    from autoencoder.intensity import ABDOMEN_WINDOW
    from autoencoder.presets import AUTOENCODER_PRESETS
    from diffusion.generator.info import GeneratorInfo, TrainingTumor
    from diffusion.generator.provenance import Provenance
    from diffusion.generator_folder import save_generator
    from diffusion.pipeline import make_pipeline
    from diffusion.presets import DIFFUSION_PRESETS

    torch.set_num_threads(1)
    rng = torch.Generator().manual_seed(0)
    autoencoder = AUTOENCODER_PRESETS["nano"].build_model(ABDOMEN_WINDOW, rng).eval()
    denoiser = DIFFUSION_PRESETS["nano"].build_model(autoencoder.config["latent_channels"], rng).eval()
    pipeline = make_pipeline(autoencoder, denoiser)
    tumors = tuple(TrainingTumor(radius_mm=8.0, contrast_hu=hu, heterogeneity_hu=8.0) for hu in (-40.0, -30.0))
    info = GeneratorInfo(
        roi_sides=(16, 32),
        margin_voxels=6,
        training_tumors=tumors,
        preset="nano",
        data_note="untrained weights for tests",
    )
    folder = tmp_path_factory.mktemp("generator") / "generator"
    save_generator(folder, pipeline, info, Provenance(diffusion=(), autoencoder=()))
    return folder
