"""How the networks are spread over processes: one device, DDP, or FSDP. Nothing else knows.

With FSDP (FSDP2, PyTorch's ``fully_shard``, one unit per `UNetBlock`) every parameter is a `DTensor` of which each
process holds a part. The averages (EMA, θ⁻) and the teacher are sharded exactly like the network: a network that does
not fit once does not fit four times, and averaging is elementwise, so it needs no communication. Checkpoints hold whole
tensors under the plain names, whatever the layout, so that each loads in any other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any, Literal

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mgct.errors import UserError
from mgct.products import warn_if_slow
from mgct.unet import MultimodalUNet, UNetBlock

Precision = Literal["auto", "fp32", "bf16"]
Network = Any
"""A `MultimodalUNet`: diffusers does not tell type checkers that its models are modules."""


def start_processes() -> PartialState:
    """The processes that accelerate or torchrun started, or this one. Without a GPU they talk through gloo."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return PartialState(cpu=several and not torch.accelerator.is_available())


def leave_processes() -> None:
    """End the group of the processes, if there are several, once all are here: its threads may not outlive Python."""
    state = PartialState()
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


def make_accelerator(precision: Precision) -> Accelerator:
    """An `Accelerator` for the processes that accelerate or torchrun started, or for this one.

    ``bf16`` is bfloat16 autocast: weights, optimiser, averages and losses stay float32. On a CPU it gains where
    `mgct.products.fast_bfloat16` holds, and warns where it loses.

    Raises:
        UserError: bf16 on a GPU without it, or a launch that this trainer does not do.
    """
    has_gpu = torch.accelerator.is_available()
    has_bf16 = not has_gpu or (torch.cuda.is_available() and torch.cuda.is_bf16_supported())
    if precision == "bf16" and not has_bf16:
        raise UserError("train.precision=bf16: this device has no bfloat16 arithmetic; use fp32 or auto")
    bf16 = precision == "bf16" or (precision == "auto" and has_gpu and has_bf16)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true" or os.environ.get("ACCELERATE_USE_MEGATRON_LM") == "true":
        raise UserError("mgct trains with DDP or FSDP, not with DeepSpeed or Megatron; see configs/accelerate/")
    if _fsdp_asked():
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UserError("FSDP version 1 was asked for; set fsdp_version: 2, as in configs/accelerate/fsdp.yaml")
        if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
            raise UserError("fsdp_offload_params is not supported; set it to false, as in configs/accelerate/fsdp.yaml")
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", cpu=True if several and not has_gpu else None)
    if bf16 and not has_gpu and accelerator.is_main_process:
        warn_if_slow(torch.bfloat16)
    return accelerator


def _fsdp_asked() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


class Layout:
    """Places networks on this run's processes.

    Args:
        accelerator: the processes and the device.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.sharded = _fsdp_asked() and torch.distributed.is_initialized()

    @property
    def name(self) -> str:
        """``fsdp``, ``ddp`` or ``single``."""
        return "fsdp" if self.sharded else "ddp" if self.accelerator.num_processes > 1 else "single"

    def place(self, unet: Network) -> tuple[Network, Network]:
        """The network on its device, sharded where that is the layout, and the module to call for training.

        Copies made of it later by `copy.deepcopy` lie on the processes in the same way.
        """
        unet = unet.to(self.accelerator.device)
        if not self.sharded:
            return unet, self.accelerator.prepare_model(unet)
        return _sharded(unet), unet

    def sum(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        return self.accelerator.reduce(value, "sum")

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole tensors on the CPU, for the main process; nothing for the others. All processes must call."""
        main, found = self.accelerator.is_main_process, {}
        for name, value in tensors.items():
            if main or isinstance(value, DTensor):
                full = whole(value)
                if main:
                    found[name] = full.detach().cpu()
        return found

    def plain_copy(self, network: nn.Module) -> Network | None:
        """The network whole on the CPU, in evaluation mode, for the main process; None for the others."""
        weights = self.whole(network.state_dict())
        if not self.accelerator.is_main_process:
            return None
        copy = _new_like(network)
        copy.load_state_dict(weights)
        return copy.eval()


def _new_like(network: Network) -> Network:
    """A network of the same settings on the CPU; nothing is taken from torch's generators."""
    with torch.random.fork_rng(devices=[]):
        return MultimodalUNet.from_config(network.config)


def _sharded(unet: Network, mesh: Any = None) -> Network:
    """The same module, its parameters spread over the processes."""
    if torch.is_autocast_enabled(next(unet.parameters()).device.type):
        raise RuntimeError("networks are sharded outside autocast")
    forward = convert_outputs_to_fp32(type(unet).forward)
    unet.forward = MethodType(forward, unet)
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True}
    for module in list(unet.modules()):
        if isinstance(module, UNetBlock):
            fully_shard(module, **options)
    fully_shard(unet, **options)
    # copy.deepcopy looks for this on the instance first; FSDP's own one only raises
    unet.__deepcopy__ = lambda _memo: _sharded_copy(unet)
    # a view that leaves a unit must not be changed in place, and the network changes nothing in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return unet


def _sharded_copy(unet: Network) -> Network:
    """Another network with the same weights, spread in the same way."""
    first: Any = next(unet.parameters())
    copy = _sharded(_new_like(unet).to(first.device), first.device_mesh)
    with torch.no_grad():
        for ours, theirs in zip(copy.parameters(), unet.parameters(), strict=True):
            ours.copy_(theirs)
    return copy.train(unet.training)


def placed_like(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, each spread over the processes as the parameter of its name is.

    Args:
        tensors: name → whole tensor, the same in every process.
        parameters: name → parameter; names without one stay as they are.
    """
    placed = {}
    for name, value in tensors.items():
        placed[name] = spread_like(value, parameters.get(name))
    return placed


def spread_like(value: Tensor, like: Tensor | None) -> Tensor:
    """A whole tensor, the same in every process, spread over them as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole(value: Tensor) -> Tensor:
    """The tensor put together from all processes, in each of them; all must call."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """What this process holds of each tensor, sharing its memory."""
    return [value.to_local() if isinstance(value, DTensor) else value for value in tensors]
