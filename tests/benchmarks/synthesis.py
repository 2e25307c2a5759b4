"""Measure what a synthetic tumour costs on this machine's CPU and write the figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before numpy is imported: threads that wait for one another cost CPU-seconds too
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(_name, "1")

import numpy as np

from nnunet_difftumor.support.files.atomic_files import write_json
from nnunet_difftumor.synthesis.host import Host
from nnunet_difftumor.synthesis.synthesizer import TumorSynthesizer
from nnunet_difftumor.synthesis.tissue.diffusion import DiffusionTissue
from nnunet_difftumor.tumor.spec import TumorSpec

HOST_SPACING_MM = (1.5, 1.5, 1.5)
FULL_PATCH_SIDE = 96
REFERENCE_RADIUS_MM = 8.0
PUBLISHED = "published"
"""Stands for a preset: the networks of the weights that DiffTumor's authors publish."""
_PEAK_MEMORY = "--peak-memory"
"""First argument of the process that `peak_memory_mb` starts; not for users."""


@dataclass(frozen=True)
class SynthesisCost:
    """Cost of one setting.

    Attributes:
        preset: Preset of autoencoder and denoiser.
        radius_mm: Radius of every tumour in mm.
        batch: Tumours that are made together.
        threads: Threads of torch.
        cpu_seconds_per_tumor: Median CPU-seconds of a tumour: drawing, network, blending and all.
        lowest: Smallest of the repetitions.
        highest: Largest of the repetitions.
        repetitions: Number of measured repetitions, after one warm-up.
    """

    preset: str
    radius_mm: float
    batch: int
    threads: int
    cpu_seconds_per_tumor: float
    lowest: float
    highest: float
    repetitions: int


def untrained_tissue(preset: str, *, steps: int = 4, sides: tuple[int, ...] | None = None) -> DiffusionTissue:
    """Make an untrained generator of a preset's size; it costs what a trained one does.

    Args:
        preset: Name of the preset in both stages.
        steps: Denoising steps T.
        sides: Sides of the regions of interest; those of the preset by default.

    Returns:
        The generator.
    """
    import torch

    from autoencoder.intensity import ABDOMEN_WINDOW
    from autoencoder.presets import AUTOENCODER_PRESETS
    from diffusion.generator.info import GeneratorInfo
    from diffusion.generator.provenance import Provenance
    from diffusion.generator_folder import LoadedGenerator

    if preset == PUBLISHED:
        return untrained_published()
    from diffusion.pipeline import make_pipeline
    from diffusion.presets import DIFFUSION_PRESETS
    from diffusion.texture import NORMAL_SCORES, TEXTURE_SCALES_VOXELS, TextureProfile

    rng = torch.Generator().manual_seed(0)
    autoencoder = AUTOENCODER_PRESETS[preset].build_model(ABDOMEN_WINDOW, rng)
    denoiser = DIFFUSION_PRESETS[preset].build_model(autoencoder.config["latent_channels"], rng)
    even = (1.0 / len(TEXTURE_SCALES_VOXELS),) * len(TEXTURE_SCALES_VOXELS)
    profile = TextureProfile(heterogeneity_hu=8.0, scale_shares=even, quantiles=NORMAL_SCORES)
    denoiser.set_texture_profiles([profile])  # a trained generator draws texture too
    denoiser.set_texture_share(1.0)
    pipeline = make_pipeline(autoencoder.eval(), denoiser.eval())
    info = GeneratorInfo(roi_sides=sides or DIFFUSION_PRESETS[preset].crop_sides, preset=preset)
    return DiffusionTissue(LoadedGenerator(pipeline, info, Provenance(diffusion=(), autoencoder=())), steps=steps)


def untrained_published() -> DiffusionTissue:
    """Make the published networks with random weights; their codes are spread, so that no look-up ends early."""
    import torch

    from autoencoder.published.network import PublishedAutoencoder
    from diffusion.generator.info import GeneratorInfo
    from diffusion.generator.provenance import Provenance
    from diffusion.generator_folder import LoadedGenerator
    from diffusion.published.network import PublishedDenoiser
    from diffusion.published.sampler import PublishedSampler

    autoencoder = PublishedAutoencoder().eval()
    autoencoder.codebook.embeddings.normal_(generator=torch.Generator().manual_seed(0))
    sampler = PublishedSampler(autoencoder, PublishedDenoiser().eval())
    info = GeneratorInfo(roi_sides=(FULL_PATCH_SIDE,), spacing_range_mm=(1.0, 1.0), margin_voxels=8, preset=PUBLISHED)
    return DiffusionTissue(LoadedGenerator(sampler, info, Provenance(diffusion=(), autoencoder=(), is_complete=False)))


