"""The world `landscape`: nine kinds of nature footage, each with the sound of what is seen.

Every class is one function from a `View` (canvas, tape, camera and light) to a `Scene`. The events that move its
picture, an impact, a drop, a gust, are drawn once and used by the drawing and by the sound.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mgct.data.worlds.base import Scene, World
from mgct.data.worlds.paint import (
    TAU,
    Canvas,
    Curve,
    Texture,
    as_picture,
    blend,
    mix,
    per_frame,
    ramp,
    rgb,
    smoothstep,
    splat,
)
from mgct.data.worlds.random import Draws
from mgct.data.worlds.sound import Tape, hits


@dataclass
class View:
    """Canvas and tape of a batch with what all landscapes share: camera, daylight and wind.

    Attributes:
        u, v: scene coordinates of the pixels, (B, F, 1, R) and (B, F, R, 1), after the camera's slow motion.
        pan: (B, F) sideways displacement of the camera, for layers that move less than the foreground.
        factors: name → (B,), the continuous facts drawn so far.
    """

    canvas: Canvas
    tape: Tape
    u: Tensor
    v: Tensor
    pan: Tensor
    factors: dict[str, Tensor]

    @property
    def draws(self) -> Draws:
        """The clips' draws."""
        return self.canvas.draws

    @property
    def seconds(self) -> float:
        """Length of the clips."""
        return self.canvas.clip.seconds

    def factor(self, name: str, low: float, high: float) -> Tensor:
        """A continuous fact (B,), uniform over [low, high), recorded."""
        self.factors[name] = self.draws.uniform(name, low=low, high=high)
        return self.factors[name]

    def age(self, onset_s: Tensor) -> Tensor:
        """Seconds since each event (B, E) at each frame: (B, F, E); negative before it."""
        return self.canvas.time_s[:, :, None] - onset_s[:, None, :]

    def event_count(self, slot_s: float) -> int:
        """How many slots of at least ``slot_s`` cover the clip and the slot before it."""
        return math.ceil(self.seconds / slot_s) + 1


def _look(canvas: Canvas, tape: Tape) -> View:
    """Camera and light of a batch."""
    draws, time_s = canvas.draws, canvas.time_s
    factors = {
        "daylight": draws.uniform("daylight"),
        "warmth": draws.uniform("warmth"),
        "camera_pan": draws.uniform("camera_pan", low=-0.16, high=0.16),
        "camera_zoom": draws.uniform("camera_zoom", low=-0.07, high=0.07),
    }
    sway = Curve(draws, "handheld", 16, 2)
    pan = factors["camera_pan"][:, None] * time_s + (sway(time_s * 0.05) - 0.5) * 0.08
    zoom = per_frame(torch.exp(factors["camera_zoom"][:, None] * time_s) * draws.uniform("zoom", 1, low=0.9, high=1.1))
    tilt = (Curve(draws, "tilt", 16, 2)(time_s * 0.04) - 0.5) * 0.06
    return View(canvas, tape, canvas.x * zoom + per_frame(pan), canvas.y * zoom + per_frame(tilt), pan, factors)


# --- pieces of scenery ------------------------------------------------------------------------------------------------


def _sky(view: View, zenith: Tensor, horizon: Tensor, cloud: Tensor, cover: Tensor, drift: Tensor) -> Tensor:
    """A picture of a sky: gradient of (B, 3) colours and drifting clouds of colour ``cloud``, ``cover`` in [0, 1]."""
    height = (view.v * 0.5 + 0.5).clamp(0, 1)
    picture = torch.lerp(as_picture(zenith), as_picture(horizon), height.unsqueeze(2))
    texture = Texture(view.canvas, "clouds", 5, 4, extent=2.2)
    # Flat cloud decks seen from below: closer together towards the horizon, and looked up askew of the noise's lattice.
    along = view.u * 0.3 - per_frame(view.pan * 0.2) + per_frame(drift[:, None] * view.canvas.time_s)
    across = view.v * (1.2 + 0.15 * view.v.clamp(-1.2, 1))
    field = texture(along * 0.8 + across * 0.6, across * 0.8 - along * 0.6 + 0.3)
    edge = 0.75 - 0.5 * per_frame(cover)
    density = smoothstep(edge, edge + 0.35, field)
    shade = (1.15 - 0.5 * smoothstep(edge, edge + 0.5, field)).unsqueeze(2)
    return torch.lerp(picture, as_picture(cloud) * shade, density.unsqueeze(2) * 0.9)


def _ridge(view: View, name: str, base: Tensor, height: float, depth: float, cells: int = 6) -> Tensor:
    """Coverage of all below a rough skyline at ``base`` (B,); ``depth`` from 0 (near) to 1 (fixed to the sky)."""
    along = view.u - per_frame(view.pan * depth)
    skyline = Curve(view.draws, name, cells, 5)(along * 0.2 + 0.3)
    return view.canvas.coverage(per_frame(base) - (skyline - 0.35) * height - view.v)


def _ground(view: View, name: str, horizon: Tensor, extent: float = 1.2) -> Tensor:
    """The texture of a plane seen in perspective below ``horizon`` (B,), a field around 0.5."""
    below = (view.v - per_frame(horizon)).clamp(min=0.02)
    depth = 0.35 / (below + 0.12)
    texture = Texture(view.canvas, name, 4, 4, extent=extent, roughness=0.6)
    return texture(view.u * depth * 0.5, depth * 0.7 + 0.1)


