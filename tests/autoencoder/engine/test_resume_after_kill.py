from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Trains with noise, averaging and checkpoints; at batch STALL_AT it waits to be killed.
KILLABLE_RUN = """
import dataclasses, sys, time
from pathlib import Path
import torch
from autoencoder.engine.settings import RunSettings
from autoencoder.presets import AUTOENCODER_PRESETS, LossWeights
from autoencoder.training import train_autoencoder

torch.set_num_threads(1)
folder, stall_at, resume = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "resume"

class Batches(torch.utils.data.Dataset):
    def __getitem__(self, index):
        if index == stall_at:
            (folder / "stalled").touch()
            time.sleep(300)
        return {"image_hu": torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(index)) * 80}

preset = dataclasses.replace(
    AUTOENCODER_PRESETS["nano"], steps=12, ema_decay=0.9, losses=LossWeights(gradient=0.5, kl=1e-5)
)
heldout = [torch.zeros(1, 1, 16, 16, 16)]
run = RunSettings(seed=7, resume=resume, checkpoint_every=5, evaluate_every=4)
train_autoencoder(Batches(), heldout, preset, folder, run)
"""


def _start(folder: Path, stall_at: int, resume: bool) -> subprocess.Popen[bytes]:
    arguments = [str(folder), str(stall_at), "resume" if resume else "start"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.Popen([sys.executable, "-c", KILLABLE_RUN, *arguments], env=environment)


def _kill_when_stalled(process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(2400):
        if (folder / "stalled").exists():
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (folder / "stalled").unlink()


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL needs POSIX")
def test_a_killed_and_resumed_run_gives_the_bits_of_an_undisturbed_one(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    reference = _start(undisturbed, stall_at=-1, resume=False)
    _kill_when_stalled(_start(killed, stall_at=8, resume=False), killed)
    assert not (killed / "autoencoder").exists()
    assert [path.name for path in (killed / "checkpoints").iterdir()] == ["step_00000005"]
    assert _start(killed, stall_at=-1, resume=True).wait() == 0
    assert reference.wait() == 0
    for name in ("autoencoder/diffusion_pytorch_model.safetensors", "autoencoder/config.json"):
        assert (killed / name).read_bytes() == (undisturbed / name).read_bytes(), name
    for name in ("history.csv", "heldout_history.csv", "heldout.json"):
        assert (killed / name).read_text() == (undisturbed / name).read_text(), name
    events = EventAccumulator(str(killed / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("heldout/mae_hu_all")] == [4, 8, 12]
