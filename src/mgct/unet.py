"""The coupled U-Net: one network, two streams, one time embedding, joined by random-shift multi-modal attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mgct import blocks, convolutions
from mgct.errors import UserError, check_numbers
from mgct.noise import NoiseSchedule, noise_from_velocity
from mgct.norms import GroupNorm
from mgct.recompute import made_again, offer
from mgct.types import AVSample
from mgct.whole_files import LoadedWhole

PredictionType = Literal["epsilon", "v_prediction"]
"""What a network's last layers give, by diffusers' names: the noise, or the velocity α ε - σ x0."""


class UNetBlock(nn.Module):
    """One entry of the encoder or decoder: a residual block, then maybe cross-attention, then maybe an up block."""

    def __init__(
        self, res: blocks.ResBlock, cross: blocks.CrossAttention | None = None, up: blocks.ResBlock | None = None
    ) -> None:
        super().__init__()
        self.res = res
        self.cross = cross
        self.up = up

    def forward(
        self, video: Tensor, audio: Tensor, embedding: Tensor, shift: int | Tensor = 0
    ) -> tuple[Tensor, Tensor]:
        """Video (B, F, H, W, C), audio (B, L, C) → both, one block further."""
        video, audio = self.res(video, audio, embedding)
        if self.cross is not None:
            video, audio = self.cross(video, audio, shift)
        if self.up is not None:
            video, audio = self.up(video, audio, embedding)
        return video, audio


def _joined(x: Tensor, skip: Tensor) -> Tensor:
    """Both next to each other."""
    return offer(torch.cat([x, skip], -1), lambda *parts: torch.cat(parts, -1), x, skip)


def _is_shifted(block: Any) -> bool:
    """Whether the block has cross-attention whose window is moved."""
    return block.cross is not None and block.cross.shifted


def _time_network(width: int) -> nn.Sequential:
    """Features of a time (B, E) → its embedding (B, E)."""
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))


class MultimodalUNet(LoadedWhole, ModelMixin, ConfigMixin):
    """The coupled U-Net of MM-Diffusion, ε_θ(v_t, a_t, t) → (ε̂_v, ε̂_a).

    The defaults are the paper's network (133,675,524 parameters). Any number of frames is taken; height and width must
    be multiples of 2^(levels-1), the audio length of 4^(levels-1), and at the coarsest level at which the modalities
    meet the audio must be at least as long as the video has frames.

    Args:
        model_channels: width of the first level.
        channel_mult: width of each level in units of ``model_channels``.
        num_res_blocks: residual blocks per level.
        cross_attention_resolutions: downsampling factors of the video at which the modalities attend to each other.
        cross_attention_windows: frames that a query sees, from its own on: one number per cross-attention resolution,
            or one for all. Attention knows no order within a window: a window of 1, not shifted, is a frame and its
            own sound.
        cross_attention_shift: whether these windows are moved by the forward call's ``window_shift``. Moved, they keep
            the modalities from learning what happens at the same time (``docs/method.md``).
        middle_cross_attention: cross-attention over all frames in the middle.
        video_attention_resolutions: downsampling factors at which frames have spatial and temporal self-attention.
        audio_attention_resolutions: the same for the audio's self-attention; the middle always has all three.
        num_heads: heads of every self-attention.
        num_head_channels: width of a head of every cross-attention.
        dropout: probability.
        norm_num_groups: groups of every group norm.
        video_channels: channels of the video.
        audio_channels: channels of the audio.
        target_time: a second time input, ``target_timestep``: the level that a prediction is meant to jump to. It
            enters through a layer that begins at zero and is fed the difference of the two times' embeddings, so the
            network with both times equal stays the plain denoiser, whatever is learned for the others.
        audio_time: a time input of the audio's own, ``audio_timestep``: the two modalities may then lie at different
            noise levels. Each is told its own and, through a layer as that of ``target_time``, the other's; with both
            equal the network is the one without.
        prediction_type: what the last layers give: the noise (``epsilon``), as MM-Diffusion's do, or the velocity
            v̂ (``v_prediction``). `forward` returns noise for either; ε̂ = σ x_t + α v̂ is of the default
            `NoiseSchedule`. Where little of a clip is left, α → 0, an error of the noise is one of x̂0 magnified by
            σ/α; one of the velocity is not.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("UNetBlock",)
    time_inputs = ("target_", "other_")
    """How the parameters of time inputs beyond the first begin."""

    @register_to_config
    def __init__(
        self,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_res_blocks: int = 2,
        cross_attention_resolutions: Sequence[int] = (2, 4, 8),
        cross_attention_windows: int | Sequence[int] = (1, 4, 8),
        cross_attention_shift: bool = True,
        middle_cross_attention: bool = True,
        video_attention_resolutions: Sequence[int] = (2, 4, 8),
        audio_attention_resolutions: Sequence[int] = (),
        num_heads: int = 4,
        num_head_channels: int = 64,
        dropout: float = 0.1,
        norm_num_groups: int = 32,
        video_channels: int = 3,
        audio_channels: int = 1,
        target_time: bool = False,
        audio_time: bool = False,
        prediction_type: PredictionType = "epsilon",
    ) -> None:
        super().__init__()
        counts = {"model_channels": model_channels, "num_res_blocks": num_res_blocks, "num_heads": num_heads}
        counts |= {"num_head_channels": num_head_channels, "norm_num_groups": norm_num_groups}
        counts |= {"video_channels": video_channels, "audio_channels": audio_channels}
        check_numbers(counts, counts)
        if prediction_type not in get_args(PredictionType):
            raise UserError(
                f"prediction_type must be one of {', '.join(get_args(PredictionType))}, got {prediction_type!r}"
            )
        if not channel_mult or min(channel_mult) < 1:
            raise UserError(f"channel_mult needs a positive width per level, got {list(channel_mult)}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {dropout}")
        if isinstance(cross_attention_windows, int):
            cross_attention_windows = [cross_attention_windows] * len(cross_attention_resolutions)
            self.register_to_config(cross_attention_windows=cross_attention_windows)
        if any(window < 1 for window in cross_attention_windows):
            raise UserError(f"cross_attention_windows must be 1 frame or more, got {list(cross_attention_windows)}")
        if len(cross_attention_resolutions) != len(cross_attention_windows):
            raise UserError(
                f"cross_attention_windows needs one window per cross-attention resolution: "
                f"{len(cross_attention_resolutions)} resolutions, {len(cross_attention_windows)} windows"
            )
        widths = [model_channels * mult for mult in channel_mult]
        if bad := [width for width in widths if width % norm_num_groups]:
            raise UserError(f"level widths {bad} are not multiples of norm_num_groups={norm_num_groups}")
        window_at = dict(zip(cross_attention_resolutions, cross_attention_windows, strict=True))
        common: dict[str, Any] = {"num_heads": num_heads, "dropout": dropout, "num_groups": norm_num_groups}

        def res_block(in_channels: int, out_channels: int, index: int, factor: int = 0, **options: Any) -> Any:
            """A residual block; ``index`` sets the dilation, ``factor`` (0: none) the attention at that resolution."""
            options.setdefault("video_attention", factor in video_attention_resolutions)
            options.setdefault("audio_attention", factor in audio_attention_resolutions)
            dilation = 2 ** (index % 10)
            return blocks.ResBlock(
                in_channels, out_channels, model_channels, audio_dilation=dilation, **options, **common
            )

        def cross_attention(channels: int, window: int | None, shifted: bool) -> blocks.CrossAttention:
            heads = max(channels // num_head_channels, 1)
            return blocks.CrossAttention(channels, heads, window, shifted, norm_num_groups)

        def cross_at(factor: int, channels: int) -> blocks.CrossAttention | None:
            if factor not in window_at:
                return None
            return cross_attention(channels, window_at[factor], cross_attention_shift)

        self.time_embed = _time_network(model_channels)
        self.target_embed = _time_network(model_channels) if target_time else None
        self.target_gate = nn.Linear(model_channels, model_channels, bias=False) if target_time else None
        if self.target_gate is not None:
            nn.init.zeros_(self.target_gate.weight)
        self.other_embed = _time_network(model_channels) if audio_time else None
        self.other_gate = nn.Linear(model_channels, 2 * model_channels, bias=False) if audio_time else None
        if self.other_gate is not None:
            nn.init.zeros_(self.other_gate.weight)
        self.video_stem = convolutions.VideoConv(video_channels, widths[0])
        self.audio_stem = convolutions.AudioConv(audio_channels, widths[0])

        self.encoder = nn.ModuleList()
        channels = widths[0]
        skips = [channels]
        for level, width in enumerate(widths):
            for _ in range(num_res_blocks):
                res = res_block(channels, width, len(skips), 2**level)
                self.encoder.append(UNetBlock(res, cross_at(2**level, width)))
                channels = width
                skips.append(channels)
            if level < len(widths) - 1:
                self.encoder.append(UNetBlock(res_block(channels, channels, len(skips), 0, resample="down")))
                skips.append(channels)

        last = len(skips)
        both = {"video_attention": True, "audio_attention": True}
        middle_cross = cross_attention(channels, None, False) if middle_cross_attention else None
        self.middle = nn.ModuleList(
            [
                UNetBlock(res_block(channels, channels, last, **both), middle_cross),
                UNetBlock(res_block(channels, channels, last, **both)),
            ]
        )

        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for position in range(num_res_blocks + 1):
                index = len(skips) - 1
                res = res_block(channels + skips.pop(), width, index, 2**level)
                rises = level > 0 and position == num_res_blocks
                grow = res_block(width, width, index - 1, 0, resample="up") if rises else None
                self.decoder.append(UNetBlock(res, cross_at(2**level, width), grow))
                channels = width

        self.video_norm = GroupNorm(norm_num_groups, channels)
        self.audio_norm = GroupNorm(norm_num_groups, channels)
        self.video_head = convolutions.VideoHead(channels, video_channels)
        self.audio_head = convolutions.AudioHead(channels, audio_channels)
        self.gradient_checkpointing = False
        self.recompute = False
        """Whether a training step makes what costs little a second time instead of keeping it (`mgct.recompute`). It is
        not done where blocks are checkpointed as a whole."""

    @property
    def num_shifted_blocks(self) -> int:
        """How many cross-attention blocks have a shifted window."""
        return sum(map(_is_shifted, self._blocks()))

    def max_window_shifts(self, num_frames: int) -> tuple[int, ...]:
        """The largest window shift of each shifted block, in forward order, for clips of ``num_frames`` frames."""
        return tuple(block.cross.max_shift(num_frames) for block in self._blocks() if _is_shifted(block))

    def draw_window_shifts(self, num_frames: int, generator: torch.Generator | None = None) -> list[int]:
        """One random shift per shifted block, uniform from 0 to its largest, from a CPU generator."""
        uniform = torch.rand(self.num_shifted_blocks, generator=generator, dtype=torch.float64).tolist()
        return [int(u * (most + 1)) for u, most in zip(uniform, self.max_window_shifts(num_frames), strict=True)]

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        timestep: Tensor,
        window_shift: int | Sequence[int] | Tensor | None = None,
        target_timestep: Tensor | None = None,
        audio_timestep: Tensor | None = None,
    ) -> AVSample:
        """Predict the noise of both modalities.

        Args:
            video: (B, F, C, H, W) noisy video, in the weights' precision or in float32.
            audio: (B, C, L) noisy audio, likewise.
            timestep: (B,) or scalar, integer or real, in [0, T-1].
            window_shift: offset in frames of the shifted cross-attention windows: an int for all, or one per shifted
                block (a sequence, or an integer tensor, which a compiled graph takes without being rebuilt). None:
                drawn from torch's CPU generator in training mode, 0 in evaluation mode. The same shift gives the same
                function, in a checkpointed recomputation too.
            target_timestep: r, (B,) or scalar, at most ``timestep``: the prediction is meant for the jump from
                ``timestep`` to there (`noise.ddim_step`). None: r = t, the denoiser. Only with ``target_time``.
            audio_timestep: (B,) or scalar: the noise level of the audio, ``timestep`` then being the video's. None: the
                same. Only with ``audio_time``.

        Returns:
            `AVSample` of predictions in the inputs' shapes.

        Raises:
            UserError: a size that the strides do not allow (it names the nearest that they do), or a time input that
                the network does not have.
        """
        self._check_sizes(video, audio)
        shifts = iter(self.window_shifts(window_shift, video.shape[1]))
        count = video.shape[0]  # `len` would fix the number in an exported network
        seen = timestep.expand(count)
        target, heard = (None if t is None else t.expand(count) for t in (target_timestep, audio_timestep))
        noisy = AVSample(video=video, audio=audio)
        embedding = self._embed(seen, target, heard, video.device)
        video, audio = (x.to(next(self.time_embed.parameters()).dtype) for x in (video, audio))

        def run(block: nn.Module, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
            shift = next(shifts) if _is_shifted(block) else 0
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                return self._gradient_checkpointing_func(block, video, audio, embedding, shift)
            return block(video, audio, embedding, shift)

        again = self.recompute and not self.gradient_checkpointing and not torch.compiler.is_compiling()
        with made_again(again):
            video, _ = self.video_stem(video.permute(0, 1, 3, 4, 2))
            audio, _ = self.audio_stem(audio.mT)
            skips = [(video, audio)]
            for block in self.encoder:
                video, audio = run(block, video, audio)
                skips.append((video, audio))
            for block in self.middle:
                video, audio = run(block, video, audio)
            for block in self.decoder:
                video_skip, audio_skip = skips.pop()
                video, audio = run(block, _joined(video, video_skip), _joined(audio, audio_skip))
            out = AVSample(
                video=self.video_head(self.video_norm(video, activate=True)),
                audio=self.audio_head(self.audio_norm(audio, activate=True)),
            )
        if self.config["prediction_type"] == "epsilon":
            return out
        schedule = NoiseSchedule(device=video.device)
        times = AVSample(video=seen, audio=seen if heard is None else heard)
        precise = torch.promote_types(video.dtype, torch.float32)
        return noisy.to(precise).map(
            lambda x, v, t: noise_from_velocity(x, v.to(precise), schedule.level(t)), out, times
        )

    @classmethod
    def from_mm_diffusion(cls, source: str | Path | Mapping[str, Tensor], **config: Any) -> MultimodalUNet:
        """A network with the weights of an MM-Diffusion checkpoint.

        Args:
            source: a ``.pt`` file (read with ``weights_only=True``), a ``.safetensors`` file, or a state_dict.
            config: settings that differ from the paper's.

        Raises:
            UserError: keys are missing, unexpected or of another shape; each is named.
        """
        from mgct.convert import load_mm_diffusion

        config.setdefault(
            "middle_cross_attention", config.get("cross_attention_windows", (1, 4, 8)) in ((1, 4, 8), [1, 4, 8])
        )
        return load_mm_diffusion(cls(**config), source)

    def _blocks(self) -> list[Any]:
        """Encoder, middle and decoder blocks in forward order."""
        return [*self.encoder, *self.middle, *self.decoder]

    def _embed(
        self, timestep: Tensor, target: Tensor | None, audio_timestep: Tensor | None, device: torch.device
    ) -> Tensor:
        """SiLU of the time embedding, (B, E) or, with ``audio_time``, (2, B, E): the video's, then the audio's.

        It is computed in float32 or better whatever the autocast.
        """
        if target is not None and self.target_gate is None:
            raise UserError("this network has no second time input; make it with target_time=True")
        if audio_timestep is not None and self.other_gate is None:
            raise UserError("this network has no time input of the audio's own; make it with audio_time=True")
        weight = next(self.time_embed.parameters())
        precise = torch.promote_types(weight.dtype, torch.float32)

        def features(time: Tensor) -> Tensor:
            return blocks.timestep_embedding(time.to(device), self.config["model_channels"], precise).to(weight.dtype)

        with torch.autocast(device.type, enabled=False):
            own = features(timestep)
            embedding = self.time_embed(own)
            if self.other_gate is not None and self.other_embed is not None:
                heard = own if audio_timestep is None else features(audio_timestep)
                apart = self.other_gate(self.other_embed(heard) - self.other_embed(own))
                embedding = torch.stack([embedding, self.time_embed(heard)]) + torch.stack(apart.chunk(2, 1))
            if self.target_gate is not None and self.target_embed is not None:
                goal = own if target is None else features(target)
                embedding = embedding + self.target_gate(self.target_embed(goal) - self.target_embed(own))
            return F.silu(embedding)

    def with_time_inputs(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state_dict of another network with the further time inputs that this network has, and no others.

        A freshly made network's are zero, and any has no effect where its time equals the first: as a denoiser of both
        modalities at one noise level the result is exactly the network that the weights are of.
        """
        own = {name: value for name, value in self.state_dict().items() if name.startswith(self.time_inputs)}
        others = (name for name in weights if name.startswith(self.time_inputs) and name not in own)
        return {**own, **{name: weights[name] for name in weights.keys() - set(others)}}

    def window_shifts(self, window_shift: int | Sequence[int] | Tensor | None, num_frames: int) -> Any:
        """The shift of each shifted block, as a list or a one-dimensional tensor."""
        count = self.num_shifted_blocks
        if window_shift is None:
            return self.draw_window_shifts(num_frames) if self.training else [0] * count
        if isinstance(window_shift, int):
            return [window_shift] * count
        if len(window_shift) != count:
            raise UserError(f"window_shift needs one value per shifted block: {count}, got {len(window_shift)}")
        return window_shift

    def _check_sizes(self, video: Tensor, audio: Tensor) -> None:
        """Refuse sizes that the strides do not allow, naming the nearest valid ones."""
        depth = len(self.config["channel_mult"]) - 1
        if video.dim() != 5 or video.shape[2] != self.config["video_channels"]:
            raise UserError(f"video must be (B, F, {self.config['video_channels']}, H, W), got {tuple(video.shape)}")
        if audio.dim() != 3 or audio.shape[1] != self.config["audio_channels"]:
            raise UserError(f"audio must be (B, {self.config['audio_channels']}, L), got {tuple(audio.shape)}")
        if video.shape[0] != audio.shape[0]:
            raise UserError(f"video has {video.shape[0]} clips, audio {audio.shape[0]}")
        sizes = (("height", video.shape[3], 2), ("width", video.shape[4], 2), ("audio length", audio.shape[2], 4))
        for name, size, stride in sizes:
            multiple = stride**depth
            if size % multiple or size == 0:
                below, above = size // multiple * multiple, (size // multiple + 1) * multiple
                nearest = f"{below} or {above}" if below else f"{above}"
                raise UserError(f"{name} {size} is not a multiple of {multiple}; the nearest valid: {nearest}")
        meets = [*self.config["cross_attention_resolutions"], 2**depth if self.config["middle_cross_attention"] else 1]
        coarsest = 4 ** (max(meets).bit_length() - 1)
        if audio.shape[2] // coarsest < video.shape[1]:
            raise UserError(
                f"{video.shape[1]} frames need at least {video.shape[1] * coarsest} audio samples for the modalities "
                f"to meet at every level, got {audio.shape[2]}"
            )
