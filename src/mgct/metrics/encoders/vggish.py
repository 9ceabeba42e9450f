"""VGGish (Hershey et al. 2017): the features of the audio field's usual Fréchet audio distance, FAD-VGGish."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mgct.errors import UserError
from mgct.metrics.encoders.base import Encoder, resampled_audio
from mgct.metrics.mel import mel_filters
from mgct.metrics.weights import Weights, WeightSource
from mgct.types import AVSample, ClipSpec

SAMPLE_RATE_HZ = 16000
_WINDOW, _HOP, _FFT = 400, 160, 512
_BANDS, _LOWEST_HZ, _HIGHEST_HZ, _OFFSET = 64, 125.0, 7500.0, 0.01
_PATCH = 96
_WIDTHS = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0)


def log_mel_patches(audio: Tensor) -> Tensor:
    """Audio (B, L) at 16 kHz as log-mel patches (B, P, 96, 64) of 0.96 s each; shorter sound is padded with silence.

    As usual for VGGish they do not overlap and what is left over is not heard: of 1.6 s only the first 0.96 s.

    25 ms periodic Hann windows each 10 ms, magnitudes of a 512-point FFT, 64 bands of 125 to 7500 Hz, log(x + 0.01).
    """
    smallest = _WINDOW + (_PATCH - 1) * _HOP
    audio = F.pad(audio, (0, max(0, smallest - audio.shape[1])))
    frames = audio.unfold(1, _WINDOW, _HOP) * torch.hann_window(_WINDOW, device=audio.device)
    magnitude = torch.fft.rfft(frames, _FFT).abs()
    filters = mel_filters(_FFT // 2 + 1, SAMPLE_RATE_HZ, _BANDS, _LOWEST_HZ, _HIGHEST_HZ).to(audio.device)
    log_mel = torch.log(magnitude @ filters.T + _OFFSET)
    patches = log_mel.shape[1] // _PATCH
    return log_mel[:, : patches * _PATCH].unflatten(1, (patches, _PATCH))


class Vggish(nn.Module):
    """The VGGish network; parameter names are those of its usual torch checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for width in _WIDTHS:
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            inputs = width or inputs
        self.features = nn.Sequential(*layers)
        dense = (nn.Linear(512 * 24, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128))
        self.embeddings = nn.Sequential(*dense)

    def forward(self, patches: Tensor) -> Tensor:
        """Embeddings (B, 128), before any activation or PCA, of log-mel patches (B, 96, 64)."""
        x = self.features(patches[:, None])
        return self.embeddings(x.permute(0, 2, 3, 1).flatten(1))


def convert(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of `Vggish` from its usual torch checkpoint (a later PCA stage, ``pproc.*``, is left out).

    Raises:
        UserError: the content is of another network.
    """
    state = {name: value for name, value in content.items() if not name.startswith("pproc.")}
    with torch.device("meta"):
        expected = {name: tensor.shape for name, tensor in Vggish().state_dict().items()}
    if {name: tensor.shape for name, tensor in state.items()} != expected:
        raise UserError("the file of weights is not VGGish")
    return state


WEIGHTS = WeightSource(
    name="vggish",
    description="VGGish, AudioSet (Apache-2.0), as a torch file; its name holds the start of its SHA-256",
    address="https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
    sha256="10086976",
    convert=convert,
)


class VggishEncoder(Encoder):
    """Mean over a clip's 0.96 s patches of the 128-d VGGish embedding.

    Args:
        weights: of `Vggish`.
        device: where to compute.
    """

    name = "vggish"
    modality = "audio"
    dimension = 128

    def __init__(self, weights: Weights, device: torch.device | str = "cpu") -> None:
        self.weights_sha256, self.pinned = weights.sha256, weights.pinned
        self.device = torch.device(device)
        self.network = Vggish()
        self.network.load_state_dict(weights.tensors)
        self.network.to(device).requires_grad_(False).eval()

    def features(self, clips: AVSample, spec: ClipSpec) -> Tensor:
        """Features (B, 128)."""
        patches = log_mel_patches(resampled_audio(clips.audio, spec, SAMPLE_RATE_HZ).to(self.device))
        return self.network(patches.flatten(0, 1)).view(*patches.shape[:2], -1).mean(1)
