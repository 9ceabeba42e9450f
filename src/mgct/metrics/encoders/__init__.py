"""The networks whose features are compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from mgct.errors import UserError
from mgct.metrics.encoders.base import Encoder

__all__ = ["ENCODERS", "Encoder", "load_encoder"]


def _i3d(path: Path | None, device: torch.device | str, reference_eps: bool = False) -> Encoder:
    from mgct.metrics.encoders.i3d import I3dEncoder
    from mgct.metrics.weights import ensure_weights

    return I3dEncoder(ensure_weights("i3d", path), device, reference_eps)


def _i3d_reference(path: Path | None, device: torch.device | str) -> Encoder:
    return _i3d(path, device, reference_eps=True)


def _soundnet(path: Path | None, device: torch.device | str) -> Encoder:
    from mgct.metrics.encoders.soundnet import SoundNetEncoder
    from mgct.metrics.weights import ensure_weights

    return SoundNetEncoder(ensure_weights("soundnet", path), device)


def _audioclip(path: Path | None, device: torch.device | str, batch_statistics: bool = False) -> Encoder:
    from mgct.metrics.encoders.audioclip import AudioClipEncoder
    from mgct.metrics.weights import ensure_weights

    return AudioClipEncoder(ensure_weights("audioclip", path), device, batch_statistics)


def _audioclip_reference(path: Path | None, device: torch.device | str) -> Encoder:
    return _audioclip(path, device, batch_statistics=True)


def _vggish(path: Path | None, device: torch.device | str) -> Encoder:
    from mgct.metrics.encoders.vggish import VggishEncoder
    from mgct.metrics.weights import ensure_weights

    return VggishEncoder(ensure_weights("vggish", path), device)


def _compact_video(path: Path | None, device: torch.device | str) -> Encoder:
    from mgct.metrics.encoders.compact import CompactVideoEncoder

    return CompactVideoEncoder(path, device)


def _compact_audio(path: Path | None, device: torch.device | str) -> Encoder:
    from mgct.metrics.encoders.compact import CompactAudioEncoder

    return CompactAudioEncoder(path, device)


ENCODERS: dict[str, Callable[[Path | None, torch.device | str], Encoder]] = {
    "i3d": _i3d,
    "i3d-eps1e-5": _i3d_reference,
    "soundnet": _soundnet,
    "audioclip": _audioclip,
    "audioclip-train8": _audioclip_reference,
    "vggish": _vggish,
    "compact-video": _compact_video,
    "compact-audio": _compact_audio,
}
"""Name → function of (weights path or None, device) that loads the encoder."""


def load_encoder(name: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Encoder:
    """The encoder of that name, ready to use.

    Args:
        name: one of `ENCODERS`.
        weights: file to load instead of the cached or bundled weights.
        device: where to compute.

    Raises:
        UserError: unknown name, weights that cannot be had, or no such device.
    """
    if name not in ENCODERS:
        raise UserError(f"unknown encoder {name!r}; known: {', '.join(ENCODERS)}")
    try:
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(
            f"device {device} cannot be used here; give --device cpu, or cuda where there is a GPU (see mgct doctor)"
        ) from error
    return ENCODERS[name](weights, device)
