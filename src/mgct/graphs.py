"""Functions of tensors on a GPU, recorded once as a CUDA graph and replayed.

A network of small kernels keeps the host busier than the GPU: launching takes longer than computing. A replay launches
all of them at once. Nothing of the result changes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class Graphed:
    """A function of tensors, run as it is on its first call, recorded on its second, then replayed.

    What it does may depend on the shapes and kinds of its inputs and on nothing else that changes: neither on their
    values nor on a state of the host. Inputs of another shape begin anew. If it cannot be recorded, it runs as it is,
    after a warning.

    Args:
        function: tensors on one GPU → anything that holds tensors. These are overwritten by the next call.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.kinds: list[Any] = []
        self.inputs: list[Tensor] = []
        self.outputs: Any = None
        self.graph: Any = None
        self.works = True

    def __call__(self, *inputs: Tensor) -> Any:
        """The function's value."""
        kinds = [(x.shape, x.dtype, x.device) for x in inputs]
        if not self.works or kinds != self.kinds:
            self.graph, self.outputs, self.inputs, self.kinds = None, None, [], kinds
            return self.function(*inputs)
        if self.graph is None and not self._record(inputs):
            return self.function(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.outputs

    def _record(self, inputs: tuple[Tensor, ...]) -> bool:
        """Make the graph; whether that was possible."""
        self.inputs = [x.detach().clone() for x in inputs]
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(inputs[0].device)
        try:
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self.outputs = self.function(*self.inputs)
        except RuntimeError as error:  # out of memory among them
            self.works, self.outputs, self.inputs = False, None, []
            _free_generator(inputs[0].device)
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"no CUDA graph could be recorded, so kernels are launched one by one: {reason}", stacklevel=3
            )
            return False
        self.graph = graph
        return True


def _free_generator(device: torch.device) -> None:
    """Give the device's default generator, which believes that it is still recorded, a new state of the same seed."""
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(torch.Generator(device).manual_seed(torch.initial_seed()))


@contextmanager
def unless_recording(context: Any) -> Iterator[None]:
    """The context, or nothing while a graph is recorded, which could not hold it."""
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        yield
        return
    with context:
        yield
