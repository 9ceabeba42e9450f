"""MM-Diffusion's checkpoints to and from this package's names. Only names and trailing 1-sized axes differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module

from mgct.errors import UserError

if TYPE_CHECKING:
    from mgct.unet import MultimodalUNet

RES_NAMES = {
    "film": "emb_layers.1",
    **{
        f"{ours}.{name}": f"{ours}_{theirs}"
        for ours in ("video", "audio")
        for name, theirs in {
            "norm_in": "in_layers.0.GroupNorm",
            "conv.conv": "in_layers.2.audio_conv",
            "conv.spatial": "in_layers.2.video_conv_spatial",
            "conv.temporal": "in_layers.2.video_conv_temporal",
            "norm_out": "out_layers.0.GroupNorm",
            "project": f"out_layers.3.{ours}_conv",
            "skip": f"skip_connection.{ours}_conv",
        }.items()
    },
    **{
        f"{kind}_attention.{name}": f"{kind}_attention_block.{theirs}"
        for kind in ("spatial", "temporal", "audio")
        for name, theirs in {"norm": "norm.GroupNorm", "qkv": "qkv", "project": "proj_out"}.items()
    },
}
CROSS_NAMES = {
    "video_norm": "v_norm.GroupNorm",
    "audio_norm": "a_norm.GroupNorm",
    "video_qkv": "v_qkv",
    "audio_qkv": "a_qkv",
    "video_project": "video_proj_out.video_conv",
    "audio_project": "audio_proj_out.audio_conv",
}
TOP_NAMES = {
    "time_embed.0": "time_embed.0",
    "time_embed.2": "time_embed.2",
    "video_stem.spatial": "input_blocks.0.0.video_conv.video_conv_spatial",
    "video_stem.temporal": "input_blocks.0.0.video_conv.video_conv_temporal",
    "audio_stem.conv": "input_blocks.0.0.audio_conv.audio_conv",
    "video_norm": "video_out.0.GroupNorm",
    "audio_norm": "audio_out.0.GroupNorm",
    "video_head.conv": "video_out.2.video_conv",
    "audio_head.conv": "audio_out.2.audio_conv",
}
CONV_DIMS = {"video_conv.weight": 5, "audio_conv.weight": 3, "qkv.weight": 3, "proj_out.weight": 3}
"""Number of axes of the reference's pointwise layers, which are linear layers here."""
MM_DIFFUSION_FLAGS = {
    "model_channels": "num_channels",
    "channel_mult": "channel_mult",
    "num_res_blocks": "num_res_blocks",
    "cross_attention_resolutions": "cross_attention_resolutions",
    "cross_attention_windows": "cross_attention_windows",
    "cross_attention_shift": "cross_attention_shift",
    "video_attention_resolutions": "video_attention_resolutions",
    "audio_attention_resolutions": "audio_attention_resolutions",
    "num_heads": "num_heads",
    "num_head_channels": "num_head_channels",
    "dropout": "dropout",
}
"""Our settings of the network that MM-Diffusion's scripts have as options, and their names there."""
MM_DIFFUSION_FIXED = {
    "norm_num_groups": 32,
    "video_channels": 3,
    "audio_channels": 1,
    "target_time": False,
    "audio_time": False,
    "prediction_type": "epsilon",
}
"""Our settings that are one value in MM-Diffusion's code."""


def _children(block: Module) -> Iterator[tuple[str, dict[str, str]]]:
    """The parts of a block in the reference's order, with the names inside them."""
    for name, names in (("res", RES_NAMES), ("cross", CROSS_NAMES), ("up", RES_NAMES)):
        if getattr(block, name) is not None:
            yield name, names


def reference_names(unet: MultimodalUNet) -> dict[str, str]:
    """Our key → MM-Diffusion's key, for every entry of the network's state_dict but its further time inputs'."""
    prefixes = dict(TOP_NAMES)
    for ours, theirs, offset in (("encoder", "input_blocks", 1), ("decoder", "output_blocks", 0)):
        for index, block in enumerate(getattr(unet, ours)):
            for place, (child, names) in enumerate(_children(block)):
                for name, their_name in names.items():
                    prefixes[f"{ours}.{index}.{child}.{name}"] = f"{theirs}.{index + offset}.{place}.{their_name}"
    middle = [
        (f"middle.{index}.{child}", names) for index, b in enumerate(unet.middle) for child, names in _children(b)
    ]
    for place, (ours, names) in enumerate(middle):
        prefixes.update({f"{ours}.{name}": f"middle_blocks.{place}.{theirs}" for name, theirs in names.items()})
    keys = {}
    for key in unet.state_dict():
        if key.startswith(unet.time_inputs):
            continue
        prefix, _, leaf = key.rpartition(".")
        keys[key] = f"{prefixes[prefix]}.{leaf}"
    return keys


