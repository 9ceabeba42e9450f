"""Upsampling of generated video, as 64 → 256 pixels a side: MM-Diffusion's image super-resolution.

The network is a diffusers `UNet2DModel` on the noisy large image and the small one enlarged, side by side. It
predicts the noise and, for training, where the variance lies between its two bounds (Nichol & Dhariwal 2021);
sampling by DDIM uses the noise alone. `mgct.upsampler_trainer` trains one.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn import functional as F

from mgct import grids, predictors, samplers
from mgct.clip_random import ClipRandom, derive_seed, per_clip_randn
from mgct.convert import read_state_dict
from mgct.errors import UserError, check_loaded, check_numbers, explain_damage, explain_memory
from mgct.grids import CLEAN, Point
from mgct.noise import NoiseLevel, NoiseSchedule
from mgct.types import AVSample, quantise_pixels

FRACTION_OF_PIXEL = 1 / 255


class UpsamplerUNet(ModelMixin, ConfigMixin):
    """ε_θ(x_t, small image, t) and the variance's place v, as MM-Diffusion's `ImageSuperResModel`.

    The defaults are its 64 → 256 network (311,027,910 parameters). Sides of the large image must be multiples of
    2^(levels-1).

    Args:
        model_channels: width of the first level.
        channel_mult: width of each level in units of ``model_channels``; the first must be 1.
        num_res_blocks: residual blocks per level.
        attention_factors: downsampling factors of the levels with self-attention; the middle always has it.
        num_heads: heads of every attention, whatever its width.
        scale: how many times larger the image becomes.
        norm_num_groups: groups of every group norm.
        dropout: probability.
        residual_std: None: the network's output is ε̂, as in the reference. Otherwise the standard deviation σ_r, in
            units of [-1, 1], of the large image around the small one enlarged; ε̂ is then what that alone says plus
            the network's output, scaled (`residual_noise`). Networks trained from scratch need it.

    Raises:
        UserError: a setting is out of its range.
    """

    if TYPE_CHECKING:
        __call__: Callable[..., Tensor]

    @register_to_config
    def __init__(
        self,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_factors: Sequence[int] = (8, 16, 32),
        num_heads: int = 4,
        scale: int = 4,
        norm_num_groups: int = 32,
        dropout: float = 0.0,
        residual_std: float | None = None,
    ) -> None:
        super().__init__()
        counts = {"model_channels": model_channels, "num_res_blocks": num_res_blocks, "num_heads": num_heads}
        counts |= {"scale": scale, "norm_num_groups": norm_num_groups}
        check_numbers(counts, counts)
        if residual_std is not None and not 0 < residual_std < math.inf:
            raise UserError(f"residual_std must be positive and finite, got {residual_std}")
        if not channel_mult or channel_mult[0] != 1 or min(channel_mult) < 1:
            raise UserError(f"channel_mult must begin with 1 and have no width below, got {list(channel_mult)}")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must lie in [0, 1), got {dropout}")
        for name, parts in (("norm_num_groups", norm_num_groups), ("num_heads", num_heads)):
            if model_channels % parts:
                raise UserError(f"model_channels={model_channels} is not a multiple of {name}={parts}")
        attends = [2**level in attention_factors for level in range(len(channel_mult))]
        self.net: Any = UNet2DModel(
            in_channels=6,
            out_channels=6,
            freq_shift=0,
            flip_sin_to_cos=True,
            block_out_channels=tuple(model_channels * mult for mult in channel_mult),
            layers_per_block=num_res_blocks,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
            downsample_type="resnet",
            upsample_type="resnet",
            dropout=dropout,
            attention_head_dim=model_channels // num_heads,
            norm_num_groups=norm_num_groups,
            attn_norm_num_groups=norm_num_groups,
            norm_eps=1e-5,
            resnet_time_scale_shift="scale_shift",
        )
        # UNet2DModel has one head width for all levels; the reference has one head count
        for module in self.modules():
            if type(module).__name__ == "Attention":
                module.heads = num_heads
                module.scale = (module.to_q.out_features // num_heads) ** -0.5

    def forward(self, x: Tensor, small: Tensor, timestep: Tensor) -> Tensor:
        """Noise (first three channels) and v (last three).

        Args:
            x: (B, 3, H, W) noisy large images.
            small: (B, 3, h, w) small images in [-1, 1]; enlarged bilinearly to H × W.
            timestep: (B,) integer or real.

        Returns:
            (B, 6, H, W).
        """
        enlarged = F.interpolate(small.to(x), x.shape[-2:], mode="bilinear", align_corners=False)
        output = self.net(torch.cat([x, enlarged], 1), timestep).sample
        residual_std = self.config["residual_std"]
        if residual_std is None:
            return output
        level = _schedule(x.device).level(timestep)
        noise, place = output.chunk(2, 1)
        return torch.cat([residual_noise(noise, x, enlarged, level, residual_std), place], 1)

    def check_side(self, side: int) -> None:
        """Refuse a side of the large image, in pixels, that the network cannot make.

        Raises:
            UserError: it is no multiple of the scale, or of 2^(levels-1).
        """
        for what, multiple in (
            ("scale", self.config["scale"]),
            ("levels", 2 ** (len(self.config["channel_mult"]) - 1)),
        ):
            if side % multiple:
                raise UserError(
                    f"this upsampler makes images whose sides are multiples of {multiple} (its {what}), not {side}"
                )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a saved network: a folder written by ``save_pretrained``, or the name of one on the Hub.

        Raises:
            UserError: the folder's files are damaged.
        """
        with explain_damage(Path(pretrained_model_name_or_path), "upsampler"):
            options = {"use_safetensors": True, **kwargs, "output_loading_info": True}
            network, info = super().from_pretrained(pretrained_model_name_or_path, **options)
            check_loaded(info)
            return network

    @classmethod
    def from_mm_diffusion(cls, source: str | Path | Mapping[str, Tensor], **config: Any) -> UpsamplerUNet:
        """A network with MM-Diffusion's weights, loaded strictly.

        Args:
            source: its ``.pt`` file, a safetensors file, or the state_dict.
            config: arguments of the constructor that differ from the defaults.

        Raises:
            UserError: keys are missing, unexpected or of another shape; they are named.
        """
        model = cls(**config)
        state = dict(source) if isinstance(source, Mapping) else read_state_dict(source)
        own = model.net.state_dict()
        heads = model.config["num_heads"]
        try:
            mapped = dict(_renamed(state, len(model.config["channel_mult"]), model.config["num_res_blocks"], heads))
        except KeyError as error:
            raise UserError(
                f"not an upsampler of MM-Diffusion with this configuration: unexpected {error.args[0]}"
            ) from None
        problems = [f"missing {key}" for key in own if key not in mapped]
        problems += [f"unexpected {key}" for key in mapped if key not in own]
        problems += [
            f"{key} has shape {tuple(tensor.shape)}, the network {tuple(own[key].shape)}"
            for key, tensor in mapped.items()
            if key in own and tensor.shape != own[key].shape
        ]
        if problems:
            shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
            raise UserError(f"these weights do not fit this configuration: {shown}")
        model.net.load_state_dict(mapped)
        return model


