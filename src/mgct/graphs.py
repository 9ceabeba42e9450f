"""Functions of tensors on a GPU, recorded once as a CUDA graph and replayed.

A network of small kernels keeps the host busier than the GPU: launching takes longer than computing. A replay launches
all of them at once. Nothing of the result changes.
"""

from __future__ import annotations

import functools
import gc
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from mgct.errors import MgctWarning

_RECORDING = threading.Lock()
"""A process may record one graph at a time."""


class Graphed:
    """A function of tensors, run as it is on its first call, recorded on its second, then replayed.

    What it does may depend on the shapes and kinds of its inputs and on nothing else that changes: neither on their
    values nor on a state of the host. Other tensors that it reads, such as weights, may change in place, but must stay
    where they are. Inputs of another shape begin anew. If it cannot be recorded, it runs as it is, after a warning.

    While it lives it holds on to the memory of all that it computes.

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
        with torch.cuda.device_of(inputs[0]):
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
        try:
            self.inputs = [x.detach().clone() for x in inputs]
            with _RECORDING:
                self.graph, self.outputs = _recorded(self.function, self.inputs)
        except RuntimeError as error:  # out of memory among them
            self.works, self.outputs, self.inputs = False, None, []
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"no CUDA graph could be recorded, so kernels are launched one by one: {reason}",
                MgctWarning,
                stacklevel=3,
            )
            return False
        return True


def _recorded(function: Callable[..., Any], inputs: list[Tensor]) -> tuple[Any, Any]:
    """The graph of a call, and its outputs. If it fails all is as before, which PyTorch leaves to us."""
    device = inputs[0].device
    graph, pool, ended = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), False
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()
    try:
        with torch.cuda.stream(_stream(device)):
            graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                outputs = function(*inputs)
            finally:
                graph.capture_end()
                ended = True
    finally:
        if not ended:
            _mend(device, pool)
    return graph, outputs


@functools.cache
def _stream(device: torch.device) -> Any:
    """The stream that a GPU's graphs are recorded on; each would keep a workspace of its own."""
    return torch.cuda.Stream(device)


def _mend(device: torch.device, pool: Any) -> None:
    """After a recording that did not end: the allocator and the default generator believe that it goes on."""
    with suppress(AttributeError, RuntimeError):
        torch._C._cuda_endAllocateToPool(device.index, pool)
        torch._C._cuda_releasePool(device.index, pool)
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
