"""The world `dance`: a dancer on a lit stage and the music that moves them, in ten genres after AIST++.

Three parts: `motion` (poses of a skeleton in time, from the beats), `music` (drums, bass and harmony, on the same
beats), and here the stage: body, clothes, camera, lights.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from mgct.data.worlds.base import Scene, World
from mgct.data.worlds.motion import GENRES, LIMBS, Beats, joints_in_time
from mgct.data.worlds.music import music
from mgct.data.worlds.paint import (
    Canvas,
    Curve,
    Texture,
    as_picture,
    blend,
    per_frame,
    rgb,
    smoothstep,
)
from mgct.data.worlds.sound import Tape

_SKIN = ((0.97, 0.82, 0.70), (0.88, 0.67, 0.50), (0.68, 0.46, 0.31), (0.42, 0.27, 0.18))
_CLOTH = (
    (0.92, 0.92, 0.90),
    (0.09, 0.09, 0.11),
    (0.82, 0.16, 0.16),
    (0.16, 0.32, 0.75),
    (0.95, 0.76, 0.16),
    (0.18, 0.55, 0.30),
    (0.90, 0.42, 0.62),
    (0.45, 0.25, 0.60),
    (0.95, 0.50, 0.15),
    (0.45, 0.47, 0.50),
)
_HAIR = ((0.06, 0.05, 0.05), (0.25, 0.14, 0.07), (0.62, 0.42, 0.18), (0.55, 0.14, 0.10), (0.70, 0.70, 0.72))
_LAMP = ((1.0, 0.25, 0.45), (0.25, 0.55, 1.0), (0.65, 0.3, 1.0), (1.0, 0.7, 0.25), (0.2, 0.9, 0.75), (1.0, 0.95, 0.85))


class _Camera:
    """A perspective camera that looks at the dancer, and slowly moves.

    World: x to the right of the stage, y up, z towards the audience, in metres; the dancer stands near the origin.
    """

    def __init__(self, canvas: Canvas) -> None:
        draws, t = canvas.draws, canvas.time_s
        drift = Curve(draws, "camera/drift", 16, 2)(t * 0.05) - 0.5
        self.yaw = draws.uniform("camera_yaw", low=-0.7, high=0.7)
        turn = self.yaw[:, None] + draws.uniform("camera_turn", 1, low=-0.12, high=0.12) * t + drift * 0.15
        self.height = draws.uniform("camera_height", low=1.0, high=2.5)
        self.distance = draws.uniform("camera_distance", low=4.5, high=5.9)
        self.turn, self.cos, self.sin = turn, torch.cos(turn), torch.sin(turn)
        self.far = self.distance[:, None] * torch.exp(draws.uniform("camera_zoom", 1, low=-0.05, high=0.05) * t)
        tilt = (self.height - 0.9) / self.distance
        self.tilt_cos, self.tilt_sin = torch.cos(tilt)[:, None], torch.sin(tilt)[:, None]
        self.focal = draws.uniform("camera_focal", 1, low=4.4, high=5.0)

    def project(self, point: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points (B, F, J, 3) → picture x, y, scale (scene units per metre) and depth in metres, each (B, F, J)."""
        cos, sin, far = self.cos[..., None], self.sin[..., None], self.far[..., None]
        x = cos * point[..., 0] - sin * point[..., 2]
        z = sin * point[..., 0] + cos * point[..., 2]
        y = point[..., 1] - 0.9
        depth = far - (self.tilt_cos[..., None] * z + self.tilt_sin[..., None] * y)
        up = self.tilt_cos[..., None] * y - self.tilt_sin[..., None] * z
        scale = self.focal[..., None] / depth.clamp(min=1.0) * 0.92
        return x * scale, 0.06 - up * scale, scale, depth