@lru_cache(maxsize=8)
def _schedule(device: torch.device) -> NoiseSchedule:
    return NoiseSchedule(device=device)


def residual_noise(output: Tensor, x_t: Tensor, enlarged: Tensor, level: NoiseLevel, residual_std: float) -> Tensor:
    """ε̂ = σ (x_t - α e) / V + (α σ_r / √V) output, with V = (α σ_r)² + σ² and e the small image enlarged.

    The first term is E[ε | x_t] if x0 ~ N(e, σ_r²), the factor of the second the standard deviation that ε then has
    left (the preconditioning of Karras et al. 2022, around e instead of 0). So x̂0 is e plus σ_r times something of
    order 1 at any noise level. A network whose output is ε̂ itself must at high noise pass x_t through to 1 part in 100,
    or x̂0 = (x_t - σ ε̂) / α, with α near 0, has the wrong colours.

    Args:
        output: (B, C, H, W) of order 1.
        x_t: (B, C, H, W) noisy large images.
        enlarged: (B, C, H, W).
        level: their noise levels.
        residual_std: σ_r.
    """
    alpha, sigma = (rate.to(x_t.dtype).reshape(-1, 1, 1, 1) for rate in level)
    variance = (alpha * residual_std).square() + sigma.square()
    spread = residual_spread(level, residual_std).to(x_t.dtype).reshape(-1, 1, 1, 1)
    return sigma * (x_t - alpha * enlarged) / variance + spread * output


def residual_spread(level: NoiseLevel, residual_std: float) -> Tensor:
    """α σ_r / √((α σ_r)² + σ²), (B,) in (0, 1): the deviation of ε once the noisy and the small image are known."""
    signal = level.alpha * residual_std
    return signal / (signal.square() + level.sigma.square()).sqrt()


RES_NAMES = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
TOP_NAMES = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def _block_names(levels: int, num_res_blocks: int) -> dict[str, str]:
    """MM-Diffusion's module prefix → diffusers', for residual and attention blocks."""
    names = {
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
    }
    for level in range(levels):
        for block in range(num_res_blocks):
            index = 1 + level * (num_res_blocks + 1) + block
            names[f"input_blocks.{index}.0"] = f"down_blocks.{level}.resnets.{block}"
            names[f"input_blocks.{index}.1"] = f"down_blocks.{level}.attentions.{block}"
        names[f"input_blocks.{(level + 1) * (num_res_blocks + 1)}.0"] = f"down_blocks.{level}.downsamplers.0"
        for block in range(num_res_blocks + 1):
            index = level * (num_res_blocks + 1) + block
            names[f"output_blocks.{index}.0"] = f"up_blocks.{level}.resnets.{block}"
            names[f"output_blocks.{index}.1"] = f"up_blocks.{level}.attentions.{block}"
        names[f"output_blocks.{index}.2"] = f"up_blocks.{level}.upsamplers.0"
    return names


