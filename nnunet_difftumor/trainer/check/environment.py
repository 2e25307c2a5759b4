"""The environment of a training: installation, nnU-Net's folders and variables, what the machine has to give."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
from importlib import metadata
from pathlib import Path

from nnunet_difftumor import DISTRIBUTION
from nnunet_difftumor.errors import ConfigurationError
from nnunet_difftumor.own_packages import require_own_packages
from nnunet_difftumor.trainer.check.findings import Check, Finding, fault, ok, warning
from nnunet_difftumor.trainer.discovery import EXT_TRAINER_VARIABLE, ext_trainer_folder

RESULTS, WORKERS = "nnUNet_results", "nnUNet_n_proc_DA"
SHOWN_PACKAGES = ("torch", "nnunetv2", "diffusers")
LEAST_DISK_GB, ENOUGH_DISK_GB = 1.0, 5.0
"""Free space that a training's checkpoints do not fit into, and that they surely fit into."""
WORKER_GB = 1.0
"""Memory of a process that makes tumours with preset base (docs/reference/performance.md)."""
_GB = 1e9


def check_packages(_: object) -> Finding:
    """Look for packages of other distributions under the names of ours."""
    require_own_packages()
    return ok("autoencoder and diffusion are those of this package")


def check_versions(_: object) -> Finding:
    """Compare what is installed with what this package declares to need."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    about = metadata.metadata(DISTRIBUTION)
    python, needed = platform.python_version(), about["Requires-Python"]
    if not SpecifierSet(needed).contains(python):
        return fault(f"Python {python}, but {needed} is needed: make a virtual environment with another Python.")
    wrong: dict[Requirement, str] = {}
    for each in map(Requirement, metadata.requires(DISTRIBUTION) or ()):
        is_extra = each.marker is not None and not each.marker.evaluate({"extra": ""})
        version = _version_of(each.name)
        if not is_extra and (version is None or not each.specifier.contains(version, prereleases=True)):
            wrong[each] = f"{each.name} {version or 'is missing'} ({each.specifier} is needed)"
    if wrong:
        names = shlex.join(f"{each.name}{each.specifier}" for each in wrong)
        return fault(f"{', '.join(wrong.values())}: pip install --upgrade {names}")
    shown = [f"{name} {_version_of(name)}" for name in SHOWN_PACKAGES]
    return ok(", ".join([f"Python {python}", *shown, f"{DISTRIBUTION} {about['Version']}"]))


def check_raw(_: object) -> Finding:
    """Look at nnUNet_raw."""
    return _check_folder("nnUNet_raw", os.R_OK)


def check_preprocessed(_: object) -> Finding:
    """Look at nnUNet_preprocessed."""
    return _check_folder("nnUNet_preprocessed", os.R_OK | os.W_OK)


def check_results(_: object) -> Finding:
    """Look at nnUNet_results."""
    return _check_folder(RESULTS, os.R_OK | os.W_OK)


def check_ext_trainer(_: object) -> Finding:
    """Look whether nnU-Net finds the trainers of this package."""
    own, given = ext_trainer_folder(), os.environ.get(EXT_TRAINER_VARIABLE, "")
    command = f"export {EXT_TRAINER_VARIABLE}=$(difftumor ext-trainer)"
    if not given:
        return fault(f"not set, so that nnU-Net does not find this package's trainers: {command}")
    folders = [Path(folder).resolve() for folder in given.split(os.pathsep) if folder.strip()]
    if own not in folders:
        return fault(
            f"{given} does not hold this package's trainers: {command} (to keep the others: {command}"
            f"{os.pathsep}${EXT_TRAINER_VARIABLE})"
        )
    return ok(given)


def check_gpu(_: object) -> Finding:
    """Look for a GPU that PyTorch can use."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return ok(f"{gpu.name}, {gpu.total_memory / _GB:.0f} GB")
    if torch.version.cuda is None and torch.version.hip is None:
        why = f"PyTorch {torch.__version__} is built without CUDA; if there is a GPU, see pytorch.org/get-started"
    else:
        why = "if there is one, nvidia-smi must show it, with a driver new enough for CUDA " + str(torch.version.cuda)
    return warning(f"none that PyTorch can use ({why}). On a CPU (-device cpu) train small plans only.")


def check_disk(_: object) -> Finding:
    """Look whether checkpoints fit into nnUNet_results."""
    folder = _folder_of(RESULTS)
    free_gb = shutil.disk_usage(folder).free / _GB
    text = f"{free_gb:.1f} GB free in nnUNet_results ({folder})"
    if free_gb >= ENOUGH_DISK_GB:
        return ok(text)
    command = "Free some (du -sh $nnUNet_results/*), or set nnUNet_results to another disk."
    if free_gb >= LEAST_DISK_GB:
        return warning(f"{text}; checkpoints may take {ENOUGH_DISK_GB:g} GB. {command}")
    return fault(f"{text}, too little for the checkpoints. {command}")


def check_workers(_: object) -> Finding:
    """Look at the number of processes that make batches, and at the memory and CPU cores that they share."""
    from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

    try:
        workers = get_allowed_n_proc_DA()
    except ValueError:
        given = os.environ.get(WORKERS)
        return fault(f"{WORKERS} must be a whole number, got {given!r}: export {WORKERS}=8")
    cores, memory_gb = usable_cores(), free_memory_gb()
    fitting = workers if memory_gb is None else int(memory_gb / WORKER_GB) - 1
    memory = "" if memory_gb is None else f", {memory_gb:.1f} GB of memory free"
    text = f"{workers} processes make batches; {cores} CPU cores{memory}"
    if min(cores, fitting) >= workers:
        return ok(text)
    fewer = max(1, min(cores, fitting))
    return warning(f"{text}; each takes a core and about {WORKER_GB:g} GB: export nnUNet_n_proc_DA={fewer}")


def usable_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory_gb() -> float | None:
    """Return the memory that new processes can get, in GB; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 / _GB for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None


def _check_folder(variable: str, mode: int) -> Finding:
    folder = _folder_of(variable)
    if not os.access(folder, mode):
        need, fix = "written to" if mode & os.W_OK else "read", shlex.join(["chmod", "u+rwX", str(folder)])
        return fault(f"{folder} cannot be {need}: {fix}, or name another folder.")
    return ok(str(folder))


def _folder_of(variable: str) -> Path:
    value = os.environ.get(variable, "")
    if not value:
        raise ConfigurationError(
            f"{variable} is not set: export {variable}=/path/to/{variable} (in ~/.bashrc, to keep it)"
        )
    if not Path(value).is_dir():
        made = shlex.join(["mkdir", "-p", value])
        raise ConfigurationError(f"{value} is no folder. Mount its disk, correct {variable}, or make it: {made}")
    return Path(value)


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


NEEDED_CHECKS = (
    Check("packages", check_packages),
    Check("nnUNet_raw", check_raw),
    Check("nnUNet_preprocessed", check_preprocessed),
    Check("nnUNet_results", check_results),
)
"""Without these no data set can be looked at."""
ENVIRONMENT_CHECKS = (
    *NEEDED_CHECKS,
    Check("nnUNet_extTrainer", check_ext_trainer),
    Check("disk", check_disk),
    Check("workers", check_workers),
    Check("versions", check_versions),
    Check("GPU", check_gpu),
)