def _stage(canvas: Canvas, camera: _Camera, beats: Beats, lamp: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The empty stage as a picture, its floor's metres (x, z) at each pixel."""
    draws = canvas.draws
    pulse = beats.pulse(canvas.time_s, 5.0)
    # Floor: the ray through a pixel meets y = 0.
    up = (0.06 - canvas.y) / (per_frame(camera.focal) * 0.92)
    fall = per_frame(camera.tilt_sin) - per_frame(camera.tilt_cos) * up
    eye = 0.9 + per_frame(camera.far * camera.tilt_sin)
    reach = eye / fall.clamp(min=0.02)
    # The wall stands three metres behind the dancer.
    edge = eye / per_frame(camera.far + 3.0)
    is_floor = canvas.coverage((edge - fall) * (per_frame(camera.focal) * 0.92))
    side = canvas.x / (per_frame(camera.focal) * 0.92) * reach
    ahead = per_frame(camera.far * camera.tilt_cos) - reach * (
        per_frame(camera.tilt_cos) + per_frame(camera.tilt_sin) * up
    )
    cos, sin = per_frame(camera.cos), per_frame(camera.sin)
    floor_x, floor_z = cos * side + sin * ahead, cos * ahead - sin * side

    boards = Texture(canvas, "boards", 4, 3, extent=2.5)(floor_x * 0.22, floor_z * 0.05)
    style = per_frame(draws.integers("floor_style", 2).float())
    tiles = torch.sin(floor_x * 5.2) * torch.sin(floor_z * 5.2)
    tiles = (tiles * (2.5 / (1 + reach * canvas.pixel * 4))).clamp(-1, 1) * torch.exp(-reach * 0.05)
    grain = torch.lerp(boards, 0.5 + 0.22 * tiles, style)
    wood = draws.choice(
        "floor_color", rgb((0.42, 0.28, 0.18), (0.30, 0.30, 0.34), (0.22, 0.20, 0.26), (0.50, 0.42, 0.36))
    )
    spot = torch.exp(-(floor_x.square() + floor_z.square()) * 0.28)
    room = draws.integers("room", 3)
    studio = per_frame((room == 2).float())
    light = (0.35 + 0.35 * studio) + (0.95 - 0.45 * studio) * spot * per_frame(0.85 + 0.35 * pulse)
    floor = as_picture(wood) * ((0.35 + 1.1 * grain) * light).unsqueeze(2)
    floor = floor + as_picture(lamp) * (0.18 * spot * per_frame(0.4 + pulse)).unsqueeze(2)

    # Back wall: light panels that follow the music, a lit curtain, or a bright studio.
    turned = canvas.x + per_frame(camera.turn * 0.8)
    stripe = torch.cos(turned * 14.0).square()
    bars = Curve(draws, "panels", 8, 1)((turned * (14.0 / math.pi)).round() * 0.13)
    lit = per_frame(0.3 + 0.7 * pulse) * (0.4 + 1.2 * bars)
    rise = 1 - smoothstep(-0.4, 0.8, 0.1 - canvas.y + 0.6 * (0.5 - lit))
    panels = stripe * (0.15 + rise) * lit * 1.1
    curtain = (0.55 + 0.35 * per_frame(pulse)) * (0.75 + 0.25 * stripe) * (1.15 - 0.35 * (canvas.y + 1))
    screen, drape = (per_frame((room == k).float()) for k in range(2))
    dark = as_picture(torch.lerp(other, lamp, 0.25)) * (0.06 + panels * screen + 0.8 * curtain * drape).unsqueeze(2)
    pale = as_picture(other * 0.3 + 0.6) * (
        (0.8 + 0.2 * per_frame(pulse)) * (1.08 - 0.14 * canvas.x.square())
    ).unsqueeze(2)
    wall = torch.lerp(dark, pale, studio.unsqueeze(2))
    # Beams from above.
    for k in range(2):
        foot = draws.uniform(f"beam{k}/foot", low=-0.8, high=0.8)
        swing = torch.sin(beats.phase(canvas.time_s) * 1.5708 + k * 1.7)
        centre = per_frame(foot)[..., :] + (0.3 * per_frame(swing)) * (canvas.y + 1.2)
        width = 0.06 + 0.16 * (canvas.y + 1.2)
        beam = (1 - ((canvas.x - centre) / width).square()).clamp(min=0) * per_frame(0.3 + 0.7 * pulse)
        wall = wall + as_picture(lamp if k else other) * (beam * (0.30 - 0.10 * canvas.y)).unsqueeze(2)
    return blend(wall, floor, is_floor), floor_x, floor_z


def _dancer(
    canvas: Canvas, camera: _Camera, points: Tensor, outfit: dict[str, Tensor], lamp: Tensor, pulse: Tensor
) -> tuple[Tensor, Tensor]:
    """The dancer's colours (a picture, times coverage) and coverage (a field).

    Each limb is a tapered capsule in the picture, shaded as a round body. Overlaps are resolved by depth, softly, which
    also joins the limbs at the joints.
    """
    x, y, scale, depth = camera.project(points)
    light_x = per_frame(outfit["light_x"])
    colors = sorted({limb.color for limb in LIMBS})
    lit = {
        color: torch.zeros(canvas.clips, canvas.frames, canvas.size, canvas.size, device=canvas.device)
        for color in colors
    }
    weights = torch.full_like(lit["skin"], 1e-6)
    clear = torch.ones_like(weights)
    rims = torch.zeros_like(weights)
    far = per_frame(camera.far)
    for limb in LIMBS:
        a, b = limb.start, limb.end
        thick_a = per_frame(outfit[limb.thickness] * limb.radius_start) * per_frame(scale[:, :, a])
        ax, ay = per_frame(x[:, :, a]), per_frame(y[:, :, a])
        dx, dy = canvas.x - ax, canvas.y - ay
        near = per_frame(depth[:, :, a]) - far
        if a == b:
            inverse, thick_m = 1 / thick_a, per_frame(outfit[limb.thickness] * limb.radius_start)
            half = thick_a * (0.5 / canvas.pixel)
            nx, ny = (dx * inverse).expand_as(weights), (dy * inverse).expand_as(weights)
            behind = near
        else:
            thick_b = per_frame(outfit[limb.thickness] * limb.radius_end) * per_frame(scale[:, :, b])
            sx, sy = per_frame(x[:, :, b]) - ax, per_frame(y[:, :, b]) - ay
            unit = 1 / (sx * sx + sy * sy + 1e-6)
            along = (dx * (sx * unit) + dy * (sy * unit)).clamp_(0, 1)
            radius = (along * (thick_b - thick_a)).add_(thick_a)
            half = radius * (0.5 / canvas.pixel)
            inverse = radius.reciprocal_()
            nx = (along * -sx).add_(dx).mul_(inverse)
            ny = (along * -sy).add_(dy).mul_(inverse)
            behind = (along * per_frame(depth[:, :, b] - depth[:, :, a])).add_(near)
            thick_m = per_frame(outfit[limb.thickness] * (0.5 * (limb.radius_start + limb.radius_end)))
        bulge = (nx * nx).addcmul_(ny, ny).neg_().add_(1)
        # To first order the distance to the outline is r (1 - (d/r)²) / 2.
        cover = (bulge * half).add_(0.5).clamp_(0, 1)
        front = bulge.clamp_(min=1e-4).sqrt_()
        weight = (front * thick_m).sub_(behind).clamp_(-2.5, 2.5).mul_(14.0).exp_().mul_(cover)
        sideways = nx * light_x
        shade = (sideways - ny * 0.75).mul_(0.38).add_(front * 0.42).add_(0.52).clamp_(min=0.06)
        if limb.pattern:
            shade.mul_(1 - (0.225 + 0.225 * torch.sin(along * 15.0)) * per_frame(outfit["stripes"]))
        lit[limb.color].addcmul_(shade, weight)
        rims.addcmul_(sideways.neg_().clamp_(min=0).mul_(1 - front), weight)
        weights.add_(weight)
        clear.addcmul_(clear, cover, value=-1)
    glow = as_picture(lamp) * per_frame(0.25 + 0.55 * pulse).unsqueeze(2)
    picture = glow * rims.unsqueeze(2)
    for color in colors:
        picture += as_picture(outfit[color]) * lit[color].unsqueeze(2)
    return picture / weights.unsqueeze(2), 1 - clear


def _outfit(canvas: Canvas) -> dict[str, Tensor]:
    """Body shape and clothes of each dancer: thickness factors (B,) and colours (B, 3)."""
    draws = canvas.draws
    top, bottom = draws.choice("top", rgb(*_CLOTH)), draws.choice("bottom", rgb(*_CLOTH))
    shoe = draws.choice("shoe", rgb(*_CLOTH))
    skin, hair = draws.choice("skin", rgb(*_SKIN)), draws.choice("hair", rgb(*_HAIR))
    cap = draws.choice("cap", rgb(*_CLOTH))
    build = draws.uniform("build", low=0.85, high=1.25)
    loose = draws.uniform("loose", low=0.9, high=1.45)
    sleeves = (draws.uniform("sleeves") < 0.5).float()[:, None]
    shorts = (draws.uniform("shorts") < 0.25).float()[:, None]
    hat = (draws.uniform("hat") < 0.35).float()[:, None]
    return {
        "build": build,
        "arm": build * (0.9 + 0.25 * (loose - 0.9) * sleeves[:, 0]),
        "leg": build * loose * (1 - 0.15 * shorts[:, 0]),
        "shin": build * torch.lerp(loose, torch.full_like(loose, 0.85), shorts[:, 0]),
        "plain": torch.ones_like(build),
        "top": top,
        "bottom": bottom,
        "shoe": shoe,
        "skin": skin,
        "hair": torch.lerp(hair, cap, hat),
        "sleeve": torch.lerp(skin, top, sleeves),
        "calf": torch.lerp(bottom, skin, shorts),
        "light_x": torch.where(draws.uniform("light_side") < 0.5, -0.8, 0.8),
        "stripes": (draws.uniform("stripes") < 0.3).float(),
        "hat": hat[:, 0],
    }


class Dance(World):
    """Ten genres of street and jazz dance, with the genre names of AIST++ (Li et al., ICCV 2021)."""

    name: ClassVar[str] = "dance"
    classes: ClassVar[tuple[str, ...]] = tuple(genre.name for genre in GENRES)
    factor_names: ClassVar[tuple[str, ...]] = (
        "bpm",
        "height_m",
        "build",
        "camera_yaw",
        "camera_height_m",
        "camera_distance_m",
    )

    def scene(self, label: int, canvas: Canvas, tape: Tape) -> Scene:
        """Draw clips of genre ``label``; see `World.scene`."""
        draws = canvas.draws
        genre = GENRES[label]
        beats = Beats(draws, genre, canvas.clip.seconds)
        outfit = _outfit(canvas)
        height_m = draws.uniform("height_m", low=1.5, high=1.9)
        points = joints_in_time(draws, genre, beats, canvas.time_s, height_m)
        camera = _Camera(canvas)
        lamp = draws.choice("lamp", rgb(*_LAMP))
        other = draws.choice("other_lamp", rgb(*_LAMP))
        pulse = beats.pulse(canvas.time_s, 5.0)

        picture, floor_x, floor_z = _stage(canvas, camera, beats, lamp, other)
        # Contact shadows under the feet, hands and hips.
        shadow = torch.zeros_like(floor_x)
        for joint, wide in ((0, 0.30), (1, 0.34), (9, 0.13), (10, 0.13), (15, 0.15), (16, 0.15)):
            p = points[:, :, joint]
            lift = per_frame(p[..., 1]).clamp(min=0)
            gap = ((floor_x - per_frame(p[..., 0] + 0.15)).square() + (floor_z - per_frame(p[..., 2])).square()) / (
                wide + 0.25 * lift
            ).square()
            shadow = torch.maximum(shadow, 0.75 / (1 + gap).square() / (1 + 0.9 * lift))
        picture = picture * (1 - shadow.clamp(max=0.85)).unsqueeze(2)
        body, cover = _dancer(canvas, camera, points, outfit, lamp, pulse)
        picture = blend(picture, body * per_frame(1.08 + 0.25 * pulse).unsqueeze(2), cover)
        vignette = 1.06 - 0.22 * (canvas.x.square() + canvas.y.square())
        factors = {
            "bpm": beats.bpm,
            "height_m": height_m,
            "build": outfit["build"],
            "camera_yaw": camera.yaw,
            "camera_height_m": camera.height,
            "camera_distance_m": camera.distance,
        }
        return Scene(picture * vignette.unsqueeze(2), music(tape, genre, beats), beats.onset_s, factors)