def _reference_shape(key: str, tensor: Tensor) -> tuple[int, ...]:
    """Shape under which MM-Diffusion stores our tensor of its key ``key``."""
    dims = next((dims for end, dims in CONV_DIMS.items() if key.endswith(end)), tensor.dim())
    return (*tensor.shape, *[1] * (dims - tensor.dim()))


def mm_diffusion_flags(unet: MultimodalUNet) -> dict[str, str]:
    """The options of MM-Diffusion's scripts that make this network there, name → value.

    Raises:
        UserError: MM-Diffusion's code cannot make it; each setting that stands in the way is named.
    """
    config = unet.config
    problems = [
        f"{name}={config[name]!r} (there it is {value})"
        for name, value in MM_DIFFUSION_FIXED.items()
        if config[name] != value
    ]
    windows, middle = list(config["cross_attention_windows"]), config["middle_cross_attention"]
    if middle != (windows == [1, 4, 8]):
        problems.append(
            f"middle_cross_attention={middle} with cross_attention_windows={windows} (there the middle has it with "
            "[1, 4, 8] and with no others)"
        )
    known = {*MM_DIFFUSION_FIXED, *MM_DIFFUSION_FLAGS, "middle_cross_attention"}
    problems += [f"{name} (unknown there)" for name in config if name not in known and not name.startswith("_")]
    if problems:
        raise UserError("MM-Diffusion's code has no such network: " + "; ".join(problems))

    def flag(value: Any) -> str:
        return (",".join(map(str, value)) or "-1") if isinstance(value, list | tuple) else str(value)

    own = {theirs: flag(config[ours]) for ours, theirs in MM_DIFFUSION_FLAGS.items()}
    return {**own, "learn_sigma": "False", "resblock_updown": "True", "use_scale_shift_norm": "True"}


def to_mm_diffusion(unet: MultimodalUNet) -> dict[str, Tensor]:
    """The network's weights under MM-Diffusion's names and shapes; further time inputs are left out.

    Whether its code can use them is what `mm_diffusion_flags` says.
    """
    state = unet.state_dict()
    return {
        theirs: state[ours].detach().contiguous().reshape(_reference_shape(theirs, state[ours]))
        for ours, theirs in reference_names(unet).items()
    }


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.pt`` file; nothing else in the file is executed or returned.

    Raises:
        UserError: no such file, or not a file of tensors.
    """
    path, advice = Path(path), "save its state_dict alone, as .pt or .safetensors"
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the .pt or .safetensors file of the checkpoint")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it is damaged, or holds more than tensors" if path.stat().st_size else "it is empty"
        raise UserError(f"{path}: cannot be read as a file of tensors ({reason}): {advice}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds something else than a state_dict of tensors: {advice}")
    return state


def load_mm_diffusion(unet: MultimodalUNet, source: str | Path | Mapping[str, Tensor]) -> MultimodalUNet:
    """Load an MM-Diffusion state_dict into the network, strictly.

    Raises:
        UserError: keys are missing, unexpected or of another shape, each is named; or the network predicts something
            else than the noise.
    """
    if unet.config["prediction_type"] != "epsilon":
        raise UserError(
            f"MM-Diffusion's weights predict the noise, this network {unet.config['prediction_type']}: make it with "
            "prediction_type epsilon"
        )
    state = dict(source) if isinstance(source, Mapping) else read_state_dict(source)
    names, own = reference_names(unet), unet.state_dict()
    shapes = {theirs: _reference_shape(theirs, own[ours]) for ours, theirs in names.items()}
    problems = [f"missing {key}" for key in shapes if key not in state]
    problems += [f"unexpected {key}" for key in state if key not in shapes]
    problems += [
        f"{key} has shape {tuple(state[key].shape)}, the network {shape}"
        for key, shape in shapes.items()
        if key in state and tuple(state[key].shape) != shape
    ]
    if problems:
        raise UserError("the checkpoint does not fit this network: " + "; ".join(problems))
    weights = {ours: state[theirs].reshape(own[ours].shape) for ours, theirs in names.items()}
    unet.load_state_dict(unet.with_time_inputs(weights))
    return unet
