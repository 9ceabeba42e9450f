"""Layers of the coupled U-Net.

Inside the network the channels come last, so that every token is a contiguous row: video (B, F, H, W, C), audio
(B, L, C). Pointwise layers are then `nn.Linear`, attention needs no transposition, and the convolutions see PyTorch's
channels-last memory format. The two modalities run through the same classes: they differ in the convolution and in the
resampling that is passed in.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mgct import gpu
from mgct.attention import attention, windowed_attention
from mgct.convolutions import AudioConv, VideoConv, zero_init
from mgct.norms import GroupNorm
from mgct.products import Linear, linear
from mgct.recompute import offer
from mgct.resampling import RESAMPLING, Resample, identity
from mgct.types import AVSample


def timestep_embedding(timestep: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """Sinusoidal features (B, dim) of real timesteps (B,): cosines, then sines, of frequencies 10000^(-i / (dim/2)).

    The frequencies are float32 values, as in the reference; the angles are computed in ``dtype``.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    frequencies = torch.exp(-math.log(10000.0) * steps / half)
    angles = timestep[:, None].to(dtype) * frequencies.to(dtype)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class ResidualPath(nn.Module):
    """One modality's way through a residual block: norm, SiLU, convolution; norm, FiLM, SiLU, pointwise; plus the skip.

    A block that goes up repeats the sum's pixels or samples at the end. The reference repeats before the second norm;
    everything from there on is pointwise, so the result is the same and costs a quarter. (In training, one dropout mask
    then holds for the whole repeated group.)

    Args:
        in_channels: C_in.
        out_channels: C_out.
        conv: `VideoConv` or `AudioConv`; one that goes down does so itself.
        down: the same downsampling, for the skip.
        up: upsampling of the sum.
        dropout: probability.
        num_groups: of the group norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv: VideoConv | AudioConv,
        *,
        down: Resample = identity,
        up: Resample = identity,
        dropout: float,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.norm_in = GroupNorm(num_groups, in_channels)
        self.conv = conv
        self.down = down
        self.up = up
        self.norm_out = GroupNorm(num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.project = zero_init(Linear(out_channels, out_channels))
        self.skip = nn.Identity() if in_channels == out_channels else Linear(in_channels, out_channels)

    def forward(self, x: Tensor, film: Tensor) -> Tensor:
        """(B, …, C_in) and the FiLM pair (B, 2 C_out), scale then shift → (B, …, C_out)."""
        h, offset = self.conv(self.norm_in(x, activate=True), not gpu.on_gpu(x))
        h = self.norm_out(h, film, activate=True, offset=offset)
        return self.up(self.project(self._drop(h), self.skip(self.down(x))))

    def _drop(self, h: Tensor) -> Tensor:
        """Dropout in training; of its mask a byte a value is kept, where `F.dropout` on a CPU keeps a float."""
        if not self.training or self.dropout.p == 0:
            return h
        dropped, mask = torch.native_dropout(h, self.dropout.p, True)
        return offer(dropped, self._dropped, h, mask)

    def _dropped(self, h: Tensor, mask: Tensor) -> Tensor:
        """What `torch.native_dropout` gives for this mask, to the last bit: a CPU rounds the factor too."""
        scale = 1 / (1 - self.dropout.p)
        return h * (mask * scale).to(h.dtype) if h.device.type == "cpu" else h * mask * scale


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A pointwise layer that costs little enough to be made again."""
    h = layer(x)
    dtype = h.dtype  # autocast's, which is off in a backward pass

    def again(*inputs: Tensor) -> Tensor:
        return linear(*(value.to(dtype) for value in inputs))

    return offer(h, again, x, layer.weight, layer.bias)


