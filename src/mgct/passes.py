"""The forward and backward pass of training steps, recorded once and replayed (`mgct.graphs`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from torch import Tensor

from mgct.clip_random import ClipRandom, DrawnRandom
from mgct.graphs import Graphed
from mgct.losses import ClipLoss
from mgct.types import AVSample


class GraphedPasses:
    """A loss and its gradient, on one GPU.

    The first step of a kind runs as it is and tells which random numbers the loss asks for. From then on those are
    drawn beforehand, as everything must lie ready where the graph reads it.

    Args:
        loss: stored clips on the GPU, their random numbers, window shifts as a tensor → the loss per clip.
        backward: puts a loss's gradient into the parameters.
        parameters: all that have a gradient.
    """

    def __init__(
        self,
        loss: Callable[[AVSample, ClipRandom, Tensor], ClipLoss],
        backward: Callable[[Tensor], None],
        parameters: Sequence[Tensor],
    ) -> None:
        self.loss, self.backward, self.parameters = loss, backward, list(parameters)
        self.kind: Hashable = None
        self.keys: list[Any] = []  # what of random numbers the loss asks for
        self.graphed: Graphed | None = None

    def __call__(self, stored: AVSample, random: ClipRandom, shift: Tensor, kind: Hashable) -> ClipLoss:
        """The loss of a step, without its history; its gradient is in the parameters.

        Args:
            stored: clips.
            random: their random numbers.
            shift: window shifts, one per shifted block.
            kind: what else the loss depends on; another kind is recorded anew.
        """
        kind, drawn = (kind, stored.video.shape, stored.audio.shape), DrawnRandom(random)
        if self.graphed is None or kind != self.kind:
            self.graphed = None  # its memory is free before the step
            result, _ = self._run(stored, drawn, shift)
            self.kind, self.random, self.keys = kind, random, list(drawn.drawn)
            self.graphed = Graphed(self._of_tensors)
            return result
        result, gradients = self.graphed(stored.video, stored.audio, shift, *drawn.draw(self.keys))
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        return result

    def forget(self) -> None:
        """Give back the memory of what is recorded; the next step begins anew."""
        self.graphed = None

    def _of_tensors(self, video: Tensor, audio: Tensor, shift: Tensor, *draws: Tensor) -> Any:
        """A step, with everything drawn."""
        drawn = DrawnRandom(self.random, dict(zip(self.keys, draws, strict=True)))
        return self._run(AVSample(video=video, audio=audio), drawn, shift)

    def _run(self, stored: AVSample, random: ClipRandom, shift: Tensor) -> tuple[ClipLoss, list[Tensor | None]]:
        """The loss and the gradients."""
        for parameter in self.parameters:
            parameter.grad = None
        result = self.loss(stored, random, shift)
        self.backward(result.loss.sum() / len(result.loss))
        logs = {name: value.detach() for name, value in result.logs.items()}
        return ClipLoss(result.loss.detach(), logs, result.timesteps), [p.grad for p in self.parameters]
