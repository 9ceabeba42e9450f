"""How sampling calls the network: at which window shifts, with which time inputs, as a CUDA graph; guided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from mgct.clip_random import derive_seed
from mgct.gpu import send
from mgct.graphs import Graphed
from mgct.grids import Point
from mgct.sampling_options import SamplingOptions
from mgct.types import AVSample
from mgct.windows import Network


def network_of(unet: Any, options: SamplingOptions, device: torch.device) -> Network:
    """The network on clips of its own length, its window shifts drawn from (seed, timestep), the same for all clips.

    It gives float32, whatever precision its weights have.
    """
    precise = torch.promote_types(unet.dtype, torch.float32)
    graphed: dict[tuple[str, ...], Graphed] = {}
    place = 0

    def predictor(*names: str) -> Callable[..., AVSample]:
        """The network with further time inputs of these names, in their order, behind the others."""

        def predict(video: Tensor, audio: Tensor, timestep: Tensor, shift: Any, *times: Tensor) -> AVSample:
            call_options = {"window_shift": shift, **dict(zip(names, times, strict=True))}
            if torch.is_grad_enabled():  # guidance asks for the gradient of the clips, and for no other
                weights = {name: parameter.detach() for name, parameter in unet.named_parameters()}
                return functional_call(unet, weights, (video, audio, timestep), call_options)
            return unet(video, audio, timestep, **call_options)

        return predict

    def call(clips: AVSample, point: Point) -> AVSample:
        nonlocal place
        shift = options.window_shift
        if shift is None:
            seed = derive_seed(options.seed, "window shift", round(point.timestep * 1000))
            shift = unet.draw_window_shifts(clips.video.shape[1], torch.Generator().manual_seed(seed))
        video_t, audio_t = point.told or (point.timestep, None)
        timestep = torch.full((len(clips.video),), video_t, device=device)
        further = {"target_timestep": point.goal, "audio_timestep": audio_t}
        times = {name: torch.full_like(timestep, time) for name, time in further.items() if time is not None}
        predict, noisy = predictor(*times), clips.to(precise)
        if device.type != "cuda" or torch.is_grad_enabled():
            return predict(noisy.video, noisy.audio, timestep, shift, *times.values()).to(torch.float32)
        here = next(unet.parameters()).data_ptr()
        if here != place:  # not yet known, or weights that have been elsewhere meanwhile
            graphed.clear()
            place = here
        shifts = send(torch.tensor(list(unet.window_shifts(shift, clips.video.shape[1]))), device)
        if tuple(times) not in graphed:
            graphed[tuple(times)] = Graphed(predict)
        out = graphed[tuple(times)](noisy.video, noisy.audio, timestep, shifts, *times.values())
        return out.to(torch.float32, copy=True)  # the graph's own tensors are overwritten by the next call

    return call


AUTOGUIDANCE = 2.0
"""The strength, if none is said."""


def autoguided(network: Network, guide: Network, scale: float) -> Network:
    """The network led away from the errors of a weaker one: ε̂ ← ε̂_guide + s (ε̂ - ε̂_guide).

    Autoguidance (Karras et al. 2024, Guiding a diffusion model with a bad version of itself): where the two disagree,
    the weaker is further off in the same direction.

    Args:
        network: what is guided.
        guide: of the same data, but trained for less, or smaller; called as often.
        scale: s, above 1.
    """

    def call(clips: AVSample, point: Point) -> AVSample:
        return guide(clips, point).map(lambda weak, strong: torch.lerp(weak, strong, scale), network(clips, point))

    return call
