"""The training engine of both generator stages: resumable to the bit, on one device or many."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from autoencoder.engine import cpu_bfloat16, run_folder
from autoencoder.engine.files import write_json
from autoencoder.engine.records import TrainingRecord
from autoencoder.engine.settings import FitSettings, FitStep

ModelT = TypeVar("ModelT", bound=nn.Module)
LossFunction = Callable[[nn.Module, dict[str, Tensor], torch.Generator], dict[str, Tensor]]
Evaluate = Callable[[int, TrainingRecord], None]
"""Measures held-out data after a step and writes to the record."""


_NARROW_CHANNELS = 48
"""CPU-seconds of a step, plain over channels last, on an EPYC with AVX-512, float32: widest layer 48 (autoencoder
`tiny`) 1.20, 64 (denoiser `tiny`) 0.98 to 1.02, 96 (autoencoder `base`) 0.95, 192 (denoiser `base`) 0.81."""


class NonFiniteLossError(ValueError):
    """The loss or the gradient became infinite or NaN."""


class Fit(Generic[ModelT]):
    """A training run as a generator of steps; killed and resumed it gives the same weights.

    Nothing random is kept between steps: batch and noise are functions of the step's number, so a
    checkpoint holds weights, optimiser and averaged weights only. On the CPU, with the same number
    of threads, an interrupted run ends with the same bits as an undisturbed one. When the loop has
    ended, the model holds the averaged weights and is in evaluation mode. `accelerator` knows the
    model's device, and whether this process is the one that writes.

    Args:
        model: Model to train. Only parameters are averaged, so it should have no trained buffers.
        batches: Map-style data set whose item i is a whole batch, the same whenever it is asked for.
            Process r of n takes the batches r, n + r, 2n + r, ...
        loss_function: Gets the model (call it, so that precision and gradient averaging work), a
            batch on the model's device and a generator there; returns named scalars with "total".
        output_folder: Receives `fit.json` and `checkpoints/`.
        resume: Go on from the newest checkpoint in `output_folder`; from the start if there is none.
        identity: JSON content that must be the same when the run is resumed (preset, data ...).

    Raises:
        OutputFolderExistsError: If the folder is not empty and `resume` is False.
        ResumeError: If `resume` is True and the folder belongs to another run.
    """

    def __init__(
        self,
        model: ModelT,
        batches: Dataset[dict[str, Tensor]],
        loss_function: LossFunction,
        settings: FitSettings,
        output_folder: Path,
        resume: bool = False,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.settings = settings
        self.output_folder = Path(output_folder)
        self.steps_done = 0
        self._batches = batches
        self._loss_function = loss_function
        self.accelerator = _make_accelerator(settings.mixed_precision)
        self._checkpoints = run_folder.CheckpointFolder(self.output_folder / "checkpoints")
        self._claim_folder(resume, identity or {})
        if self.accelerator.device.type == "cpu" and _is_narrow(model):
            model.to(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.AdamW(_decay_groups(model, settings.weight_decay), betas=settings.betas)
        self._wrapped, self._optimizer = self.accelerator.prepare(model, optimizer)
        # EMAModel's decay is 0 at the first update and then at most (1 + n) / (10 + n): the random
        # start is forgotten at once and a short run averages its last tenth.
        decay = settings.ema_decay
        self._average = None if decay is None else EMAModel(self.model.parameters(), decay=decay)
        self._is_between_steps = True
        self._is_finished = False
        if resume:
            self._load_newest_checkpoint()

    def __iter__(self) -> Iterator[FitStep]:
        """Train and yield every finished step; a loop left early can be entered again.

        Raises:
            NonFiniteLossError: If the loss or the gradient becomes infinite or NaN.
        """
        self.model.train()
        for batch in self._loader():
            step = self._update(batch)
            yield step
            if step.checkpoint_follows:
                self.save_checkpoint()
        self._finish()

    @contextmanager
    def averaged_model(self) -> Iterator[ModelT]:
        """Lend the model with its averaged weights, in evaluation mode; training weights return after."""
        if self._is_finished:
            yield self.model
            return
        average = self._average
        self.model.eval()
        if average is not None:
            average.store(self.model.parameters())
            average.copy_to(self.model.parameters())
        try:
            yield self.model
        finally:
            if average is not None:
                average.restore(self.model.parameters())
            self.model.train()

    @contextmanager
    def saved_on_interrupt(self) -> Iterator[None]:
        """Write a checkpoint if the block is left by Ctrl-C between two steps.

        In the middle of a step, or with several processes, the last regular checkpoint stands.
        """
        try:
            yield
        except KeyboardInterrupt:
            if self._is_between_steps and not self._is_finished and self.accelerator.num_processes == 1:
                self.save_checkpoint()
            raise

    def save_checkpoint(self) -> None:
        """Write the state after the last finished step, under a temporary name and then renamed."""
        target = self._checkpoints.path_of(self.steps_done)
        if target.exists():
            return
        temporary = target.with_name(f".unfinished_{target.name}")
        if self.accelerator.is_main_process:
            self._checkpoints.clear()
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary), safe_serialization=True)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self._average is not None:
                run_folder.save_averaged_weights(self._average, self.model, temporary)
            self._checkpoints.publish(temporary, target, keep=self.settings.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _update(self, batch: dict[str, Tensor]) -> FitStep:
        self._is_between_steps = False
        batch = {name: value.to(self.accelerator.device, non_blocking=True) for name, value in batch.items()}
        losses = self._loss_function(self._wrapped, batch, self._noise_generator())
        self.accelerator.backward(losses["total"])
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        values = self._checked_values(losses, norm)
        learning_rate = self.settings.learning_rate_at(self.steps_done)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._average is not None and not self.accelerator.optimizer_step_was_skipped:
            self._average.step(self.model.parameters())
        self.steps_done += 1
        self._is_between_steps = True
        gradient_norm = values.pop("gradient_norm")
        due = self.steps_done % self.settings.checkpoint_every == 0 or self.steps_done == self.settings.steps
        return FitStep(self.steps_done, values, learning_rate, gradient_norm, checkpoint_follows=due)

    def _checked_values(self, losses: dict[str, Tensor], norm: Tensor | None) -> dict[str, float]:
        """Return the losses and the gradient norm as numbers, averaged over the processes."""
        named = {name: value.detach().float() for name, value in losses.items()}
        named["gradient_norm"] = torch.as_tensor(norm, device=self.accelerator.device).float()
        stacked = torch.stack([value.to(self.accelerator.device) for value in named.values()])
        mean = torch.as_tensor(self.accelerator.reduce(stacked, reduction="mean"))
        values = dict(zip(named, mean.tolist(), strict=True))
        watched = dict(values)
        if self.settings.mixed_precision == "fp16":
            del watched["gradient_norm"]  # the gradient scaler skips such a step and lowers the scale
        if not all(math.isfinite(value) for value in watched.values()):
            raise NonFiniteLossError(
                f"Step {self.steps_done + 1} gave {values}. Look for NaN in the images, or lower "
                f"learning_rate (now {self.settings.learning_rate}). The checkpoints before it are intact."
            )
        return values

    def _noise_generator(self) -> torch.Generator:
        entropy = (self.settings.seed, self.steps_done, self.accelerator.process_index)
        seed = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
        return torch.Generator(device=self.accelerator.device).manual_seed(seed)

    def _loader(self) -> DataLoader[dict[str, Tensor]]:
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        indices = range(self.steps_done * processes + rank, self.settings.steps * processes, processes)
        return DataLoader(
            self._batches,
            batch_size=None,
            sampler=indices,
            num_workers=self.settings.workers,
            pin_memory=self.accelerator.device.type == "cuda",
            generator=torch.Generator(),  # otherwise the loader draws from torch's global generator
        )

    def _claim_folder(self, resume: bool, identity: Mapping[str, Any]) -> None:
        shapes = [(name, list(parameter.shape)) for name, parameter in self.model.named_parameters()]
        manifest = {
            "settings": asdict(self.settings),
            "processes": self.accelerator.num_processes,
            "model": hashlib.sha256(json.dumps(shapes).encode()).hexdigest(),
            "identity": dict(identity),
        }
        run_folder.check_run_folder(self.output_folder, json.loads(json.dumps(manifest)), resume)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.output_folder.mkdir(parents=True, exist_ok=True)
            write_json(self.output_folder / run_folder.SETTINGS_FILE, manifest)
        self.accelerator.wait_for_everyone()

    def _load_newest_checkpoint(self) -> None:
        step = max(self._checkpoints.steps(), default=None)
        if step is None:
            return
        folder = self._checkpoints.path_of(step)
        self.accelerator.load_state(str(folder))
        if self._average is not None:
            run_folder.load_averaged_weights(self._average, self.model, folder)
        self.steps_done = step

    def _finish(self) -> None:
        if self._average is not None:
            self._average.copy_to(self.model.parameters())
        self.accelerator.unwrap_model(self._wrapped, keep_fp32_wrapper=False)
        self.model.to(memory_format=torch.contiguous_format)
        self.model.eval()
        self._is_finished = True


def run_fit(
    fit: Fit[Any], heading: str, evaluate: Evaluate | None, evaluate_every: int, *, show_progress: bool
) -> None:
    """Train to the end; `evaluate`, if any, is called every `evaluate_every` steps and after the last one."""
    if not fit.accelerator.is_main_process:
        for _ in fit:
            pass
        return
    total = fit.settings.steps
    progress = tqdm(total=total, initial=fit.steps_done, desc=heading, disable=not show_progress)
    with fit.saved_on_interrupt(), progress, TrainingRecord(fit.output_folder, fit.steps_done) as record:

        def evaluate_if_due(index: int) -> None:
            if evaluate is not None and (index % evaluate_every == 0 or index == total):
                evaluate(index, record)

        if fit.steps_done > 0 and not record.has_heldout(fit.steps_done):  # it was interrupted
            evaluate_if_due(fit.steps_done)
        for step in fit:
            record.add_step(step)
            progress.update()
            progress.set_postfix(loss=f"{step.losses['total']:.4f}", refresh=False)
            evaluate_if_due(step.index)


def _make_accelerator(mixed_precision: str) -> Accelerator:
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != mixed_precision:
        AcceleratorState._reset_state()  # a process may train one stage after the other
    accelerator = Accelerator(mixed_precision=mixed_precision)
    if mixed_precision == "bf16" and accelerator.device.type == "cpu" and not cpu_bfloat16.is_sound():
        warnings.warn(cpu_bfloat16.UNSOUND, stacklevel=2)
        return _make_accelerator("no")
    return accelerator


def _is_narrow(model: nn.Module) -> bool:
    """Whether a CPU convolves faster with the channels of a voxel side by side in memory, which wide layers do not."""
    widths = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv3d)]
    return max(widths, default=0) <= _NARROW_CHANNELS


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