class SelfAttention(nn.Module):
    """Residual self-attention over the tokens of each row, (N, T, C)."""

    def __init__(self, channels: int, num_heads: int, num_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(num_groups, channels)
        self.qkv = Linear(channels, 3 * channels)
        self.project = zero_init(Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, C) → (N, T, C)."""
        q, k, v = _linear(self.qkv, self.norm(x)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        return self.project(attention(q, k, v).flatten(2), x)


class ResBlock(nn.Module):
    """Residual block of both modalities and their time, with self-attention after the sum where asked for.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        embed_channels: width of the time embedding.
        audio_dilation: of the audio convolution.
        resample: ``down`` halves height and width and quarters the audio length; ``up`` is the opposite.
        video_attention: attention over space, then over time.
        audio_attention: attention over the audio tokens.
        num_heads: of the self-attention.
        dropout: probability, before the last pointwise layer.
        num_groups: of the group norms.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embed_channels: int,
        *,
        audio_dilation: int,
        resample: Literal["none", "down", "up"] = "none",
        video_attention: bool = False,
        audio_attention: bool = False,
        num_heads: int,
        dropout: float,
        num_groups: int,
    ) -> None:
        super().__init__()
        self.film = nn.Linear(embed_channels, 2 * out_channels)
        down = resample == "down"
        convs = AVSample(
            video=VideoConv(in_channels, out_channels, down),
            audio=AudioConv(in_channels, out_channels, audio_dilation, down),
        )
        paths = convs.map(
            lambda conv, resampling: ResidualPath(
                in_channels, out_channels, conv, **resampling, dropout=dropout, num_groups=num_groups
            ),
            RESAMPLING[resample],
        )
        self.video, self.audio = paths.video, paths.audio
        self.spatial_attention = SelfAttention(out_channels, num_heads, num_groups) if video_attention else None
        self.temporal_attention = SelfAttention(out_channels, num_heads, num_groups) if video_attention else None
        self.audio_attention = SelfAttention(out_channels, num_heads, num_groups) if audio_attention else None

    def forward(self, video: Tensor, audio: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Video (B, F, H, W, C), audio (B, L, C) → both, resampled.

        The embedding is SiLU of the time embedding, (B, E), or (2, B, E): one for the video, one for the audio.
        """
        film = self.film(embedding).to(video.dtype)
        video_film, audio_film = film if film.dim() == 3 else (film, film)
        video, audio = self.video(video, video_film), self.audio(audio, audio_film)
        if self.spatial_attention is not None and self.temporal_attention is not None:
            batch, frames, height, width, _ = video.shape
            pixels = self.spatial_attention(video.reshape(batch * frames, height * width, -1))
            tracks = pixels.unflatten(0, (batch, frames)).transpose(1, 2).flatten(0, 1)
            tracks = self.temporal_attention(tracks).unflatten(0, (batch, height * width))
            video = tracks.transpose(1, 2).reshape(batch, frames, height, width, -1)
        if self.audio_attention is not None:
            audio = self.audio_attention(audio)
        return video, audio


class CrossAttention(nn.Module):
    """Residual attention between the modalities: each asks the other, in windows of frames (`windowed_attention`).

    Args:
        channels: C of both modalities.
        num_heads: heads.
        window: frames that a query sees; None: all of them.
        shifted: whether the window is moved by the forward call's shift.
        num_groups: of the group norms.
    """

    def __init__(self, channels: int, num_heads: int, window: int | None, shifted: bool, num_groups: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.shifted = shifted
        self.video_norm = GroupNorm(num_groups, channels)
        self.audio_norm = GroupNorm(num_groups, channels)
        self.video_qkv = Linear(channels, 3 * channels)
        self.audio_qkv = Linear(channels, 3 * channels)
        self.video_project = zero_init(Linear(channels, channels))
        self.audio_project = zero_init(Linear(channels, channels))

    def max_shift(self, num_frames: int) -> int:
        """The largest shift whose window does not wrap for the first frame."""
        return max(num_frames - self.window, 0) if self.window else 0

    def forward(self, video: Tensor, audio: Tensor, shift: int | Tensor = 0) -> tuple[Tensor, Tensor]:
        """Video (B, F, H, W, C) and audio (B, L, C) → the same shapes."""
        num_frames = video.shape[1]
        window = min(self.window or num_frames, num_frames)
        tokens = video.flatten(1, 3)
        vq, vk, vv = _linear(self.video_qkv, self.video_norm(tokens)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        aq, ak, av = _linear(self.audio_qkv, self.audio_norm(audio)).unflatten(-1, (3, self.num_heads, -1)).unbind(2)
        to_video = windowed_attention(vq, ak, av, num_frames=num_frames, window=window, shift=shift)
        to_audio = windowed_attention(aq, vk, vv, num_frames=num_frames, window=window, shift=shift)
        video = self.video_project(to_video.flatten(2), tokens).view(video.shape)
        return video, self.audio_project(to_audio.flatten(2), audio)
