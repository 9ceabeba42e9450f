"""What is given of the clips to be generated: one modality, or how both begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from mgct.errors import UserError
from mgct.predictors import Known, check_scale
from mgct.types import AVSample, pack

Method = Literal["conditional", "replacement", "guided", "mm-diffusion"]
GUIDANCE_SCALE = {"conditional": 1.0, "replacement": 8.0, "guided": 8.0, "mm-diffusion": 8.0}
"""The usual strength: of ``conditional`` the network's own conditional mean; that of ``guided`` gives, on correlated
Gaussians, nearly the true conditional mean and spread. ``replacement`` has none: the number is what folders record."""


LARGEST = 2.0
"""Given clips lie in [-1, 1]; resampling can have carried a loud sound beyond, by half at most as measured."""


@dataclass(frozen=True)
class Given:
    """The beginning of the clips that is given: all of one modality, or the start of both.

    Args:
        start: video (N, F, 3, H, W) and audio (N, 1, L) in [-1, 1], N = 1 (for all clips) or one per clip; F and L
            may be 0, and at most the clip's own.
        method: ``conditional`` (`mgct.predictors.conditioned`), ``replacement`` (`mgct.predictors.replaced`),
            ``guided`` (`mgct.predictors.guided`) or ``mm-diffusion`` (`mgct.samplers.guided_ddpm`).
        guidance_scale: strength of all but ``replacement``; None: the method's of `GUIDANCE_SCALE`.
        rows: which of the N each clip has; None: the first has the first, and so on.
    """

    start: AVSample
    method: Method = "replacement"
    guidance_scale: float | None = None
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UserError(f"unknown conditional method {self.method!r}; choose one of: {', '.join(get_args(Method))}")
        check_scale("guidance_scale", self.scale)
        if self.method == "replacement" and self.guidance_scale is not None:
            raise UserError("guidance_scale is not for method 'replacement': leave it out, or choose another method")

    @property
    def one_modality(self) -> bool:
        """Whether nothing is given of the other."""
        return not (self.start.video.shape[1] and self.start.audio.shape[2])

    @property
    def scale(self) -> float:
        """The strength that is used."""
        return GUIDANCE_SCALE[self.method] if self.guidance_scale is None else self.guidance_scale

    def in_turn(self, indices: Sequence[int]) -> Given:
        """For the clips ``indices``: clip k has number k modulo N of what is given."""
        versions = max(len(self.start.video), len(self.start.audio))
        return replace(self, rows=[index % versions for index in indices])

    def known(self, positions: Sequence[int], shapes: AVSample, noise: Tensor) -> Known:
        """The given part of the clips at ``positions``, packed; ``noise`` (B, D) diffuses it."""
        chosen = list(positions) if self.rows is None else [self.rows[position] for position in positions]

        def place(start: Tensor, shape: tuple[int, ...], axis: int) -> tuple[Tensor, Tensor]:
            rows = start if len(start) == 1 else start[chosen]
            x0, mask = torch.zeros(len(positions), *shape), torch.zeros(1, *shape)
            x0.narrow(axis, 0, start.shape[axis]).copy_(rows)
            mask.narrow(axis, 0, start.shape[axis]).fill_(1)
            return x0, mask

        (video, video_mask), (audio, audio_mask) = (
            place(self.start.video, shapes.video, 1),
            place(self.start.audio, shapes.audio, 2),
        )
        mask = pack(AVSample(video=video_mask, audio=audio_mask))[0].bool()
        x0 = pack(AVSample(video=video, audio=audio))
        return Known(x0.to(noise), mask.to(noise.device), noise)

    def check(self, shapes: AVSample, num_clips: int) -> None:
        """Refuse what does not fit ``num_clips`` clips of these shapes."""
        for what, tensor, shape, axis in (
            ("video", self.start.video, shapes.video, 1),
            ("audio", self.start.audio, shapes.audio, 2),
        ):
            rest = tuple(n for i, n in enumerate(tensor.shape) if i not in (0, axis))
            wanted = tuple(n for i, n in enumerate(shape, start=1) if i != axis)
            if rest != wanted or tensor.shape[axis] > shape[axis - 1]:
                raise UserError(f"the given {what} has shape {tuple(tensor.shape[1:])}; this model's is {tuple(shape)}")
            if len(tensor) not in (1, num_clips) and self.rows is None:
                raise UserError(f"the given {what} has {len(tensor)} clips; give one, or one for each of {num_clips}")


def as_clips(tensor: Tensor, dimensions: int, what: str, wanted: str) -> Tensor:
    """A clip, or several, as several, (N, …).

    Raises:
        UserError: it is no tensor, has other dimensions, or is not in [-1, 1]; ``what`` it is, and what is ``wanted``.
    """
    if not isinstance(tensor, Tensor):
        raise UserError(f"{what} must be a torch tensor, got {type(tensor).__name__}: torch.from_numpy makes one")
    if tensor.dim() == dimensions - 1:
        tensor = tensor[None]
    if tensor.dim() != dimensions:
        raise UserError(f"{what} must be {wanted}, got shape {tuple(tensor.shape)}")
    if not tensor.is_floating_point():
        raise UserError(f"{what} must be floating point in [-1, 1], got {tensor.dtype}; see mgct.types.dequantise")
    if not tensor.numel():
        raise UserError(f"{what} must be {wanted}, got none: shape {tuple(tensor.shape)}")
    if not tensor.abs().amax() <= LARGEST:
        raise UserError(
            f"{what} must be in [-1, 1], got values from {tensor.amin():g} to {tensor.amax():g}; pixels of 0 … 255 "
            "become that by x / 127.5 - 1, samples of 16 bits by x / 32768"
        )
    return tensor