def _day_colors(view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Zenith, horizon and cloud colours (B, 3) for the view's daylight and warmth, from dusk to noon."""
    day, warm = view.factors["daylight"], view.factors["warmth"]
    device = view.canvas.device
    dusk, noon = rgb((0.16, 0.18, 0.36), (0.25, 0.5, 0.85)).to(device)
    evening, white = rgb((0.95, 0.58, 0.36), (0.78, 0.87, 0.95)).to(device)
    zenith = mix(dusk.expand(len(day), 3), noon.expand(len(day), 3), day)
    horizon = mix(white.expand(len(day), 3), evening.expand(len(day), 3), warm * (1 - 0.6 * day))
    cloud = mix(horizon, torch.ones_like(horizon), 0.5 + 0.4 * day)
    return zenith, horizon, cloud


def _tint(view: View, *colors: tuple[float, float, float]) -> Tensor:
    """A colour (B, 3) between the given ones, by a draw of its own."""
    table = rgb(*colors).to(view.canvas.device)
    where = view.draws.uniform(f"tint/{colors[0]}") * (len(colors) - 1)
    low = where.floor().long().clamp(max=len(colors) - 2)
    return torch.lerp(table[low], table[low + 1], (where - low)[:, None])


# --- the nine classes -------------------------------------------------------------------------------------------------


def _explosion(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    count = view.event_count(0.75) + 1
    gap_s = draws.uniform("gap", low=0.75, high=1.2)
    first_s = draws.uniform("first", low=0.12, high=0.5)
    order = torch.arange(-1, count - 1, device=canvas.device, dtype=torch.float32)
    onset_s = first_s[:, None] + order * gap_s[:, None]
    power = draws.uniform("power", count, low=0.35, high=0.8)
    power[:, 1] = draws.uniform("main", low=0.8, high=1.0)
    delay_s = view.factor("sound_delay_s", 0.0, 0.03)
    horizon = view.factor("horizon", 0.15, 0.5)

    zenith, low_sky, cloud = _day_colors(view)
    dim = (0.25 + 0.75 * view.factors["daylight"])[:, None]
    picture = _sky(
        view, zenith * dim, low_sky * dim, cloud * dim, draws.uniform("cover"), draws.uniform("drift") * 0.02
    )
    hill = _tint(view, (0.30, 0.27, 0.25), (0.22, 0.27, 0.24), (0.38, 0.30, 0.24)) * dim
    picture = blend(
        picture,
        as_picture(mix(hill, low_sky * dim, torch.full_like(gap_s, 0.45))),
        _ridge(view, "far", horizon - 0.12, 0.5, 0.7),
    )
    soil = _ground(view, "soil", horizon)
    earth = _tint(view, (0.55, 0.45, 0.32), (0.36, 0.38, 0.24), (0.62, 0.54, 0.43)) * dim
    ground = canvas.coverage(per_frame(horizon) - view.v)
    picture = blend(picture, as_picture(earth) * (0.45 + 1.0 * soil).unsqueeze(2), ground)

    where = draws.uniform("where", count, low=-0.45, high=0.45)
    texture = Texture(canvas, "blast", 4, 4, extent=1.2, channels=2)
    age = view.age(onset_s)
    flash = torch.zeros(canvas.clips, canvas.frames, device=canvas.device)
    for k in range(count):
        a = age[:, :, k].clamp(min=0)
        begun = (age[:, :, k] > -0.5 / canvas.clip.fps).float()
        strength = power[:, k : k + 1]
        radius = strength * (0.16 + 0.42 * (1 - torch.exp(-a * 5.0)) + 0.12 * a)
        rise = a * 0.22 * strength + radius * 0.45
        dx = (view.u - per_frame(where[:, k])) / per_frame(radius)
        dy = (view.v - per_frame(horizon[:, None] + 0.08 - rise)) / per_frame(radius)
        noise = texture(dx * 0.22 + 0.1 * k, dy * 0.22 + per_frame(a * 0.12))
        lumps, fine = noise[:, 0], noise[:, 1]
        distance = torch.sqrt(dx * dx + dy * dy + 1e-6) + (lumps - 0.5) * 1.1 + (fine - 0.5) * 0.25
        body = smoothstep(1.05, 0.8, distance) * per_frame(begun * torch.exp(-(a - 1.2).clamp(min=0) * 1.5))
        heat = per_frame(torch.exp(-a * 2.6)) * (1.45 - 0.75 * distance) + (fine - 0.5) * 0.5
        fire = ramp(
            heat,
            rgb((0.10, 0.09, 0.09), (0.30, 0.25, 0.22), (0.75, 0.22, 0.05), (1.0, 0.62, 0.12), (1.0, 0.97, 0.8)),
            (-0.2, 0.12, 0.35, 0.65, 1.0),
        )
        light = (0.85 + 0.5 * (lumps - 0.5) - 0.25 * dy.clamp(-1, 1)).unsqueeze(2)
        picture = blend(picture, fire * light, body)
        flash = flash + begun * strength * torch.exp(-a * 9.0)
        glow = per_frame(begun * strength * torch.exp(-a * 4.0)) / (
            1 + 2.2 * (dx * dx + dy * dy) * per_frame(radius * 2) ** 2
        )
        picture = picture + (glow * 0.55).unsqueeze(2) * as_picture(rgb((1.0, 0.6, 0.25)).to(canvas.device))
    picture = picture + per_frame(flash * 0.32).unsqueeze(2)

    # Debris: thrown from each blast, falling back.
    pieces = 24
    angle = draws.uniform("debris/angle", count, pieces, low=-1.2, high=1.2)
    speed = draws.uniform("debris/speed", count, pieces, low=0.7, high=2.2) * power[..., None]
    a = age[..., None]
    going = (a > 0).float() * torch.exp(-a.clamp(min=0) * 1.2)
    px = where[:, None, :, None] + (speed * torch.sin(angle))[:, None] * a
    py = horizon[:, None, None, None] + 0.02 - (speed * torch.cos(angle))[:, None] * a + 1.3 * a * a
    weight = going * (py < horizon[:, None, None, None] + 0.15)
    debris = splat(canvas, px, py, 0.02, weight, 0.02)
    picture = blend(picture, as_picture(rgb((1.0, 0.72, 0.3)).to(canvas.device)), debris.clamp(max=1) * 0.9)

    heard_s = onset_s + delay_s[:, None]
    boom = tape.envelope(heard_s, power, 0.004, 0.32)
    crack = tape.envelope(heard_s, power, 0.002, 0.07)
    thud_hz = draws.uniform("thud_hz", 1, low=55.0, high=80.0).expand(-1, count)
    signal = (
        boom * tape.band_noise("boom", 35.0, 220.0) * 0.48
        + crack * tape.band_noise("crack", 180.0, 2600.0, 0.7) * 0.55
        + tape.chirps(heard_s, power * 0.55, thud_hz, -2.5, torch.full_like(thud_hz, 0.25), 0.9)
        + tape.envelope(heard_s + 0.03, power, 0.08, 0.45) * tape.band_noise("debris", 500.0, 5000.0, 0.5) * 0.08
    )
    return Scene(picture, signal, onset_s, view.factors)


def _fire(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    count = view.event_count(0.09)
    slot_s = view.factor("crackle_slot_s", 0.09, 0.2)
    onset_s = hits(draws, "crackle", slot_s, count, 0.95)
    # Many are small; now and then a log bursts, and the whole fire flares up.
    power = draws.uniform("crackle/power", count) ** 6 * 1.2 + 0.06
    width = view.factor("fire_width", 0.35, 0.8)
    height = view.factor("fire_height", 0.9, 1.5)
    centre = draws.uniform("centre", low=-0.3, high=0.3)
    floor = draws.uniform("floor", low=0.45, high=0.75)

    flicker = Curve(draws, "flicker", 32, 2)(canvas.time_s * 0.2 * 4)
    burst = (power[:, None] * torch.exp(-view.age(onset_s).clamp(min=0) * 9) * (view.age(onset_s) > -0.05)).sum(2)
    level = 0.6 + 0.6 * flicker + 0.8 * burst.clamp(max=1.3)

    texture = Texture(canvas, "flame", 4, 4, extent=1.0, channels=2, roughness=0.6)
    qx = (view.u - per_frame(centre)) / per_frame(width)
    qy = (per_frame(floor) - view.v) / per_frame(height)
    climb = per_frame(canvas.time_s * draws.uniform("climb", 1, low=0.7, high=1.1))
    bend = (texture(qx * 0.25, qy * 0.3 - climb * 0.6)[:, 1] - 0.5) * (0.35 + qy.clamp(0, 1.3)) * 1.5
    tongues = texture((qx + bend) * 0.45, qy * 0.32 - climb)[:, 0]
    outline = 1.0 - (qx + bend * 0.7).abs() * (0.95 + 0.9 * qy.clamp(0, 2)) - qy.clamp(min=0) * 0.55
    heat = (outline * 0.75 + (tongues - 0.5) * 1.7 + 0.12) * per_frame(level) - qy.clamp(min=0) * 0.15
    heat = heat * smoothstep(-0.16, 0.03, qy)

    # The place: dark, lit by the fire, with logs across its foot.
    wall = Texture(canvas, "wall", 6, 4, extent=2.0)(view.u * 0.5, view.v * 0.5)
    lit = per_frame(level) / (1.0 + 2.2 * (qx * qx * 0.5 + (qy - 0.35) ** 2))
    stone = _tint(view, (0.36, 0.22, 0.15), (0.30, 0.25, 0.22), (0.26, 0.28, 0.20))
    ambient = 0.12 + 0.5 * view.factors["daylight"] ** 2
    picture = as_picture(stone) * ((wall * 1.2 + 0.2) * (per_frame(ambient) + lit * 0.75)).unsqueeze(2)
    logs = torch.zeros_like(heat)
    for k in range(3):
        lean = draws.uniform(f"log/{k}", low=-0.35, high=0.35)
        across = qy * per_frame(height) - 0.02 - 0.05 * k - (qx - 0.1 * k) * per_frame(lean * width)
        logs = torch.maximum(logs, canvas.coverage(across.abs() - 0.07) * canvas.coverage(qx.abs() - 0.95 + 0.15 * k))
    bark = as_picture(rgb((0.16, 0.09, 0.06)).to(canvas.device)) * (0.5 + wall + lit).unsqueeze(2)
    picture = blend(picture, bark, logs)
    flames = ramp(
        heat,
        rgb((0.0, 0.0, 0.0), (0.55, 0.08, 0.02), (0.98, 0.42, 0.05), (1.0, 0.78, 0.25), (1.0, 0.97, 0.8)),
        (0.08, 0.28, 0.5, 0.8, 1.15),
    )
    picture = blend(picture, flames, smoothstep(0.1, 0.42, heat))

    # Sparks: each crackle throws a few.
    each = 5
    a = view.age(onset_s)[..., None]
    way = draws.uniform("spark/way", count, each, low=-0.7, high=0.7)[:, None]
    lift = draws.uniform("spark/lift", count, each, low=0.7, high=2.0)[:, None]
    start = draws.uniform("spark/start", count, each, low=-0.5, high=0.5)[:, None] * width[:, None, None, None]
    drag = (1 - torch.exp(-a.clamp(min=0) * 2.0)) * 0.5
    sx = centre[:, None, None, None] + start + way * drag + 0.04 * torch.sin(a * 14 + way * 9)
    sy = floor[:, None, None, None] - 0.1 - lift * drag * 1.3
    bright = (a > -0.02).float() * torch.exp(-a.clamp(min=0) * 3.0) * (0.35 + power)[:, None, :, None]
    sparks = splat(canvas, sx, sy, 0.026, bright * 1.2, 0.026)
    picture = picture + sparks.unsqueeze(2) * as_picture(rgb((1.0, 0.75, 0.35)).to(canvas.device))

    click_hz = torch.exp(draws.uniform("click_hz", count, low=math.log(350.0), high=math.log(2600.0)))
    fade_s = draws.uniform("click_s", count, low=0.002, high=0.009)
    snap = tape.envelope(onset_s, power, 0.0005, 0.012) * tape.band_noise("snap", 300.0, 6000.0) * 0.75
    clicks = tape.chirps(onset_s, power * 0.7, click_hz, -6.0, fade_s, 0.06)
    breath = Curve(draws, "flicker", 32, 2)(tape.time_s * 0.8)
    roar = tape.band_noise("roar", 45.0, 380.0, 0.6) * (0.03 + 0.11 * breath) * height[:, None]
    hiss = tape.band_noise("hiss", 800.0, 6000.0) * 0.012
    return Scene(picture, snap + clicks + roar + hiss, onset_s.masked_fill(power < 0.3, -1.0), view.factors)


def _rain(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    strength = view.factor("rain", 0.35, 1.0)
    slant = view.factor("slant", -0.35, 0.35)
    horizon = view.factor("horizon", -0.1, 0.3)
    count = view.event_count(0.045)
    slot_s = 0.1 - 0.055 * strength
    onset_s = hits(draws, "drop", slot_s, count, 0.98)
    size = draws.uniform("drop/size", count) ** 2
    gust = Curve(draws, "gust", 32, 2)

    grey = _tint(view, (0.42, 0.46, 0.50), (0.52, 0.53, 0.52), (0.36, 0.42, 0.44))
    light = 0.65 + 0.6 * view.factors["daylight"]
    sky = grey * light[:, None]
    picture = _sky(view, sky * 0.8, sky * 1.25, sky * 1.15, torch.full_like(light, 0.9), slant * 0.06)
    green = _tint(view, (0.14, 0.22, 0.13), (0.20, 0.24, 0.15), (0.16, 0.19, 0.20)) * light[:, None]
    for k, (mist, lift) in enumerate(((0.7, 0.55), (0.45, 0.35), (0.2, 0.22))):
        color = mix(green, sky * 1.1, torch.full_like(light, mist))
        picture = blend(
            picture, as_picture(color), _ridge(view, f"trees{k}", horizon - 0.22 + 0.11 * k, lift, 0.8 - 0.3 * k, 10)
        )
    wet = _ground(view, "wet", horizon)
    mirror = (1 - (view.v - per_frame(horizon)).clamp(0, 1)) * 0.55 + 0.2
    floor = as_picture(green * 1.2 + 0.05) * (0.5 + wet).unsqueeze(2) + as_picture(sky) * (
        mirror * smoothstep(0.35, 0.75, wet)
    ).unsqueeze(2)
    picture = blend(picture, floor, canvas.coverage(per_frame(horizon) - view.v))

    # Each drop that hits the near ground: a crown for an instant, then a widening ring.
    near = draws.uniform("drop/near", count) ** 0.5 * (0.95 - horizon[:, None]) + 0.05 + horizon[:, None]
    across = draws.uniform("drop/x", count, low=-1.1, high=1.1)
    scale = ((near - horizon[:, None]) * 0.7 + 0.25)[:, None] * (0.5 + 0.8 * size[:, None])
    a = view.age(onset_s)
    life = (a > -0.03).float() * torch.exp(-a.clamp(min=0) * 5.0)
    ring = splat(
        canvas,
        across[:, None].expand_as(a),
        near[:, None].expand_as(a),
        (0.03 + 0.34 * a.clamp(0, 0.6)) * scale,
        life * 0.75,
        0.2,
        rim=0.3,
        squash=0.4,
    )
    crown = splat(
        canvas,
        across[:, None].expand_as(a),
        near[:, None] - 0.02 * scale,
        0.05 * scale,
        (a > -0.03).float() * torch.exp(-a.clamp(min=0) * 16.0) * 0.9,
        0.07,
    )
    picture = picture + (ring * 0.7 + crown * 1.1).unsqueeze(2) * as_picture(sky * 1.2)

    # Falling streaks, in two depths; a gust makes more of them.
    blow = gust(canvas.time_s * 0.25)
    for name, number, length, speed, glow in (("far", 80, 0.08, 2.6, 0.36), ("near", 40, 0.15, 4.2, 0.58)):
        phase = draws.uniform(f"{name}/phase", number)[:, None] + canvas.time_s[:, :, None] * (speed * (0.5 / 1.3))
        turn = phase.floor()
        fall = phase - turn
        lane = draws.uniform(f"{name}/lane", number)[:, None] + turn * 0.377
        lane = (lane - lane.floor()) * 2.8 - 1.4
        y = fall * 2.6 - 1.3
        x = lane + slant[:, None, None] * (y + 1.0)
        shown = (
            draws.uniform(f"{name}/rank", number)[:, None] < (0.35 + 0.75 * strength[:, None] * (0.5 + blow))[..., None]
        ).float()
        half = torch.full_like(x, length)
        streaks = splat(
            canvas,
            x,
            y,
            torch.full_like(x, 0.026),
            shown * glow,
            length + 0.03,
            streak=(half * slant[:, None, None], half),
        )
        picture = picture + streaks.unsqueeze(2) * as_picture(sky * 0.8 + 0.2)

    swell = (0.5 + gust(tape.time_s * 0.25)) * (0.35 + 0.65 * strength[:, None])
    patter_hz = torch.exp(draws.uniform("drop_hz", count, low=math.log(420.0), high=math.log(1500.0)))
    plips = tape.chirps(onset_s, 0.03 + 0.22 * size, patter_hz, 3.0, torch.full_like(patter_hz, 0.008), 0.06)
    ticks = tape.envelope(onset_s, 0.1 + 0.5 * size, 0.0008, 0.004) * tape.band_noise("tick", 500.0, 6000.0) * 0.4
    signal = tape.band_noise("patter", 260.0, 7000.0, 0.6) * swell * 0.19 + plips + ticks
    return Scene(picture, signal, onset_s.masked_fill(size < 0.5, -1.0), view.factors)


def _water(view: View, horizon: Tensor, tint: Tensor, sky: Tensor, slope: Tensor | None = None) -> Tensor:
    """A water surface below ``horizon`` that mirrors ``sky`` (B, 3); ``slope`` adds waves to its own."""
    canvas = view.canvas
    below = (view.v - per_frame(horizon)).clamp(min=0.02)
    depth = 0.4 / (below + 0.15)
    waves = Texture(canvas, "waves", 6, 4, extent=0.9, channels=2)
    t = per_frame(canvas.time_s)
    first = waves(view.u * depth * 0.35 + 0.05 * t, depth * 0.9 + 0.11 * t)
    second = waves(view.u * depth * 0.45 - 0.06 * t + 0.5, depth * 1.1 - 0.09 * t)
    # Far waves are finer than a pixel: they blur away.
    near = ((below - 0.02) / (0.12 + 6 * canvas.pixel)).clamp(0, 1)
    tilt = ((first[:, 0] - 0.5) + (second[:, 1] - 0.5)) * (0.25 + 0.75 * near)
    if slope is not None:
        tilt = tilt + slope
    shine = (0.2 + tilt * 0.9 + 0.4 * (1 - below * 1.5).clamp(0, 1)).clamp(0, 1.1)
    glint = smoothstep(0.45, 0.85, tilt)
    return torch.lerp(as_picture(tint), as_picture(sky), shine.unsqueeze(2)) + (glint * 0.5).unsqueeze(2)


def _splash(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    count = view.event_count(0.5)
    slot_s = view.factor("splash_slot_s", 0.5, 0.8)
    onset_s = hits(draws, "splash", slot_s, count, 0.5)
    power = draws.uniform("splash/power", count, low=0.55, high=1.0)
    horizon = view.factor("horizon", -0.75, -0.3)
    where_x = draws.uniform("where_x", count, low=-0.5, high=0.5)
    where_y = draws.uniform("where_y", count, low=0.15, high=0.6)
    a = view.age(onset_s)

    zenith, low_sky, cloud = _day_colors(view)
    light = (0.55 + 0.45 * view.factors["daylight"])[:, None]
    tint = _tint(view, (0.02, 0.22, 0.32), (0.05, 0.30, 0.30), (0.06, 0.16, 0.30)) * light
    slope = torch.zeros(canvas.clips, canvas.frames, canvas.size, canvas.size, device=canvas.device)
    foam = torch.zeros_like(slope)
    for k in range(count):
        age = a[:, :, k]
        old = per_frame(age.clamp(min=0))
        begun = per_frame((age > -0.03).float() * power[:, k : k + 1])
        dx = view.u - per_frame(where_x[:, k])
        dy = (view.v - per_frame(where_y[:, k])) * 2.2
        r = torch.sqrt(dx * dx + dy * dy + 1e-5)
        front = 0.08 + 0.75 * old
        packet = (1 - ((r - front * 0.8) / (0.14 + 0.5 * front)).square()).clamp(min=0) * torch.exp(-old * 1.6)
        slope = slope + begun * packet * torch.sin((r - front) * 34.0) * 0.55
        foam = foam + begun * smoothstep(0.30 + 0.35 * old, 0.04, r) * torch.exp(-old * 6.0) * 1.3
    picture = _sky(
        view, zenith * light, low_sky * light, cloud * light, draws.uniform("cover"), torch.zeros_like(slot_s)
    )
    bank = _tint(view, (0.12, 0.22, 0.10), (0.25, 0.22, 0.18), (0.08, 0.16, 0.14)) * light
    picture = blend(picture, as_picture(bank), _ridge(view, "bank", horizon + 0.0, 0.4, 0.5, 8))
    picture = blend(
        picture, _water(view, horizon, tint, low_sky * light, slope), canvas.coverage(per_frame(horizon) - view.v)
    )
    picture = blend(picture, as_picture(light.expand(-1, 3) * 0.92), foam.clamp(0, 0.9))

    # What falls in: a stone above the water before each splash.
    drop = torch.where((a < 0.02) & (a > -0.35), torch.ones_like(a), torch.zeros_like(a))
    fall = 4.2 * a * (a - 0.12)
    stone = splat(
        canvas,
        where_x[:, None].expand_as(a),
        where_y[:, None] - fall * (a < 0),
        0.09 * power[:, None].expand_as(a),
        drop * 2.5,
        0.1,
    )
    picture = blend(picture, as_picture(bank * 0.4), stone.clamp(max=1))
    # The crown: droplets thrown up and out.
    pieces = 56
    turn = draws.uniform("crown/turn", count, pieces) * TAU
    out = draws.uniform("crown/out", count, pieces, low=0.15, high=1.25)[:, None] * power[:, None, :, None]
    up = draws.uniform("crown/up", count, pieces, low=1.0, high=3.2)[:, None] * power[:, None, :, None]
    age = a[..., None]
    x = where_x[:, None, :, None] + out * torch.cos(turn)[:, None] * age
    base = where_y[:, None, :, None] + 0.4 * out * torch.sin(turn)[:, None] * age
    y = base - up * age + 3.6 * age * age
    aloft = ((age > -0.01) & (y < base + 0.02)).float()
    vx, vy = out * torch.cos(turn)[:, None] * 0.02, (7.2 * age - up) * 0.02
    grain = draws.uniform("crown/grain", count, pieces, low=0.015, high=0.045)[:, None].expand_as(x)
    spray = splat(canvas, x, y, grain, (aloft * 0.95), 0.1, streak=(vx.expand_as(x), vy.clamp(-0.05, 0.05)))
    picture = blend(picture, as_picture(low_sky * 0.4 + 0.6) * light[:, None, :, None, None], spray.clamp(0, 0.95))

    plunge_hz = draws.uniform("plunge_hz", count, low=120.0, high=260.0)
    later = onset_s[..., None] + 0.05 + 0.4 * draws.uniform("drip", count, 8)
    drip_hz = torch.exp(draws.uniform("drip_hz", count * 8, low=math.log(450.0), high=math.log(1100.0)))
    drip_power = (power[..., None] * draws.uniform("drip/power", count, 8)).flatten(1) * 0.16
    signal = (
        tape.envelope(onset_s, power, 0.006, 0.11) * tape.band_noise("splash", 250.0, 4500.0, 0.5) * 0.62
        + tape.envelope(onset_s + 0.08, power, 0.06, 0.2) * tape.band_noise("spray", 700.0, 7000.0) * 0.16
        + tape.chirps(onset_s + 0.01, power * 0.5, plunge_hz, 3.5, torch.full_like(plunge_hz, 0.06), 0.4)
        + tape.chirps(later.flatten(1), drip_power, drip_hz, 5.0, torch.full_like(drip_hz, 0.02), 0.15)
        + tape.band_noise("lapping", 150.0, 1200.0, 0.8) * 0.012
    )
    return Scene(picture, signal, onset_s, view.factors)


def _squish(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    count = view.event_count(0.42)
    slot_s = view.factor("step_slot_s", 0.42, 0.62)
    onset_s = hits(draws, "press", slot_s, count, 0.25)
    power = draws.uniform("press/power", count, low=0.7, high=1.0)
    hold_s = slot_s * 0.42
    where = draws.uniform("where", low=-0.25, high=0.25)
    level = view.factor("mud_level", -0.05, 0.3)

    a = view.age(onset_s)
    hold = hold_s[:, None, None]
    press = (smoothstep(-0.06, 0.05, a) - smoothstep(hold, hold + 0.16, a)) * power[:, None]
    down = press.amax(2)
    ooze = (smoothstep(0.0, 0.12, a) * torch.exp(-a.clamp(min=0) * 4.0)).sum(2)

    mud = _tint(view, (0.40, 0.28, 0.17), (0.33, 0.30, 0.24), (0.48, 0.36, 0.24), (0.27, 0.22, 0.17))
    light = (0.6 + 0.5 * view.factors["daylight"])[:, None]
    grass = _tint(view, (0.30, 0.42, 0.16), (0.46, 0.44, 0.24), (0.36, 0.36, 0.34))
    dx = view.u - per_frame(where)
    bump = (per_frame(ooze) * 0.10 + 0.01) * (
        torch.exp(-((dx - 0.42) / 0.13).square()) + torch.exp(-((dx + 0.42) / 0.13).square())
    )
    dent = per_frame(down) * 0.12 * torch.exp(-(dx / 0.3).square().square())
    surface = per_frame(level) + dent - bump
    back = Texture(canvas, "bank", 6, 4, extent=1.6)(view.u * 0.5 + view.v * 0.25, view.v * 0.5 - view.u * 0.25)
    picture = as_picture(grass * light) * (0.35 + 0.9 * back).unsqueeze(2)
    under = view.v - surface
    stretch = 0.3 / (under.clamp(min=0) + 0.25)
    rough = Texture(canvas, "mud", 5, 5, extent=1.0, channels=2, roughness=0.65)
    squeeze = per_frame(down) * 0.12 * torch.exp(-(dx / 0.5).square()) * torch.sign(dx)
    grit = rough((dx - squeeze) * stretch * 0.8, stretch * 0.9 + per_frame(down) * 0.02)
    wet = smoothstep(0.58, 0.85, grit[:, 1] + 0.35 * per_frame(ooze) * torch.exp(-((dx.abs() - 0.4) / 0.25).square()))
    body = as_picture(mud * light) * (0.25 + 0.95 * grit[:, 0]).unsqueeze(2)
    body = body + (wet * 0.38).unsqueeze(2) * as_picture(light * 0.8 + 0.2)
    picture = blend(picture, body, canvas.coverage(-under))

    # A boot: sole and shaft, pressed down and pulled out.
    sole_y = per_frame(level) - 0.42 + per_frame(down) * 0.52
    boot = _tint(view, (0.12, 0.30, 0.16), (0.72, 0.60, 0.12), (0.10, 0.11, 0.14), (0.55, 0.12, 0.12))
    tip = per_frame(1 - down) * 0.25
    foot_y = view.v - sole_y + (dx - 0.1) * tip
    foot = torch.sqrt((dx.abs() - 0.2).clamp(min=0).square() + (foot_y * 1.4).square() + 1e-6) - 0.16
    shaft = torch.maximum((dx + 0.14 - 0.1 * tip).abs() - 0.14, foot_y)
    shape = torch.minimum(foot, shaft)
    inside = canvas.coverage(shape) * canvas.coverage(under - 0.12 - 0.1 * per_frame(down))
    shade = (
        0.75 - 1.6 * shape.clamp(-0.3, 0) + 0.5 * dx.clamp(-0.3, 0.3) - smoothstep(-0.1, 0.1, foot_y) * 0.25
    ).unsqueeze(2)
    picture = blend(picture, as_picture(boot * light) * shade, inside)
    lip = canvas.coverage((under + 0.0 - 0.07).abs() - 0.07) * canvas.coverage(dx.abs() - 0.44) * per_frame(down)
    picture = blend(picture, body * 0.9, lip)

    # Flecks of mud at each press.
    pieces = 16
    age = a[..., None]
    vx = draws.uniform("fleck/x", count, pieces, low=-1.3, high=1.3)[:, None]
    vy = draws.uniform("fleck/y", count, pieces, low=0.6, high=1.7)[:, None]
    x = where[:, None, None, None] + torch.sign(vx) * 0.35 + vx * age
    y = level[:, None, None, None] - vy * age + 3.5 * age * age
    aloft = ((age > 0) & (y < level[:, None, None, None] + 0.1)).float()
    flecks = splat(canvas, x, y, 0.035, (aloft * 1.4), 0.04)
    picture = blend(picture, as_picture(mud * light * 0.7), flecks.clamp(max=1))

    pitch = draws.uniform("pitch", 1, low=0.8, high=1.25)
    formant_hz = draws.uniform("formant_hz", count, low=180.0, high=300.0) * pitch
    lift_s = onset_s + hold_s[:, None]
    signal = tape.envelope(onset_s, power, 0.02, 0.06) * tape.band_noise("squash", 120.0, 700.0, 0.4) * 0.55
    wobble = 14
    start = (
        onset_s[..., None]
        + torch.arange(wobble, device=canvas.device) * 0.012
        + draws.uniform("gurgle", count, wobble) * 0.012
    )
    gurgle_hz = (
        formant_hz[..., None]
        * (1.0 + 0.16 * torch.arange(wobble, device=canvas.device))
        * draws.uniform("gurgle_hz", count, wobble, low=0.8, high=1.25)
    ).flatten(1)
    grain_power = (power[..., None] * draws.uniform("gurgle/power", count, wobble, low=0.2, high=1.0)).flatten(1)
    signal = signal + tape.chirps(
        start.flatten(1), grain_power * 0.36, gurgle_hz, 7.0, torch.full_like(gurgle_hz, 0.014), 0.1
    )
    suck_hz = formant_hz * 1.4
    signal = signal + tape.chirps(lift_s, power * 0.5, suck_hz, 10.0, torch.full_like(suck_hz, 0.035), 0.14)
    signal = signal + tape.envelope(lift_s + 0.02, power, 0.05, 0.03) * tape.band_noise("suck", 350.0, 2200.0) * 0.3
    signal = signal + tape.band_noise("air", 100.0, 900.0, 1.0) * 0.008
    return Scene(picture, signal, onset_s, view.factors)


def _thunder(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    count = view.event_count(0.8) + 1
    gap_s = draws.uniform("gap", low=0.8, high=1.3)
    onset_s = (
        draws.uniform("first", low=0.08, high=0.4)[:, None]
        + (torch.arange(count, device=canvas.device) - 1) * gap_s[:, None]
    )
    power = draws.uniform("power", count, low=0.35, high=0.9)
    power[:, 1] = draws.uniform("main", low=0.85, high=1.0)
    delay_s = view.factor("sound_delay_s", 0.04, 0.22)
    horizon = view.factor("horizon", 0.45, 0.8)
    a = view.age(onset_s)
    # A stroke, and one or two return strokes.
    again_s = draws.uniform("again", count, low=0.09, high=0.2)[:, None]
    begun = (a > -0.05).float()
    flash = begun * torch.exp(-a.clamp(min=0) * 9.0)
    flash = flash + 0.7 * (a > again_s - 0.05) * torch.exp(-(a - again_s).clamp(min=0) * 8.0)
    flash = flash * power[:, None]

    night = 0.06 + 0.16 * view.factors["daylight"]
    hue = _tint(view, (0.55, 0.55, 0.95), (0.75, 0.6, 1.0), (0.6, 0.8, 1.0))
    place_x = draws.uniform("place_x", count, low=-0.6, high=0.6)
    clouds = Texture(canvas, "storm", 4, 5, extent=2.2, channels=2, roughness=0.6)
    drift = per_frame(canvas.time_s * draws.uniform("drift", 1, low=-0.05, high=0.05))
    along, across = view.u * 0.34 + drift, view.v * 0.7
    field = clouds(along * 0.8 + across * 0.6, across * 0.8 - along * 0.6 + 0.2)
    puff = smoothstep(0.25, 0.8, field[:, 0])
    glow = torch.zeros_like(puff)
    bolt = torch.zeros_like(puff)
    for k in range(count):
        dx = view.u - per_frame(place_x[:, k])
        glow = glow + per_frame(flash[:, :, k]) / (1 + 2.5 * (dx * dx + (view.v + 0.5).square() * 0.6))
        path = Curve(draws, f"bolt{k}", 5, 5)(view.v * 0.35 + 0.4)
        branch = Curve(draws, f"branch{k}", 5, 4)(view.v * 0.4 + 0.1)
        top = draws.uniform(f"fork{k}", low=-0.4, high=0.2)
        across = dx - (path - 0.5) * 0.7
        fork = across - (branch - 0.3) * 1.6 * (view.v - per_frame(top)).clamp(min=0)
        reach = canvas.coverage(view.v - per_frame(horizon))
        line = (1 - across.abs() / 0.035).clamp(min=0) + 0.6 * (1 - fork.abs() / 0.022).clamp(min=0) * (
            view.v > per_frame(top)
        )
        halo = 0.05 / (0.05 + across.abs())
        bolt = bolt + per_frame((flash[:, :, k] * 1.3).clamp(max=1.0)) * (line * 1.6 + halo * 0.35) * reach
    brightness = per_frame(night) * (0.5 + puff) + glow * (0.25 + 0.85 * puff * (0.5 + field[:, 1]))
    picture = as_picture(hue) * brightness.unsqueeze(2) + bolt.unsqueeze(2) * as_picture(hue * 0.3 + 0.7)
    land = as_picture(hue) * (0.03 + 0.1 * glow).unsqueeze(2)
    picture = blend(picture, land * 1.6, _ridge(view, "far", horizon - 0.14, 0.35, 0.6))
    picture = blend(picture, land * 0.6, _ridge(view, "near", horizon + 0.05, 0.25, 0.2, 12))

    heard_s = onset_s + delay_s[:, None]
    near = (1 - (delay_s - 0.04) / 0.25)[:, None]
    crack = tape.envelope(heard_s, power, 0.003, 0.05) * (0.3 + 0.7 * near)
    rumble = tape.envelope(heard_s, power, 0.02, 0.5)
    rolling = 0.25 + 1.5 * Curve(draws, "rolling", 64, 2)(tape.time_s * 0.12) ** 2
    tearing = 0.6 + Curve(draws, "tearing", 256, 1)(tape.time_s * 0.25) ** 2
    signal = (
        crack * tape.band_noise("crack", 250.0, 4000.0, 0.6) * tearing * 0.75
        + rumble * rolling * tape.band_noise("rumble", 30.0, 130.0, 0.3) * 0.42
        + rumble * tape.band_noise("rattle", 110.0, 420.0, 0.5) * rolling * 0.22
        + tape.band_noise("rain", 700.0, 6000.0) * 0.012
    )
    return Scene(picture, signal, onset_s, view.factors)


def _underwater(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    # Air comes in gulps of a few bubbles, each gulp with a puff of fine ones. They rise for about a second: some were
    # released before the clip began.
    count, each = view.event_count(0.32) + 3, 5
    slot_s = view.factor("gulp_slot_s", 0.32, 0.6)
    gulp_s = hits(draws, "gulp", slot_s, count, 0.6) - 3 * slot_s[:, None]
    power = draws.uniform("gulp/power", count, low=0.5, high=1.0)
    onset_s = (gulp_s[..., None] + draws.uniform("bubble", count, each) * 0.09).flatten(1)
    size = (draws.uniform("bubble/size", count, each) ** 1.5 * power[..., None]).flatten(1)
    radius = 0.025 + 0.085 * size
    source = view.factor("source_x", -0.5, 0.5)
    a = view.age(onset_s)

    deep = _tint(view, (0.0, 0.10, 0.28), (0.0, 0.20, 0.26), (0.02, 0.07, 0.16))
    top = _tint(view, (0.10, 0.55, 0.75), (0.25, 0.70, 0.62), (0.18, 0.42, 0.62))
    light = (0.5 + 0.6 * view.factors["daylight"])[:, None]
    height = (view.v * 0.5 + 0.5).clamp(0, 1).sqrt()
    picture = torch.lerp(as_picture(top * light), as_picture(deep * light), height.unsqueeze(2))
    beam = draws.uniform("beam", low=-0.5, high=0.5)
    fan = (view.u - per_frame(beam)) / (view.v + 2.4)
    shafts = Curve(draws, "shafts", 16, 3)(fan * 0.6 + per_frame(canvas.time_s * 0.035))
    shafts = smoothstep(0.42, 0.8, shafts) * (1 - height)
    caustic = Texture(canvas, "caustic", 5, 3, extent=1.6, channels=2)
    t = per_frame(canvas.time_s)
    web = (
        caustic(view.u * 0.5 + 0.06 * t, view.v * 0.5 + 0.09 * t)[:, 0]
        - caustic(view.u * 0.5 - 0.07 * t, view.v * 0.5 + 0.05 * t)[:, 1]
    )
    web = (1 - web.abs() * 7).clamp(min=0)
    picture = picture + (shafts * 0.5 + web * (1 - height) * 0.22).unsqueeze(2) * as_picture(top * light * 0.7 + 0.2)
    floor = _ridge(view, "bed", torch.full_like(source, 0.82), 0.35, 0.1, 8)
    sand = Texture(canvas, "sand", 8, 3, extent=1.2)(view.u * 0.6, view.v * 1.8)
    picture = blend(picture, as_picture(deep * light * 1.4 + 0.04) * (0.5 + sand + web * 0.6).unsqueeze(2), floor)

    speed = (0.75 + 0.5 * (1 - size))[:, None]
    wobble = torch.sin(
        a * (9 + 6 * draws.uniform("bubble/rate", count * each))[:, None]
        + draws.uniform("bubble/phase", count * each)[:, None] * TAU
    )
    spread = draws.uniform("bubble/way", count * each, low=-0.28, high=0.28)[:, None]
    x = source[:, None, None] + spread * (0.25 + a.clamp(min=0)) + 0.035 * wobble
    y = 0.72 - 0.12 * (1 - torch.exp(-a.clamp(min=0) * 14)) - speed * a.clamp(min=0) - 0.3 * a.clamp(min=0).square()
    shown = (a > -0.03).float()
    grown = radius[:, None] * (0.55 + 0.45 * smoothstep(0.0, 0.09, a)) * (1 + 0.25 * a.clamp(0, 2))
    fresh = 1 + 1.2 * torch.exp(-a.clamp(min=0) * 9)
    body = splat(canvas, x, y, grown, shown * 0.5 * fresh, 0.17)
    rim = splat(canvas, x, y, grown * 1.15, shown * 0.8 * fresh, 0.2, rim=0.35)
    spark = splat(canvas, x - 0.35 * grown, y - 0.4 * grown, grown * 0.45, shown * 1.1, 0.09)
    picture = picture + (rim * 0.55 + body * 0.3).unsqueeze(2) * as_picture(top * 0.6 + 0.3) + spark.unsqueeze(2) * 0.8

    puffed = view.age(gulp_s)
    still = torch.exp(-puffed.clamp(min=0) * 9) * (puffed > -0.03)
    reach = 0.45 * power[:, None]
    puff = splat(canvas, source[:, None, None], 0.68 - 0.5 * puffed, reach, still * power[:, None], 0.45)
    picture = blend(picture, as_picture(top * light * 0.5 + 0.45), puff.clamp(max=1) * (0.75 + 0.5 * web))

    # Minnaert: the pitch of a bubble goes as 1 / radius; it rises a little as the bubble comes loose.
    pitch_hz = 26.0 / radius * draws.uniform("pitch", 1, low=0.9, high=1.15)
    loud = 0.10 + 0.42 * size
    signal = (
        tape.chirps(onset_s, loud, pitch_hz, 4.0, 0.018 + 0.05 * size, 0.35)
        + tape.chirps(onset_s + 0.03, loud * 0.4, pitch_hz * 1.35, 6.0, 0.012 + 0.02 * size, 0.2)
        + tape.band_noise("sea", 35.0, 160.0, 0.8) * 0.07
    )
    return Scene(picture, signal, gulp_s, view.factors)


def _waterfall(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    # A surge is seen on its way down before it is heard below.
    count = view.event_count(0.4) + 4
    slot_s = view.factor("surge_slot_s", 0.4, 0.7)
    onset_s = hits(draws, "surge", slot_s, count, 0.6)
    power = draws.uniform("surge/power", count, low=0.4, high=1.0)
    flow = view.factor("flow", 0.5, 1.0)
    centre = draws.uniform("centre", low=-0.35, high=0.35)
    width = view.factor("fall_width", 0.22, 0.5)
    pool = draws.uniform("pool", low=0.4, high=0.65)
    lip = draws.uniform("lip", low=-1.3, high=-0.6)
    a = view.age(onset_s)

    light = (0.6 + 0.45 * view.factors["daylight"])[:, None]
    rock = _tint(view, (0.30, 0.28, 0.26), (0.36, 0.30, 0.24), (0.22, 0.26, 0.24)) * light
    moss = _tint(view, (0.16, 0.32, 0.10), (0.28, 0.36, 0.14), (0.10, 0.24, 0.16)) * light
    stone = Texture(canvas, "stone", 5, 4, extent=1.6, channels=2, roughness=0.62)
    face = stone(view.u * 0.5, view.v * 0.5)
    picture = as_picture(rock) * (0.25 + 1.25 * face[:, 0]).unsqueeze(2)
    picture = blend(picture, as_picture(moss) * (0.4 + face[:, 0]).unsqueeze(2), smoothstep(0.5, 0.62, face[:, 1]))
    sky = mix(
        rgb((0.8, 0.88, 0.95)).to(canvas.device).expand(canvas.clips, 3) * light,
        _day_colors(view)[1],
        0.3 * view.factors["warmth"],
    )
    picture = blend(picture, as_picture(sky), 1 - _ridge(view, "brink", lip, 0.35, 0.0, 8))

    # A surge runs down the fall and meets the pool at its event time.
    speed = 1.9
    tone = torch.zeros(canvas.clips, canvas.frames, canvas.size, 1, device=canvas.device)
    pulse = torch.zeros(canvas.clips, canvas.frames, device=canvas.device)
    for k in range(count):
        front = per_frame(pool) + speed * per_frame(a[:, :, k])
        tone = tone + per_frame(power[:, k]) * torch.exp(-((view.v - front) / 0.22).square())
        age = a[:, :, k].clamp(min=0)
        pulse = pulse + power[:, k : k + 1] * (a[:, :, k] > -0.05) * torch.exp(-age * 6.0)
    drop = view.v - per_frame(lip)
    t = per_frame(canvas.time_s)
    veil = Texture(canvas, "veil", 6, 3, extent=0.8, channels=2)
    strands = veil((view.u - per_frame(centre)) * 0.9, view.v * 0.22 - t * 0.42 * speed * 0.5)
    shreds = veil((view.u - per_frame(centre)) * 1.3 + 0.37, view.v * 0.3 - t * 0.3 * speed)
    water = 0.5 * strands[:, 0] + 0.5 * shreds[:, 1]
    edge = (
        (view.u - per_frame(centre)).abs()
        - per_frame(width) * (0.75 + 0.22 * drop.clamp(0, 2))
        + (strands[:, 1] - 0.5) * 0.22
    )
    white = (0.25 + 0.95 * water + 0.22 * tone).clamp(0, 1.1) * per_frame(0.7 + 0.3 * flow)
    cover = (
        smoothstep(0.05, -0.06, edge)
        * canvas.coverage(per_frame(lip) + 0.1 - view.v)
        * (0.55 + 0.45 * smoothstep(0.3, 0.6, water))
    )
    picture = blend(picture, as_picture(torch.lerp(sky, light.expand_as(sky), 0.6)) * white.unsqueeze(2), cover)

    below = (view.v - per_frame(pool)).clamp(min=0)
    depth = 0.3 / (below + 0.2)
    froth = veil(view.u * depth * 0.7 + 0.04 * t, depth * 0.9 + 0.22 * t)
    boil = per_frame(pulse * 0.35 + 0.55 * flow[:, None]) * torch.exp(
        -((view.u - per_frame(centre)) / (per_frame(width) * 1.7)).square() - below * 2.2
    )
    tint = _tint(view, (0.05, 0.28, 0.30), (0.08, 0.22, 0.30), (0.10, 0.26, 0.18)) * light
    surface = torch.lerp(as_picture(tint), as_picture(sky), (froth[:, 0] * 0.7).unsqueeze(2))
    surface = blend(
        surface,
        as_picture(light.expand(-1, 3)),
        ((froth[:, 1] - 0.35) * 1.6 + boil * 1.5).clamp(0, 1) * (0.3 + 0.7 * boil.clamp(0, 1)),
    )
    picture = blend(picture, surface, canvas.coverage(per_frame(pool) - view.v))
    dx, dy = (view.u - per_frame(centre)) / per_frame(width * 1.5), (view.v - per_frame(pool)) / 0.28
    mist = (
        per_frame(0.45 * flow[:, None] + 0.3 * pulse) / (1 + 1.6 * (dx * dx + dy * dy)).square() * (0.5 + froth[:, 0])
    )
    picture = blend(picture, as_picture(light.expand(-1, 3)), mist.clamp(0, 0.9))

    swell = tape.envelope(onset_s, power, 0.03, 0.16)
    bubbles = 6
    start = (onset_s[..., None] + draws.uniform("burble", count, bubbles) * 0.3).flatten(1)
    burble_hz = torch.exp(draws.uniform("burble_hz", count * bubbles, low=math.log(160.0), high=math.log(520.0)))
    burble_power = (power[..., None] * draws.uniform("burble/power", count, bubbles)).flatten(1)
    signal = (
        tape.band_noise("fall", 130.0, 2600.0, 0.7) * (0.10 + 0.06 * flow[:, None] + 0.13 * swell)
        + tape.band_noise("spray", 1200.0, 7000.0) * (0.03 + 0.03 * swell)
        + tape.chirps(start, burble_power * 0.22, burble_hz, 3.0, torch.full_like(burble_hz, 0.035), 0.25)
    )
    return Scene(picture, signal, onset_s, view.factors)


def _wind(view: View) -> Scene:
    canvas, tape, draws = view.canvas, view.tape, view.draws
    count = view.event_count(0.5) + 1
    slot_s = view.factor("gust_slot_s", 0.5, 0.85)
    onset_s = hits(draws, "gust", slot_s, count, 0.5)
    power = draws.uniform("gust/power", count, low=0.5, high=1.0)
    side = torch.where(draws.uniform("side") < 0.5, -1.0, 1.0)
    view.factors["wind_side"] = side
    horizon = view.factor("horizon", 0.0, 0.4)

    def gust(time_s: Tensor) -> Tensor:
        """Wind strength at times (1, N): (B, N)."""
        total = torch.full((canvas.clips, time_s.shape[1]), 0.12, device=canvas.device)
        for k in range(count):
            age = time_s - onset_s[:, k : k + 1]
            rise = smoothstep(-0.06, 0.06, age)
            total = total + power[:, k : k + 1] * rise * torch.exp(-age.clamp(min=0) * 4.5)
        return total

    now = gust(canvas.time_s)
    zenith, low_sky, cloud = _day_colors(view)
    light = (0.5 + 0.5 * view.factors["daylight"])[:, None]
    picture = _sky(
        view, zenith * light, low_sky * light, cloud * light, draws.uniform("cover", low=0.3, high=0.9), side * 0.07
    )
    hill = _tint(view, (0.42, 0.48, 0.28), (0.55, 0.48, 0.30), (0.32, 0.42, 0.34)) * light
    picture = blend(
        picture,
        as_picture(mix(hill, low_sky * light, torch.full_like(side, 0.5))),
        _ridge(view, "far", horizon - 0.1, 0.4, 0.6),
    )

    # Grass: blades shear with the gust, more towards their tips; waves of light run across the field.
    shake = now + 0.12 * torch.sin(canvas.time_s * 11.0 + draws.uniform("shake", 1) * TAU) * now
    below = (view.v - per_frame(horizon)).clamp(min=0)
    blades = Texture(canvas, "grass", 16, 3, extent=1.6, channels=2)
    lean = per_frame(side[:, None] * shake)
    bent = view.u - lean * 0.16 * (0.4 + below)
    grass = blades(bent * (1.3 - 0.7 * below.clamp(0, 1)), view.v * 0.22 + 0.05 * lean)
    sweep = blades((view.u - per_frame(side[:, None] * canvas.time_s * 1.1)) * 0.12, below * 0.1)[:, 1]
    field = _tint(view, (0.38, 0.46, 0.14), (0.66, 0.56, 0.26), (0.30, 0.40, 0.20)) * light
    tone = 0.25 + 1.0 * grass[:, 0] + per_frame(now) * (sweep - 0.45) * 1.3
    picture = blend(
        picture, as_picture(field) * tone.unsqueeze(2), _ridge(view, "meadow", horizon + 0.04, 0.12, 0.0, 24)
    )

    # Trees: a trunk and tufts of leaves that give way to the wind.
    leafy = _tint(view, (0.14, 0.26, 0.10), (0.24, 0.28, 0.10), (0.10, 0.20, 0.14)) * light
    leaves = Texture(canvas, "leaves", 8, 3, extent=0.8)
    for k in range(2):
        root = draws.uniform(f"tree{k}/x", low=-0.75, high=0.75)
        tall = draws.uniform(f"tree{k}/h", low=0.55, high=0.95)
        foot = horizon + 0.08 + 0.12 * k
        up = ((per_frame(foot) - view.v) / per_frame(tall)).clamp(0, 1.6)
        curve = per_frame(side[:, None] * (0.05 + 0.28 * shake) * tall[:, None]) * up * up
        dx = view.u - per_frame(root) - curve
        trunk = (
            canvas.coverage(dx.abs() - 0.045 * (1.2 - 0.8 * up.clamp(0, 1)))
            * canvas.coverage((view.v - per_frame(foot)).clamp(min=-1))
            * canvas.coverage(per_frame(foot - tall) - view.v)
        )
        dy = (view.v - per_frame(foot - tall)) / 0.9
        ragged = leaves(dx * 0.9 + 0.3 * k, view.v * 0.9)
        crown = torch.sqrt((dx * dx + dy * dy) + 1e-6) - 0.34 * per_frame(tall) - (ragged - 0.5) * 0.45
        picture = blend(picture, as_picture(leafy * 0.5), trunk)
        shade = (0.45 + 1.2 * ragged - 0.7 * dy.clamp(-0.4, 0.4) + 0.25 * per_frame(now)).unsqueeze(2)
        picture = blend(picture, as_picture(leafy) * shade, canvas.coverage(crown, 0.02))

    # Leaves torn off by each gust.
    pieces = 14
    age = view.age(onset_s)[..., None]
    born_x = draws.uniform("leaf/x", count, pieces, low=-1.0, high=1.0)[:, None]
    born_y = draws.uniform("leaf/y", count, pieces, low=-0.6, high=0.7)[:, None]
    fast = draws.uniform("leaf/fast", count, pieces, low=0.9, high=2.2)[:, None]
    x = born_x + side[:, None, None, None] * fast * age.clamp(min=0)
    y = born_y + 0.07 * torch.sin(age * 8 + born_x * 9) + 0.12 * age
    alive = (age > -0.02).float() * torch.exp(-age.clamp(min=0) * 1.2) * power[:, None, :, None]
    spin = 0.03 * torch.sin(age * 17 + born_y * 20)
    torn = splat(canvas, x, y, 0.03, (alive * 1.1), 0.08, streak=(torch.full_like(x, 0.04), spin.expand_as(x)))
    picture = blend(
        picture,
        as_picture(_tint(view, (0.75, 0.45, 0.12), (0.62, 0.55, 0.15), (0.5, 0.25, 0.1)) * light),
        torn.clamp(max=1),
    )

    force = gust(tape.time_s)
    whistle_hz = draws.uniform("whistle_hz", low=420.0, high=800.0)
    signal = (
        tape.band_noise("low", 60.0, 260.0, 0.5) * (0.05 + 0.20 * force)
        + tape.band_noise("mid", 220.0, 800.0, 0.3) * (0.01 + 0.24 * force * force)
        + tape.band_noise("high", 900.0, 4000.0, 0.5) * 0.08 * force * force
        + tape.band_noise("whistle", whistle_hz * 0.97, whistle_hz * 1.03) * 0.14 * force * force
    )
    return Scene(picture, signal, onset_s, view.factors)


class Landscape(World):
    """Nine kinds of nature footage, with the class names of the Landscape data set (Lee et al., ECCV 2022)."""

    name: ClassVar[str] = "landscape"
    classes: ClassVar[tuple[str, ...]] = (
        "explosion",
        "fire crackling",
        "raining",
        "splashing water",
        "squishing water",
        "thunder",
        "underwater bubbling",
        "waterfall burbling",
        "wind noise",
    )
    factor_names: ClassVar[tuple[str, ...]] = (
        "daylight",
        "warmth",
        "camera_pan",
        "camera_zoom",
        "exposure",
        "loudness",
        "horizon",
        "sound_delay_s",
        "crackle_slot_s",
        "fire_width",
        "fire_height",
        "rain",
        "slant",
        "splash_slot_s",
        "step_slot_s",
        "mud_level",
        "gulp_slot_s",
        "source_x",
        "surge_slot_s",
        "flow",
        "fall_width",
        "gust_slot_s",
        "wind_side",
    )
    _painters: ClassVar[tuple[Callable[[View], Scene], ...]] = (
        _explosion,
        _fire,
        _rain,
        _splash,
        _squish,
        _thunder,
        _underwater,
        _waterfall,
        _wind,
    )

    def scene(self, label: int, canvas: Canvas, tape: Tape) -> Scene:
        """Draw clips of class ``label``; see `World.scene`."""
        view = _look(canvas, tape)
        scene = self._painters[label](view)
        # A camera's exposure and white balance, and a microphone's distance: no class has a level or tint of its own.
        level = torch.exp(view.factor("exposure", -0.25, 0.25)[:, None] + canvas.draws.normal("balance", 3) * 0.07)
        gain = torch.exp(view.factor("loudness", -0.9, 0.0))[:, None]
        return Scene(scene.picture * as_picture(level), scene.signal * gain * 1.35, scene.events_s, view.factors)
