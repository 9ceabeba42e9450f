"""Batched drawing: anti-aliased shapes, noise textures and small soft particles in continuous coordinates.

A scene is drawn on the square [-1, 1]² (x to the right, y downwards) at real times in seconds, so a larger frame or a
higher frame rate shows the same scene. Only elementwise operations, gathers and integer scatters are used, and of the
functions only those (sin, cos, exp, log, sqrt) whose result does not depend on an element's place in memory: what is
drawn for one clip does not depend, to the last bit, on the clips beside it.

Shapes: B clips, F frames, R×R pixels. A field is (B, F, R, R), a picture (B, F, 3, R, R); times and what depends on
them are (B, F).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mgct.data.worlds.random import Draws
from mgct.types import ClipSpec

TAU = 2 * math.pi


def render_scale(size: int) -> int:
    """Pixels drawn per side for each pixel shown: small frames are drawn larger and averaged."""
    return max(1, math.ceil(32 / size))


class Canvas:
    """Pixel grid, frame times and random draws of a batch of clips.

    Attributes:
        draws: the clips' random draws.
        clips, frames, size: B, F and R, the side in drawn pixels (a multiple of the clip's size).
        time_s: (1, F) the middle of each frame's exposure, seconds.
        x, y: (1, 1, 1, R) and (1, 1, R, 1) pixel centres in [-1, 1].
        pixel: the side of a drawn pixel in scene units.
    """

    def __init__(self, draws: Draws, clip: ClipSpec) -> None:
        device = draws.keys.device
        self.draws = draws
        self.device = device
        self.clip = clip
        self.clips, self.frames = len(draws.keys), clip.frames
        self.scale = render_scale(clip.size)
        self.size = clip.size * self.scale
        self.pixel = 2 / self.size
        self.time_s = ((torch.arange(clip.frames, device=device, dtype=torch.float32) + 0.5) / clip.fps)[None]
        axis = (torch.arange(self.size, device=device, dtype=torch.float32) + 0.5) * self.pixel - 1
        self.x, self.y = axis.view(1, 1, 1, -1), axis.view(1, 1, -1, 1)

    def coverage(self, distance: Tensor, softness: float | Tensor = 0.0) -> Tensor:
        """How much of each pixel lies inside a shape of signed ``distance`` (negative inside), in [0, 1]."""
        if isinstance(softness, float) and softness == 0.0:
            return (0.5 - distance * (1 / self.pixel)).clamp_(0, 1)
        return (0.5 - distance / (softness + self.pixel)).clamp_(0, 1)

    def finish(self, picture: Tensor) -> Tensor:
        """A picture of light in [0, 1] averaged to the clip's size, in [-1, 1]."""
        batch, frames = picture.shape[:2]
        if self.scale > 1:
            parts = picture.reshape(batch, frames, 3, self.clip.size, self.scale, self.clip.size, self.scale)
            picture = parts.mean((4, 6))
        return picture.clamp(0, 1) * 2 - 1


def per_frame(value: Tensor) -> Tensor:
    """(B, F) or (B,) shaped to act on fields (B, F, R, R)."""
    return value[:, :, None, None] if value.dim() == 2 else value[:, None, None, None]


def rgb(*colors: Sequence[float]) -> Tensor:
    """Colours (N, 3) from N triples in [0, 1]."""
    return torch.tensor(colors, dtype=torch.float32)


def as_picture(color: Tensor) -> Tensor:
    """(B, 3) or (B, F, 3) colours shaped to act on pictures (B, F, 3, R, R)."""
    return color[:, None, :, None, None] if color.dim() == 2 else color[:, :, :, None, None]


def blend(under: Tensor, over: Tensor, amount: Tensor) -> Tensor:
    """``over`` laid upon ``under`` (pictures) where ``amount`` (a field in [0, 1]) says."""
    return torch.lerp(under, over, amount.unsqueeze(2))


def mix(a: Tensor, b: Tensor, amount: Tensor) -> Tensor:
    """Colours (B, 3) between ``a`` and ``b`` by ``amount`` (B,)."""
    return torch.lerp(a, b, amount[:, None])


def smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """0 below ``low``, 1 above ``high``, a smooth cubic between."""
    u = ((x - low) / (high - low)).clamp_(0, 1)
    return u * u * (3 - 2 * u)


def ramp(field: Tensor, colors: Tensor, stops: Sequence[float]) -> Tensor:
    """A picture from a field through a piecewise linear palette: ``colors`` (N, 3) or (B, N, 3) at N ``stops``."""
    colors = colors.to(field.device)
    if colors.dim() == 2:
        colors = colors[None]
    picture = as_picture(colors[:, 0])
    for k in range(1, len(stops)):
        amount = ((field - stops[k - 1]) * (1 / (stops[k] - stops[k - 1]))).clamp_(0, 1)
        picture = picture + amount.unsqueeze(2) * as_picture(colors[:, k] - colors[:, k - 1])
    return picture


def _refine(lattice: Tensor, factor: int) -> Tensor:
    """A periodic lattice (B, n, n) interpolated smoothly to (B, n·factor, n·factor)."""
    u = torch.arange(factor, device=lattice.device, dtype=torch.float32) / factor
    weight = (u * u * u * (u * (u * 6 - 15) + 10)).view(1, 1, 1, -1)
    for _ in range(2):
        ahead = torch.roll(lattice, -1, 2)
        lattice = torch.lerp(lattice[..., None], ahead[..., None], weight).flatten(2).transpose(1, 2)
    return lattice


class Texture:
    """Periodic fractal value noise (B, channels) of mean 0.5 to be looked up at any coordinates.

    Octave k has ``base``·2ᵏ cells to the period and ``roughness`` times the amplitude of the one before; octaves finer
    than the canvas can show fade out, so a small frame shows the smooth parts of what a large one shows.

    Args:
        canvas: where it will be looked up.
        name: of the random stream.
        base: cells to the period in the coarsest octave.
        octaves: how many at the most.
        extent: scene units that one period covers where it is looked up (sets which octaves a pixel can resolve).
        channels: independent textures looked up at the same coordinates.
        roughness: amplitude of an octave relative to the one before.
    """

    def __init__(
        self,
        canvas: Canvas,
        name: str,
        base: int = 4,
        octaves: int = 4,
        extent: float = 2.0,
        channels: int = 1,
        roughness: float = 0.55,
    ) -> None:
        finest = max(1.0, min(base * 2.0 ** (octaves - 1), extent / canvas.pixel / 1.5))
        kept = max(1, min(octaves, math.ceil(math.log2(max(finest / base, 1.0)) + 1e-6) + 1))
        cells = base * 2 ** (kept - 1)
        texels = cells * 2 if cells < 96 else cells
        total = sum(roughness**k for k in range(octaves))
        image = torch.zeros(canvas.clips * channels, texels, texels, device=canvas.device)
        for k in range(kept):
            n = base * 2**k
            visible = min(1.0, max(0.0, 2.0 - n * canvas.pixel * 1.5 / extent)) if k else 1.0
            values = canvas.draws.uniform(f"{name}/{k}", channels, n, n).flatten(0, 1) - 0.5
            image += _refine(values, texels // n) * (visible * roughness**k / total)
        image = (image * 1.9 + 0.5).view(canvas.clips, channels, texels, texels)
        self.image = F.pad(image, (0, 1, 0, 1), mode="circular")

    def __call__(self, u: Tensor, v: Tensor) -> Tensor:
        """The texture at coordinates (B, F, H, W) in periods: (B, F, H, W), or (B, C, F, H, W) if it has channels."""
        u, v = torch.broadcast_tensors(u - u.floor(), v - v.floor())
        batch, channels = self.image.shape[:2]
        grid = torch.stack((u, v), -1).expand(batch, *u.shape[1:], 2) * 2 - 1
        flat = grid.reshape(batch, -1, u.shape[-1], 2)
        found = F.grid_sample(self.image, flat, align_corners=True, padding_mode="border")
        found = found.view(batch, channels, *u.shape[1:])
        return found[:, 0] if channels == 1 else found


class Curve:
    """Periodic fractal noise of one variable (B,), mean 0.5: ridges, paths, gusts.

    Args:
        draws: the clips' draws.
        name: of the random stream.
        cells: random values to the period.
        octaves: each with twice the cells and half the amplitude.
    """

    def __init__(self, draws: Draws, name: str, cells: int = 8, octaves: int = 4) -> None:
        self.octaves = [draws.uniform(f"{name}/{k}", cells * 2**k) for k in range(octaves)]

    def __call__(self, u: Tensor) -> Tensor:
        """The curve at positions (B, ...) in periods."""
        u = (u - u.floor()).expand(len(self.octaves[0]), *u.shape[1:])
        result, total = torch.zeros_like(u), 0.0
        for k, values in enumerate(self.octaves):
            n = values.shape[1]
            position = u * n
            cell = position.floor()
            part = position - cell
            part = part * part * (3 - 2 * part)
            left = cell.long().clamp_(0, n - 1)
            flat = left.reshape(len(values), -1)
            a = values.gather(1, flat).view_as(u)
            b = values.gather(1, (flat + 1) % n).view_as(u)
            result = result + torch.lerp(a, b, part) * 0.5**k
            total += 0.5**k
        return result / total


_FIXED = 2.0**16


def splat(
    canvas: Canvas,
    x: Tensor,
    y: Tensor,
    radius: Tensor | float,
    weight: Tensor,
    reach: float,
    streak: tuple[Tensor, Tensor] | None = None,
    rim: float = 0.0,
    squash: float = 1.0,
) -> Tensor:
    """Soft round particles, short streaks or rings, summed into a field (B, F, R, R).

    A particle at distance d adds weight · (1 - d²/r²)² (0 beyond r). One smaller than a pixel keeps its light, spread
    over the pixel. Sums are taken in fixed point, so their order does not matter.

    Args:
        canvas: where to draw.
        x: centres in scene units, (B, F, P) or (B, F, E, P); all that follow broadcast with them.
        y: centres, downwards.
        radius: in scene units.
        weight: peak values.
        reach: the largest radius plus half streak, in scene units: sets the patch drawn for each particle.
        streak: half the streak's vector, if particles are drawn as streaks.
        rim: if positive, only a ring of this part of the radius (at least a pixel) is drawn.
        squash: height of the patch relative to its width (a ring lying on water seen from the side).
    """
    parts = torch.broadcast_tensors(x, y, torch.as_tensor(radius, device=canvas.device), weight, *(streak or ()))
    x, y, reach_of, weight, *way = (
        part.expand(canvas.clips, canvas.frames, *part.shape[2:]).flatten(2) for part in parts
    )
    size = canvas.size
    half = math.ceil(max(reach / canvas.pixel, 1.0)) + 1
    side = 2 * half + 1
    px, py = (x + 1) * (1 / canvas.pixel) - 0.5, (y + 1) * (1 / canvas.pixel) - 0.5
    seen = (px > -half) & (px < size + half) & (py > -half) & (py < size + half)
    px, py = px.clamp(-half, size - 1 + half), py.clamp(-half, size - 1 + half)
    column, row = px.round(), py.round()
    offsets = torch.arange(-half, half + 1, device=canvas.device, dtype=torch.float32)
    dx = ((column - px)[..., None] + offsets)[..., None, :]
    dy = ((row - py)[..., None] + offsets)[..., :, None]
    if way:
        sx, sy = (part[..., None, None] * (1 / canvas.pixel) for part in way)
        along = ((dx * sx + dy * sy) / (sx * sx + sy * sy + 1e-6)).clamp_(-1, 1)
        dx, dy = dx - along * sx, dy - along * sy
    radius_px = reach_of * (1 / canvas.pixel)
    shown = radius_px.clamp(min=1.0)
    strength = weight * seen * torch.minimum(radius_px * radius_px, torch.ones_like(radius_px)) * _FIXED
    if squash != 1.0:
        dy = dy * (1 / squash)
    square = dx * dx + dy * dy
    if rim:
        thick = (shown * rim).clamp(min=1.0)[..., None, None]
        square = (torch.sqrt(square) - shown[..., None, None] + thick).square() / (thick * thick)
        inside = (1 - square).clamp_(min=0)
    else:
        inside = (1 - square / (shown * shown)[..., None, None]).clamp_(min=0)
    value = (inside * inside * strength[..., None, None]).round_().to(torch.int32)
    wide = size + 4 * half + 2
    base = (row.long() + 2 * half) * wide + column.long() + 2 * half
    stencil = (offsets.long()[:, None] * wide + offsets.long()[None]).view(1, 1, 1, side, side)
    index = base[..., None, None] + stencil
    shape = (canvas.clips, canvas.frames, wide * wide)
    total = torch.zeros(shape, dtype=torch.int32, device=canvas.device)
    total.scatter_add_(2, index.reshape(*shape[:2], -1), value.expand(*index.shape).reshape(*shape[:2], -1))
    field = total.view(canvas.clips, canvas.frames, wide, wide)
    return field[:, :, 2 * half : 2 * half + size, 2 * half : 2 * half + size].to(torch.float32) * (1 / _FIXED)