@contextmanager
def one_hot_lookup() -> Iterator[None]:
    """Look codes up by all distances at once and a one-hot tensor, which is how the definition reads."""
    import torch
    from torch.nn import functional

    from autoencoder.published.network import Codebook

    def nearest(self: Codebook, vectors: torch.Tensor) -> torch.Tensor:
        codes = self.embeddings
        squares = vectors.square().sum(1, keepdim=True) - 2 * vectors @ codes.T + codes.T.square().sum(0, keepdim=True)
        indices = squares.argmin(dim=1)
        one_hot = functional.one_hot(indices, len(codes)).to(codes.dtype)
        return (one_hot @ torch.arange(len(codes), dtype=codes.dtype)).round().long()

    kept = Codebook.nearest
    Codebook.nearest = nearest
    try:
        yield
    finally:
        Codebook.nearest = kept


def published_benchmark(repetitions: int) -> dict[str, Any]:
    """Measure a tumour of the published networks, and its look-up of codes, beside those of a one-hot tensor.

    Returns:
        Median, lowest and highest CPU-seconds by what was measured, and `peak_rss_mb` of a process that makes one.
    """
    import torch

    torch.set_num_threads(1)
    codebook: Any = untrained_published()._loaded.sampler.autoencoder
    codebook = codebook.codebook
    vectors = torch.randn((FULL_PATCH_SIDE // 4) ** 3, 8, generator=torch.Generator().manual_seed(1))

    def look_up() -> float:
        started = time.process_time()
        codebook.nearest(vectors)
        return time.process_time() - started

    def synthesize() -> float:
        return measure_cost(PUBLISHED, REFERENCE_RADIUS_MM, 1, repetitions=1).cpu_seconds_per_tumor

    look_up()
    seconds: dict[str, list[float]] = {"look-up": [], "tumour": [], "one-hot look-up": [], "one-hot tumour": []}
    for _ in range(repetitions):  # in turns
        seconds["look-up"].append(look_up())
        seconds["tumour"].append(synthesize())
        with one_hot_lookup():
            seconds["one-hot look-up"].append(look_up())
            seconds["one-hot tumour"].append(synthesize())
    figures = {name: [statistics.median(each), min(each), max(each)] for name, each in seconds.items()}
    return {"cpu_seconds": figures, "peak_rss_mb": peak_memory_mb(PUBLISHED, [REFERENCE_RADIUS_MM])}


def measure_cost(
    preset: str,
    radius_mm: float,
    batch: int,
    *,
    threads: int = 1,
    repetitions: int = 5,
    sides: tuple[int, ...] | None = None,
) -> SynthesisCost:
    """Measure the whole synthesis of tumours of one size.

    Args:
        preset: Name of the preset.
        radius_mm: Radius in mm.
        batch: Tumours that are made together.
        threads: Threads of torch.
        repetitions: Measured repetitions, after one warm-up.
        sides: Sides of the regions of interest; those of the preset by default.

    Returns:
        The cost.
    """
    import torch

    torch.set_num_threads(threads)
    synthesizer = TumorSynthesizer(untrained_tissue(preset, sides=sides), max_attempts=1)
    host, specs = _host_with_room(radius_mm, batch)
    seconds = []
    for repetition in range(repetitions + 1):
        started = time.process_time()
        result = synthesizer.synthesize(host, specs)
        if repetition > 0:
            seconds.append((time.process_time() - started) / batch)
        unplaced = {reason: count for reason, count in result.rejected.items() if reason != "invisible"}
        if unplaced:
            raise RuntimeError(f"The benchmark's tumours did not all find room: {unplaced}.")
    return SynthesisCost(
        preset, radius_mm, batch, threads, statistics.median(seconds), min(seconds), max(seconds), repetitions
    )


def peak_memory_mb(preset: str, radii_mm: Sequence[float]) -> float:
    """Peak resident memory of a new process that makes tumours in regions of interest and nothing else.

    Args:
        preset: Name of the preset.
        radii_mm: Radii of the tumours, made one after another.

    Returns:
        Peak resident set size in MB, Python and torch included.
    """
    words = [sys.executable, str(Path(__file__).resolve()), _PEAK_MEMORY, preset, *map(str, radii_mm)]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return float(json.loads(printed.splitlines()[-1])["peak_rss_mb"])


def print_peak_memory(preset: str, radii_mm: Sequence[float]) -> None:
    """Make one tumour of each radius and print this process's peak memory as JSON.

    Args:
        preset: Name of the preset.
        radii_mm: Radii in mm.
    """
    import torch

    torch.set_num_threads(1)
    synthesizer = TumorSynthesizer(untrained_tissue(preset), max_attempts=1)
    for radius_mm in radii_mm:
        synthesizer.synthesize(*_host_with_room(radius_mm, 1))
    print(json.dumps({"peak_rss_mb": _peak_rss_kb() / 1024.0}))


def _peak_rss_kb() -> int:
    """Peak resident memory since this program started, in KiB.

    `getrusage` counts the memory of the process that started this one; the kernel's own mark does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def full_benchmark(presets: Sequence[str], radii_mm: Sequence[float], repetitions: int) -> dict[str, Any]:
    """Measure every preset, size and batch, the full patch and the memory.

    Args:
        presets: Names of the presets.
        radii_mm: Radii in mm.
        repetitions: Repetitions of every measurement.

    Returns:
        Plain values for a JSON file: `rows`, `full_patch_cpu_seconds` by preset, `peak_rss_mb`.
    """
    rows = []
    full_patch = {}
    for preset in presets:
        for radius_mm in radii_mm:
            for batch in (1, 4):
                rows.append(vars(measure_cost(preset, radius_mm, batch, repetitions=repetitions)))
        whole = measure_cost(preset, REFERENCE_RADIUS_MM, 1, repetitions=repetitions, sides=(FULL_PATCH_SIDE,))
        full_patch[preset] = whole.cpu_seconds_per_tumor
    return {
        "rows": rows,
        "full_patch_cpu_seconds": full_patch,
        "full_patch_side_voxels": FULL_PATCH_SIDE,
        "peak_rss_mb": peak_memory_mb(presets[-1], radii_mm),
        "peak_rss_preset": presets[-1],
        "host_spacing_mm": list(HOST_SPACING_MM),
    }


def _host_with_room(radius_mm: float, count: int) -> tuple[Host, list[TumorSpec]]:
    """Soft tissue with noise, long enough for tumours side by side."""
    pitch_mm = 2.0 * 1.6 * radius_mm + 20.0
    shape = tuple(
        int(np.ceil(extent_mm / spacing))
        for extent_mm, spacing in zip((pitch_mm * count, pitch_mm, pitch_mm), HOST_SPACING_MM, strict=True)
    )
    rng = np.random.default_rng(0)
    image = rng.normal(60.0, 12.0, shape).astype(np.float32)
    everywhere = np.ones(shape, dtype=bool)
    specs = [
        TumorSpec(
            centre_mm=(pitch_mm * (index + 0.5), 0.5 * pitch_mm, 0.5 * pitch_mm),
            radius_mm=radius_mm,
            axis_ratios=(1.0, 0.85, 0.7),
            roughness=0.1,
            seed=index,
            contrast_hu=-40.0,
        )
        for index in range(count)
    ]
    return Host(image, HOST_SPACING_MM, everywhere, everywhere, everywhere), specs


def main() -> int:
    """Run the benchmark."""
    if sys.argv[1:2] == [_PEAK_MEMORY]:
        preset, *radii_mm = sys.argv[2:]
        print_peak_memory(preset, [float(radius_mm) for radius_mm in radii_mm])
        return 0
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the figures")
    parser.add_argument("--presets", nargs="+", default=["tiny", "base"], help="presets, the last one for memory")
    parser.add_argument("--radii-mm", nargs="+", type=float, default=[4.0, REFERENCE_RADIUS_MM, 16.0, 40.0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--published", action="store_true", help="measure the published networks, and nothing else")
    options = parser.parse_args()
    if options.published:
        figures = published_benchmark(options.repetitions)
        write_json(options.json, figures, overwrite=True)
        for name, (middle, low, high) in figures["cpu_seconds"].items():
            print(f"{name:16s}{middle:8.2f} ({low:.2f}-{high:.2f}) CPU-s")
        print(f"peak memory: {figures['peak_rss_mb']:.0f} MB; written to {options.json}")
        return 0
    figures = full_benchmark(options.presets, options.radii_mm, options.repetitions)
    write_json(options.json, figures, overwrite=True)
    print(f"{'preset':8s}{'radius mm':>10s}{'batch':>6s}{'CPU-s per tumour, median (range)':>36s}")
    for row in figures["rows"]:
        cost = f"{row['cpu_seconds_per_tumor']:.3f} ({row['lowest']:.3f}-{row['highest']:.3f})"
        print(f"{row['preset']:8s}{row['radius_mm']:10.0f}{row['batch']:6d}{cost:>36s}")
    for preset, seconds in figures["full_patch_cpu_seconds"].items():
        print(f"{preset}: the same on a full patch of {figures['full_patch_side_voxels']} voxels: {seconds:.2f} CPU-s")
    print(f"peak memory of {figures['peak_rss_preset']}: {figures['peak_rss_mb']:.0f} MB; written to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
