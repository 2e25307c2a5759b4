"""What the denoiser predicts, and how samples are drawn with it: rectified flow, v-prediction or the paper's epsilon.

Every path is x_t = alpha x_0 + sigma n with n standard normal; the noise level t in [0, 1] is what the network is
told. `x_0` lives in the denoiser's frame: differences from the filled image in units of their own standard
deviation, or plain latents (see `diffusion.unet`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

Predict = Callable[[Tensor, Tensor], Tensor]
"""Network call: x_t and the noise levels (B,) in, the objective's prediction out."""

Generators = Sequence[torch.Generator]
"""Sources of noise, one a sample."""

_SMALLEST_SIGMA = 0.02
_LARGEST_BETA = 0.9999
_LATENT_LIMIT = 4.0


class Objective(ABC):
    """One way to train and to sample."""

    name: str
    predicts_clean = True  # the network's layers estimate x_0, and the prediction follows from it
    absolute_error = False  # the loss is the squared error

    @abstractmethod
    def draw_levels(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Draw noise levels for training. Shape (count,)."""

    @abstractmethod
    def path(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma of the noise levels (B,), each of shape (B,)."""

    @abstractmethod
    def target(self, x_0: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """What the network shall predict. Shape (B, C, D, H, W)."""

    @abstractmethod
    def make_scheduler(self) -> Any:
        """Scheduler of diffusers that a generator folder stores."""

    def load_scheduler(self, folder: Path) -> Any:
        """Scheduler for `sample` from where a generator folder stores it; None where no scheduler is needed."""
        return type(self.make_scheduler()).from_pretrained(str(folder), local_files_only=True)

    @abstractmethod
    def sample(self, scheduler: Any, predict: Predict, noise: Tensor, num_steps: int, generators: Generators) -> Tensor:
        """Turn standard normal noise (B, C, D, H, W) into a sample of that shape, with what `make_scheduler` made."""

    def noisy(self, x_0: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Point of the path at each sample's noise level. Shape (B, C, D, H, W)."""
        alpha, sigma = (as_factor(value, x_0) for value in self.path(levels))
        return alpha * x_0 + sigma * noise

    def from_clean(self, x_t: Tensor, clean: Tensor, levels: Tensor) -> Tensor:
        """The prediction that an estimate of x_0 amounts to: the noise that is left, and then `target`."""
        alpha, sigma = (as_factor(value, x_t) for value in self.path(levels))
        return self.target(clean, (x_t - alpha * clean) / sigma.clamp(min=_SMALLEST_SIGMA), levels)

    def weight(self, levels: Tensor) -> Tensor:
        """Factor of the error that makes errors in x_0 count alike at every noise level. Shape (B,)."""
        return torch.ones_like(levels)


class RectifiedFlow(Objective):
    """Straight paths x_t = (1 - s) x_0 + s n; the network predicts the velocity n - x_0.

    Sampling steps in the angle theta = atan2(s, 1 - s): 0 at the data, pi/2 at pure noise. Divided by its length
    sqrt((1 - s)^2 + s^2), the path is y = cos(theta) x_0 + sin(theta) n, and the flow along it
    dy/dtheta = cos(theta) n - sin(theta) x_0. For data that are as wide as the noise this slope is zero on average,
    so Euler steps in the angle keep the data's variance; four Euler steps in s keep 72 % of the standard deviation of
    standard normal data, and 28 % where the data are ten times narrower than the noise.

    Source:
        Liu et al., "Flow Straight and Fast", ICLR 2023.
    """

    name = "flow"

    def draw_levels(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Draw levels in [0, 1) that are uniform in the angle, as the sampler's steps are."""
        angles = 0.5 * math.pi * torch.rand(count, generator=generator, device=generator.device)
        return (angles.sin() / (angles.sin() + angles.cos())).to(device)

    def path(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return 1 - s and s."""
        return 1.0 - levels, levels

    def target(self, x_0: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Velocity n - x_0, the same at every level."""
        return noise - x_0

    def weight(self, levels: Tensor) -> Tensor:
        """An error in the velocity times s is one in x_0."""
        return levels

    def make_scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        """Euler steps without a shift of the noise levels."""
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(shift=1.0)

    def load_scheduler(self, folder: Path) -> None:
        """Nothing: a step is a line here, and diffusers would take seconds to import."""

    def sample(self, scheduler: Any, predict: Predict, noise: Tensor, num_steps: int, generators: Generators) -> Tensor:
        """Integrate around the mean m of what is to be sampled: the network's estimate of x_0 at pure noise.

        The steps follow y - cos(theta) m, so that the mean is exact too. A single step returns m itself. They are
        those of `make_scheduler` with the angle's share of pi/2 as sigma, and need no scheduler.
        """
        if num_steps == 1:
            return noise - predict(noise, torch.ones(noise.shape[:1], dtype=noise.dtype, device=noise.device))
        shares = torch.tensor([(num_steps - step) / num_steps for step in range(num_steps + 1)])
        angles = [0.5 * math.pi * share for share in shares.tolist()]
        y, mean = noise, torch.zeros_like(noise)
        for step in range(num_steps):
            cos, sin, next_cos = math.cos(angles[step]), math.sin(angles[step]), math.cos(angles[step + 1])
            x_t, level = y / (sin + cos), sin / (sin + cos)
            velocity = predict(x_t, torch.full(noise.shape[:1], level, dtype=noise.dtype, device=noise.device))
            x_0, n = x_t - level * velocity, x_t + (1.0 - level) * velocity
            mean = x_0 if step == 0 else mean
            slope = cos * n - sin * (x_0 - mean) + (next_cos - cos) / (angles[step + 1] - angles[step]) * mean
            y = (y.float() + (shares[step + 1] - shares[step]) * (0.5 * math.pi * slope)).to(slope.dtype)
        return y


class VariancePreserving(Objective):
    """Paths of constant variance over a fixed number of timesteps, sampled with a scheduler of diffusers."""

    timesteps: int  # timestep t has the level (t + 1) / timesteps

    @cached_property
    def _alpha_bar(self) -> Tensor:
        return self.make_scheduler().alphas_cumprod

    def draw_levels(self, count: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Draw timesteps uniformly."""
        drawn = torch.randint(self.timesteps, (count,), generator=generator, device=generator.device)
        return ((drawn + 1) / self.timesteps).to(device)

    def path(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t)."""
        index = (levels.float() * self.timesteps).round().long().clamp(1, self.timesteps) - 1
        signal = self._alpha_bar.to(levels.device)[index].to(levels.dtype)
        return signal.sqrt(), (1.0 - signal).sqrt()

    def sample(self, scheduler: Any, predict: Predict, noise: Tensor, num_steps: int, generators: Generators) -> Tensor:
        """Steps of the scheduler."""
        options = self.step_options(num_steps, generators)
        scheduler.set_timesteps(num_steps, device=noise.device)
        sample = noise
        for timestep in scheduler.timesteps:
            levels = ((timestep + 1) / self.timesteps).to(noise.dtype).expand(noise.shape[0])
            sample = scheduler.step(predict(sample, levels), timestep, sample, return_dict=False, **options)[0]
        return sample

    def step_options(self, num_steps: int, generators: Generators) -> dict[str, Any]:
        """Further arguments of the scheduler's steps; none unless a step is random."""
        return {}


class VPrediction(VariancePreserving):
    """The network predicts v = alpha n - sigma x_0, from pure noise on; deterministic DDIM steps.

    Source:
        Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022.
        Zero terminal SNR and trailing timesteps: Lin et al., "Common Diffusion Noise Schedules and Sample
        Steps are Flawed", WACV 2024.
    """

    name = "v"
    timesteps = 1000

    def target(self, x_0: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return alpha n - sigma x_0."""
        alpha, sigma = (as_factor(value, x_0) for value in self.path(levels))
        return alpha * noise - sigma * x_0

    def weight(self, levels: Tensor) -> Tensor:
        """x_0 = alpha x_t - sigma v: an error in v times sigma is one in x_0."""
        return self.path(levels)[1]

    def make_scheduler(self) -> DDIMScheduler:
        """DDIM with a cosine schedule rescaled to zero terminal SNR, and trailing timesteps."""
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        return DDIMScheduler(
            num_train_timesteps=self.timesteps,
            beta_schedule="squaredcos_cap_v2",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            clip_sample=False,
        )


class PaperEpsilon(VariancePreserving):
    """The objective of DiffTumor at T = 4: noise prediction, absolute error, ancestral steps, clipped x_0.

    Kept as a baseline: at the first of its four steps alpha_bar is 1.4e-5, so an error of the predicted noise
    becomes one of x_0 that is 263 times larger.

    Source:
        Ho et al., "Denoising Diffusion Probabilistic Models", NeurIPS 2020; cosine schedule: Nichol and
        Dhariwal, ICML 2021; four steps: Chen et al., "Towards Generalizable Tumor Synthesis", CVPR 2024.
    """

    name = "epsilon"
    timesteps = 4
    predicts_clean = False
    absolute_error = True

    def target(self, x_0: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
        """Return the noise."""
        return noise

    def make_scheduler(self) -> DDPMScheduler:
        """Ancestral steps on the four timesteps that were trained."""
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

        return DDPMScheduler(
            num_train_timesteps=self.timesteps,
            trained_betas=cosine_betas(self.timesteps),
            prediction_type="epsilon",
            clip_sample=True,
            clip_sample_range=_LATENT_LIMIT,
        )

    def step_options(self, num_steps: int, generators: Generators) -> dict[str, Any]:
        """Each sample draws its noise from its own generator; the number of steps is fixed."""
        if num_steps != self.timesteps:
            raise ValueError(
                f"A generator with the epsilon objective was trained with {self.timesteps} steps and samples with "
                f"as many, got {num_steps}. Use {self.timesteps}, or train with the objective flow or v."
            )
        return {"generator": list(generators)}


def cosine_betas(count: int) -> list[float]:
    """Betas of the cosine schedule, at most 0.9999: 1 - f(t + 1) / f(t), f(t) = cos^2(pi / 2 (t/T + 0.008) / 1.008)."""

    def signal(step: int) -> float:
        return math.cos(0.5 * math.pi * (step / count + 0.008) / 1.008) ** 2

    return [min(1.0 - signal(step + 1) / signal(step), _LARGEST_BETA) for step in range(count)]


def as_factor(values: Tensor, like: Tensor) -> Tensor:
    """Shape values (B,) so that they multiply a tensor of shape (B, C, D, H, W)."""
    return values.to(device=like.device, dtype=like.dtype).view(-1, *[1] * (like.ndim - 1))


OBJECTIVES: Mapping[str, Objective] = MappingProxyType(
    {objective.name: objective for objective in (RectifiedFlow(), VPrediction(), PaperEpsilon())}
)
"""The objectives by name: flow (default), v, epsilon."""
