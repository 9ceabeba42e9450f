"""The noise schedule and every closed formula on it.

Everything here is pure. Each formula is written for one tensor of one modality, (B, ...); `AVSample.map` applies it to
both. A clip at noise level (α, σ) is x_t = α x0 + σ ε.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor


class NoiseLevel(NamedTuple):
    """Signal rate α and noise rate σ = √(1 - α²) of each clip, both (B,) float64 in [0, 1]."""

    alpha: Tensor
    sigma: Tensor


def _over_clips(coefficient: Tensor, x: Tensor) -> Tensor:
    """(B,) coefficients shaped and cast so that they multiply x (B, ...) clip by clip."""
    return coefficient.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


class NoiseSchedule:
    """The variance-preserving schedule of Eq. 1: linear β over ``num_timesteps`` steps.

    ᾱ_t = Π (1 - β_i), α_t = √ᾱ_t, σ_t = √(1 - ᾱ_t), for t = 0 … T-1. Between integers log α is linear in t, so every
    real timestep in [0, T-1] has a level.

    Args:
        num_timesteps: T.
        beta_start: β_0.
        beta_end: β_{T-1}.
        device: where timesteps will live.
    """

    def __init__(
        self,
        num_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_timesteps = num_timesteps
        self.betas = torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64, device=device)
        self.alpha_bar = torch.cumprod(1 - self.betas, 0)
        # of logarithms, not of a product: ONNX has no cumulative one
        self.log_alpha = 0.5 * torch.log1p(-self.betas).cumsum(0)

    def until(self, timestep: int) -> NoiseSchedule:
        """The same levels without those above ``timestep`` (from 1): T becomes timestep + 1."""
        part = copy(self)
        part.num_timesteps = timestep + 1
        part.betas, part.alpha_bar, part.log_alpha = (
            table[: timestep + 1] for table in (self.betas, self.alpha_bar, self.log_alpha)
        )
        return part

    @property
    def device(self) -> torch.device:
        """Where the tables live."""
        return self.betas.device

    def level(self, timestep: Tensor) -> NoiseLevel:
        """Noise level at integer or real timesteps (B,) in [0, T-1]; others count as the nearer end."""
        position = timestep.to(torch.float64).clamp(0, self.num_timesteps - 1)
        lower = position.floor().long().clamp(max=self.num_timesteps - 2)
        log_alpha = torch.lerp(self.log_alpha[lower], self.log_alpha[lower + 1], position - lower)
        return NoiseLevel(log_alpha.exp(), torch.sqrt(-torch.expm1(2 * log_alpha)))

    def log_snr(self, timestep: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, λ_t = log(α_t / σ_t), at timesteps (B,); decreases with t."""
        alpha, sigma = self.level(timestep)
        return torch.log(alpha / sigma)

    def timestep_at(self, log_snr: Tensor) -> Tensor:
        """The real timestep (float64) with the given λ = log(α/σ): the inverse of `log_snr`."""
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(log_snr, dtype=torch.float64), -2 * log_snr.double())
        falling = -self.log_alpha
        upper = torch.searchsorted(falling, -log_alpha).clamp(1, self.num_timesteps - 1)
        low, high = falling[upper - 1], falling[upper]
        return (upper - 1 + (-log_alpha - low) / (high - low)).clamp(0, self.num_timesteps - 1)


def add_noise(x0: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x_t = α x0 + σ ε: a draw from q(x_t | x0), the closed form of Eq. 1. Shapes (B, ...)."""
    return _over_clips(level.alpha, x0) * x0 + _over_clips(level.sigma, x0) * noise


def x0_from_noise(x_t: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """x̂0 = (x_t - σ ε̂) / α: the clean clip that a noise prediction stands for. Shapes (B, ...)."""
    return (x_t - _over_clips(level.sigma, x_t) * noise) / _over_clips(level.alpha, x_t)


def noise_from_x0(x_t: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """ε̂ = (x_t - α x̂0) / σ: the inverse of `x0_from_noise`. Shapes (B, ...)."""
    return (x_t - _over_clips(level.alpha, x_t) * x0) / _over_clips(level.sigma, x_t)


def noise_from_velocity(x_t: Tensor, velocity: Tensor, level: NoiseLevel) -> Tensor:
    """ε̂ = σ x_t + α v̂ of the velocity v = α ε - σ x0 (Salimans & Ho 2022); x̂0 is then α x_t - σ v̂. Shapes (B, ...)."""
    return _over_clips(level.sigma, x_t) * x_t + _over_clips(level.alpha, x_t) * velocity


def ddim_step(x_t: Tensor, noise: Tensor, level_t: NoiseLevel, level_s: NoiseLevel) -> Tensor:
    """One step of the probability-flow ODE from level t to s: x_s = α_s x̂0 + σ_s ε̂ (DDIM, η = 0).

    In the coordinates x/α with time σ/α it is the Euler step of Eq. 10. Shapes (B, ...).
    """
    return add_noise(x0_from_noise(x_t, noise, level_t), noise, level_s)


def consistency_coefficients(
    timestep: Tensor, sigma_data: float = 0.5, timestep_scaling: float = 10.0
) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of Eq. 7 at timesteps (B,), with c_skip(0) = 1 and c_out(0) = 0 (Eq. 8).

    c_skip = σ_d² / ((s t)² + σ_d²), c_out = s t / √((s t)² + σ_d²): the pair of diffusers' `LCMScheduler`.
    """
    scaled = timestep.double() * timestep_scaling
    squared = scaled**2 + sigma_data**2
    return sigma_data**2 / squared, scaled / squared.sqrt()


def consistency_function(x_t: Tensor, noise: Tensor, timestep: Tensor, level: NoiseLevel) -> Tensor:
    """f_θ(x_t, t) = c_skip(t) x_t + c_out(t) x̂0 (Eq. 7), so that f_θ(x, 0) = x. Shapes (B, ...)."""
    c_skip, c_out = consistency_coefficients(timestep)
    return _over_clips(c_skip, x_t) * x_t + _over_clips(c_out, x_t) * x0_from_noise(x_t, noise, level)