def _renamed(state: Mapping[str, Tensor], levels: int, num_res_blocks: int, heads: int) -> Iterator[tuple[str, Tensor]]:
    """MM-Diffusion's entries under diffusers' names; the fused q, k, v are taken apart, heads outermost.

    Raises:
        KeyError: an entry that has no counterpart.
    """
    blocks = _block_names(levels, num_res_blocks)
    for key, tensor in state.items():
        stem, _, kind = key.rpartition(".")
        if stem in TOP_NAMES:
            yield f"{TOP_NAMES[stem]}.{kind}", tensor
            continue
        match = re.fullmatch(r"((?:input|output)_blocks\.\d+\.\d|middle_block\.\d)\.(.+)", stem)
        if match is None or match[1] not in blocks:
            raise KeyError(key)
        block, part = blocks[match[1]], match[2]
        if part == "qkv":
            width = tensor.shape[0] // 3
            split = tensor.reshape(heads, 3, width // heads, *tensor.shape[1:2])
            for index, name in enumerate(("to_q", "to_k", "to_v")):
                yield f"{block}.{name}.{kind}", split[:, index].flatten(0, 1)
        elif part == "proj_out":
            yield f"{block}.to_out.0.{kind}", tensor.squeeze(-1) if kind == "weight" else tensor
        elif part == "norm":
            yield f"{block}.group_norm.{kind}", tensor
        elif part in RES_NAMES:
            # an up block without attention sits where an attention block would
            block = re.sub(r"attentions\.\d+", "upsamplers.0", block)
            yield f"{block}.{RES_NAMES[part]}.{kind}", tensor
        else:
            raise KeyError(key)


# ---------------------------------------------------------------------------------------------- sampling


def ddim_grid(schedule: NoiseSchedule, steps: int) -> grids.Grid:
    """The reference's "ddimN" timesteps, 0, T/N, 2T/N, … from the noisiest to 0, then the clean end.

    Raises:
        UserError: ``steps`` does not divide T.
    """
    if steps < 1 or schedule.num_timesteps % steps:
        raise UserError(
            f"upsampling takes a number of steps that divides {schedule.num_timesteps}, got {steps}; try 25"
        )
    stride = schedule.num_timesteps // steps
    return [*grids.points(schedule, torch.arange(0, schedule.num_timesteps, stride).flip(0)), CLEAN]


@torch.no_grad()
def upsample(
    unet: UpsamplerUNet,
    clips: AVSample,
    schedule: NoiseSchedule,
    *,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    steps: int = 25,
    images_at_once: int = 16,
) -> AVSample:
    """Enlarge the video of clips by DDIM; the sound is kept.

    Each clip has one noise image, a function of (seed, its index), for all its frames, so that they do not flicker.

    Args:
        unet: the network.
        clips: video (N, F, 3, h, w) and audio (N, 1, L) in [-1, 1].
        schedule: the noise schedule of the network.
        seed: any integer.
        indices: the clips' numbers; None: 0, 1, ….
        steps: network calls per frame.
        images_at_once: frames in memory at once; it changes speed and memory, not the result.

    Returns:
        Video (N, F, 3, scale h, scale w) and the audio, on the CPU.

    Raises:
        UserError: steps that do not divide T, sides that the network cannot take, or too little memory.
    """
    grid = ddim_grid(schedule, steps)
    count, frames, channels, height, width = clips.video.shape
    scale = unet.config["scale"]
    size = (channels, height * scale, width * scale)
    for side in size[1:]:
        unet.check_side(side)
    if images_at_once < 1:
        raise UserError(f"images_at_once must be at least 1, got {images_at_once}")
    indices = range(count) if indices is None else indices
    video = torch.empty(count, frames, *size)
    for row, index in enumerate(indices):
        noise = per_clip_randn(size, [derive_seed(seed, index, "upsampler")]).to(unet.device)
        for first in range(0, frames, images_at_once):
            small = clips.video[row, first : first + images_at_once].to(unet.device)

            def predict(x: Tensor, point: Point, small: Tensor = small) -> Tensor:
                timestep = torch.full((len(x),), point.timestep, device=x.device)
                return unet(x.to(unet.dtype), small.to(unet.dtype), timestep)[:, :3].float()

            with explain_memory("images_at_once", images_at_once):
                large = samplers.ddim(predictors.clipped(predict), noise.repeat(len(small), 1, 1, 1), grid)
            video[row, first : first + images_at_once] = large.cpu()
    return AVSample(video=video, audio=clips.audio.cpu())


# ---------------------------------------------------------------------------------------------- for training


def upsampler_loss(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    noise: Tensor,
    timestep: Tensor,
    schedule: NoiseSchedule,
    residual_std: float | None = None,
) -> Tensor:
    """The hybrid loss (Nichol & Dhariwal 2021, Eq. 16 with λ = 1, as in MM-Diffusion), per image (B,).

    Mean of (ε̂ - ε)², plus the variational bound of the step in bits per dimension, in which ε̂ is held fixed: it
    trains v alone. log variance = (v+1)/2 log β_t + (1-v)/2 log β̃_t. In the residual form (ε̂ - ε)² is divided by the
    variance that ε has left (`residual_spread`), which makes it the error of the network's own output: else high noise,
    where the picture is laid out, would hardly count.

    Args:
        output: (B, 6, H, W), ε̂ and v.
        x0: (B, 3, H, W) in [-1, 1].
        x_t: x0 at the timesteps' noise level.
        noise: ε.
        timestep: (B,) integers.
        schedule: the noise schedule.
        residual_std: of the network (`UpsamplerUNet`).
    """
    predicted, v = output.chunk(2, 1)
    alpha_bar = schedule.alpha_bar
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
    posterior_variance = schedule.betas * (1 - before) / (1 - alpha_bar)
    posterior_variance[0] = posterior_variance[1]

    def at(table: Tensor) -> Tensor:
        return table[timestep].to(x0.dtype).reshape(-1, 1, 1, 1)

    low, high = at(posterior_variance.log()), at(schedule.betas.log())
    log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
    x0_hat = (x_t - at((1 - alpha_bar).sqrt()) * predicted.detach()) / at(alpha_bar.sqrt())
    share = at(schedule.betas * before.sqrt() / (1 - alpha_bar))
    difference = share * (x0_hat - x0)  # of the two posterior means, whose x_t terms are equal
    divergence = 0.5 * (log_variance - low - 1 + (low - log_variance).exp() + difference**2 * (-log_variance).exp())
    likelihood = -_log_pixel_probability(x0, x0 + difference, 0.5 * log_variance)
    bound = torch.where(timestep.reshape(-1, 1, 1, 1) == 0, likelihood, divergence) / math.log(2)
    error = (predicted - noise).square().flatten(1).mean(1)
    if residual_std is not None:
        error = error / residual_spread(schedule.level(timestep), residual_std).to(error.dtype).square()
    return error + bound.flatten(1).mean(1)


def _log_pixel_probability(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of 8-bit pixels x in [-1, 1] under a Gaussian integrated over each pixel value's bin."""

    def cumulative(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    above = cumulative((x - mean + FRACTION_OF_PIXEL) * (-log_std).exp())
    below = cumulative((x - mean - FRACTION_OF_PIXEL) * (-log_std).exp())
    inside = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return inside.clamp(min=1e-12).log()


def shrink(images: Tensor, scale: int) -> Tensor:
    """(B, 3, H, W) made ``scale`` times smaller, bicubic with antialiasing, as the data are prepared; in [-1, 1]."""
    return F.interpolate(images, scale_factor=1 / scale, mode="bicubic", align_corners=False, antialias=True).clamp(
        -1, 1
    )


def degrade(small: Tensor, random: ClipRandom) -> Tensor:
    """Make small images less perfect, as generated ones are (Real-ESRGAN; MM-Diffusion): noise, then JPEG.

    Each with probability 1/2 per image: Gaussian noise of up to 20/255, JPEG of quality 20 to 80.

    Args:
        small: (B, 3, h, w) in [-1, 1].
        random: the images' random numbers, on the CPU.
    """
    from io import BytesIO

    from PIL import Image

    names = ("noisy", "coded", "level", "quality")
    noisy, coded, level, quality = (random.uniform(f"degrade {name}") for name in names)
    spread = torch.where(noisy < 0.5, level * (20 / 127.5), 0.0).to(small.dtype).reshape(-1, 1, 1, 1)
    result = (small + spread * random.normal("degrade noise", small.shape[1:])).clamp(-1, 1)
    for row in (coded < 0.5).nonzero().flatten().tolist():
        pixels = quantise_pixels(result[row]).permute(1, 2, 0)
        buffer = BytesIO()
        Image.fromarray(pixels.numpy()).save(buffer, "jpeg", quality=round(20 + 60 * quality[row].item()))
        decoded = torch.frombuffer(bytearray(Image.open(buffer).convert("RGB").tobytes()), dtype=torch.uint8)
        result[row] = decoded.reshape(pixels.shape).permute(2, 0, 1).float() / 127.5 - 1
    return result
