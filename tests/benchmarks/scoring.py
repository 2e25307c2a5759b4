"""Measure what `difftumor score` costs on this machine and write the figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from nnunet_difftumor.errors import DiffTumorError
from nnunet_difftumor.support.files.atomic_files import write_json

_DIFFERENT_CASES = 20
_SPACING_MM = 1.2
_LABELS = {"background": 0, "organ": 1, "tumor": 2}


@dataclass(frozen=True)
class ScoringCost:
    """Cost of scoring a folder.

    Attributes:
        cases: Number of cases.
        side_voxels: Side of the cubic label maps.
        with_probabilities: nnU-Net's probabilities were read too.
        workers: Processes.
        wall_seconds: Time from start to end of the command.
        cpu_seconds_per_case: CPU-seconds of all processes, starting Python included, by case.
        peak_memory_mb: Largest sum of the resident memory of all processes, shared pages counted for each.
    """

    cases: int
    side_voxels: int
    with_probabilities: bool
    workers: int
    wall_seconds: float
    cpu_seconds_per_case: float
    peak_memory_mb: float


def write_benchmark_folders(folder: Path, cases: int, side_voxels: int, *, with_probabilities: bool) -> None:
    """Write label maps with an organ and tumours of 3 to 30 mm, and predictions with errors of every kind.

    Twenty cases are made; the others are links to them.

    Args:
        folder: Folder for `reference`, `prediction` and dataset.json.
        cases: Number of cases.
        side_voxels: Side of the cubic label maps.
        with_probabilities: Write nnU-Net's probabilities too.
    """
    for name in ("reference", "prediction"):
        (folder / name).mkdir(parents=True)
    options = {"channel_names": {"0": "CT"}, "labels": _LABELS, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(options), encoding="utf-8")
    for number in range(cases):
        names = [f"reference/case_{number:04d}.nii.gz", f"prediction/case_{number:04d}.nii.gz"]
        names += [f"prediction/case_{number:04d}.npz"] if with_probabilities else []
        if number >= _DIFFERENT_CASES:
            for name in names:
                made = name.replace(f"{number:04d}", f"{number % _DIFFERENT_CASES:04d}")
                os.link(folder / made, folder / name)
            continue
        rng = np.random.default_rng(number)
        reference, prediction = _draw_case(side_voxels, rng)
        for name, labels in zip(names, (reference, prediction), strict=False):
            nibabel.save(nibabel.Nifti1Image(labels, np.diag([_SPACING_MM] * 3 + [1.0])), folder / name)
        if with_probabilities:
            _write_probabilities(folder / names[2], prediction, rng)


def measure_scoring(folder: Path, output: Path, *, workers: int) -> ScoringCost:
    """Run `difftumor score` on what `write_benchmark_folders` wrote.

    Args:
        folder: The folder.
        output: New folder for the scores.
        workers: Processes.

    Returns:
        What it cost. Memory is 0 where there is no /proc.

    Raises:
        DiffTumorError: If the command fails.
    """
    with_probabilities = any((folder / "prediction").glob("*.npz"))
    words = [sys.executable, "-m", "nnunet_difftumor", "score", "--labels", folder / "dataset.json", "--output", output]
    words += ["--reference", folder / "reference", "--prediction", folder / "prediction", "--workers", workers]
    words += ["--probabilities", folder / "prediction"] if with_probabilities else []
    before, start = _cpu_seconds_of_children(), time.perf_counter()
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen([str(word) for word in words], stdout=log, stderr=log)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(_resident_bytes(pid) for pid in _with_children(process.pid)))
            time.sleep(0.1)
    wall = time.perf_counter() - start
    if process.returncode != 0:
        raise DiffTumorError(f"difftumor score failed: {(folder / 'log.txt').read_text(encoding='utf-8')[-2000:]}")
    references = sorted((folder / "reference").iterdir())
    return ScoringCost(
        cases=len(references),
        side_voxels=int(nibabel.Nifti1Image.from_filename(references[0]).shape[0]),
        with_probabilities=with_probabilities,
        workers=workers,
        wall_seconds=wall,
        cpu_seconds_per_case=(_cpu_seconds_of_children() - before) / len(references),
        peak_memory_mb=peak / 2**20,
    )


def _draw_case(side: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reference and prediction: outlines that wander, a tumour missed, a false alarm, specks."""
    reference, prediction = np.zeros((side,) * 3, np.uint8), np.zeros((side,) * 3, np.uint8)
    middle = np.full(3, side / 2.0)
    _fill_ball(reference, middle, side * 0.36, 1)
    _fill_ball(prediction, middle + rng.uniform(-1, 1, 3), side * 0.36 + rng.uniform(-1, 1), 1)
    for index in range(int(rng.integers(0, 6))):
        place, radius = middle + rng.uniform(-0.25, 0.25, 3) * side, rng.uniform(1.5, 15.0) / _SPACING_MM
        _fill_ball(reference, place, radius, 2)
        if index != 1:
            _fill_ball(prediction, place + rng.uniform(-2, 2, 3), radius * rng.uniform(0.7, 1.2), 2)
    _fill_ball(prediction, middle + rng.uniform(-0.3, 0.3, 3) * side, 4.0, 2)
    for place in rng.integers(2, side - 2, (10, 3)):
        prediction[tuple(place)] = 2
    return reference, prediction


def _fill_ball(labels: NDArray[np.uint8], centre: NDArray[np.float64], radius: float, value: int) -> None:
    axes = [(np.arange(size) - middle) ** 2 for size, middle in zip(labels.shape, centre, strict=True)]
    labels[axes[0][:, None, None] + axes[1][:, None] + axes[2] <= radius**2] = value


def _write_probabilities(path: Path, prediction: NDArray[np.uint8], rng: np.random.Generator) -> None:
    noise = rng.uniform(0.0, 0.3, prediction.shape).astype(np.float32)
    tumor = np.where(prediction == 2, 1.0 - noise, noise * (prediction == 1))
    organ = np.where(prediction == 1, 1.0 - tumor, 0.0)
    probabilities = np.stack([1.0 - tumor - organ, organ, tumor]).astype(np.float32)
    np.savez_compressed(path, probabilities=probabilities.transpose(0, 3, 2, 1))


def _cpu_seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return  # it has ended, or there is no /proc
    for child in children:
        yield from _with_children(int(child))


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where to write the figures")
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--side", type=int, default=128, help="side of the label maps in voxels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--probabilities", action="store_true", help="read nnU-Net's probabilities too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(temporary) / "data"
        write_benchmark_folders(data, options.cases, options.side, with_probabilities=options.probabilities)
        cost = measure_scoring(data, Path(temporary) / "scores", workers=options.workers)
    write_json(options.json, asdict(cost), overwrite=True)
    print(
        f"{cost.cases} cases of {cost.side_voxels} voxels cubed with {cost.workers} processes: {cost.wall_seconds:.0f} "
        f"s, {cost.cpu_seconds_per_case:.3f} CPU-s a case, {cost.peak_memory_mb:.0f} MB; written to {options.json}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
