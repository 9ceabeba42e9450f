"""Poses of a dancer in time.

A pose says where hips, hands and feet are, and how the trunk leans; elbows and knees follow by two-bone inverse
kinematics. A genre is a table of poses with the way they follow each other: on each beat the dancer goes into a new
pose, fastest exactly on the beat, and over that lies the genre's continuous movement (bounce, circling arms, footwork,
spins).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mgct.data.worlds.paint import smoothstep
from mgct.data.worlds.random import Draws

TAU = 2 * math.pi

# Joints, in this order, for a dancer of height 1 (multiplied by metres later).
PELVIS, CHEST, NECK, HEAD = 0, 1, 2, 3
SHOULDER_L, SHOULDER_R, ELBOW_L, ELBOW_R, HAND_L, HAND_R = 4, 5, 6, 7, 9, 10
CROWN = 8
HIP_L, HIP_R, KNEE_L, KNEE_R, FOOT_L, FOOT_R, TOE_L, TOE_R = 11, 12, 13, 14, 15, 16, 17, 18

_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.17, 0.16, 0.245, 0.245


@dataclass(frozen=True)
class Limb:
    """A tapered part of the body between two joints.

    Attributes:
        start, end: joints.
        radius_start, radius_end: metres, for a body of medium build.
        color, thickness: which entry of the outfit colours and scales it.
        pattern: whether stripes may run across it.
    """

    start: int
    end: int
    radius_start: float
    radius_end: float
    color: str
    thickness: str = "build"
    pattern: bool = False


LIMBS = (
    Limb(CHEST, PELVIS, 0.135, 0.115, "top", pattern=True),
    Limb(SHOULDER_L, SHOULDER_R, 0.075, 0.075, "top"),
    Limb(HIP_L, HIP_R, 0.105, 0.105, "bottom"),
    Limb(NECK, HEAD, 0.05, 0.05, "skin"),
    Limb(HEAD, HEAD, 0.11, 0.11, "skin", "plain"),
    Limb(CROWN, CROWN, 0.115, 0.115, "hair", "plain"),
    Limb(SHOULDER_L, ELBOW_L, 0.068, 0.055, "top", "arm"),
    Limb(SHOULDER_R, ELBOW_R, 0.068, 0.055, "top", "arm"),
    Limb(ELBOW_L, HAND_L, 0.052, 0.04, "sleeve", "arm"),
    Limb(ELBOW_R, HAND_R, 0.052, 0.04, "sleeve", "arm"),
    Limb(HAND_L, HAND_L, 0.058, 0.058, "skin", "plain"),
    Limb(HAND_R, HAND_R, 0.058, 0.058, "skin", "plain"),
    Limb(HIP_L, KNEE_L, 0.1, 0.078, "bottom", "leg"),
    Limb(HIP_R, KNEE_R, 0.1, 0.078, "bottom", "leg"),
    Limb(KNEE_L, FOOT_L, 0.074, 0.058, "calf", "shin"),
    Limb(KNEE_R, FOOT_R, 0.074, 0.058, "calf", "shin"),
    Limb(FOOT_L, TOE_L, 0.062, 0.05, "shoe", "plain"),
    Limb(FOOT_R, TOE_R, 0.062, 0.05, "shoe", "plain"),
)

# A pose is 21 numbers, in body heights and radians:
#   pelvis x, y, z · pitch (forwards), roll (to the dancer's left), yaw of the whole trunk · bend of the chest against
#   the pelvis: forwards, sideways, twist · hand L x, y, z and hand R x, y, z from their shoulders (trunk frame, y up)
#   · foot L x, y, z and foot R x, y, z (stage frame, from the point under the dancer).
_POSE = 21


def _pose(
    pelvis: tuple[float, float, float] = (0.0, 0.50, 0.0),
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0),
    bend: tuple[float, float, float] = (0.0, 0.0, 0.0),
    left: tuple[float, float, float] = (0.06, -0.30, 0.04),
    right: tuple[float, float, float] = (-0.06, -0.30, 0.04),
    foot_left: tuple[float, float, float] = (0.09, 0.04, 0.0),
    foot_right: tuple[float, float, float] = (-0.09, 0.04, 0.0),
) -> tuple[float, ...]:
    return (*pelvis, *turn, *bend, *left, *right, *foot_left, *foot_right)


@dataclass(frozen=True)
class Genre:
    """How a genre moves and sounds.

    Attributes:
        name: of the genre.
        bpm: slowest and fastest tempo.
        poses: table of poses to go through.
        blend_beats: how long the change into a pose takes, in beats.
        rate: poses to a beat.
        bounce: depth of the knees' bounce, in body heights, and how often it comes to a beat.
        sway: sideways sway of the hips per two beats, in body heights.
        tremor: size of the shake that follows each change (pop).
        circle: radius of the hands' circling, and turns to a beat (waack).
        step: size of the feet's stepping, and steps to a beat (house).
        spin: whole turns of the body to a beat.
        floor_turn: turns to a beat of the legs around a body near the floor (break).
        pump: size of the chest's pump on each beat, radians.
        kick, snare, hat, bass, chord: sixteenth-note patterns of one bar, each with a choice of variants.
        sound: voice settings of the music.
    """

    name: str
    bpm: tuple[float, float]
    poses: tuple[tuple[float, ...], ...]
    blend_beats: float = 0.5
    rate: int = 1
    bounce: tuple[float, float] = (0.03, 1.0)
    sway: float = 0.02
    tremor: float = 0.0
    circle: tuple[float, float] = (0.0, 0.0)
    step: tuple[float, float] = (0.0, 0.0)
    spin: float = 0.0
    floor_turn: float = 0.0
    pump: float = 0.0
    kick: tuple[str, ...] = ("x...x...x...x...",)
    snare: tuple[str, ...] = ("....x.......x...",)
    hat: tuple[str, ...] = ("x.x.x.x.x.x.x.x.",)
    bass: tuple[str, ...] = ("0...0...3...5...",)
    chord: tuple[str, ...] = ("x...............",)
    sound: dict[str, float] = field(default_factory=dict)


GENRES = (
    Genre(
        "break",
        (100.0, 125.0),
        (
            _pose(
                (0.0, 0.20, 0.0),
                (-0.9, 0.0, 0.0),
                left=(0.12, -0.24, -0.10),
                right=(-0.10, -0.26, -0.08),
                foot_left=(0.30, 0.05, 0.22),
                foot_right=(-0.14, 0.05, 0.25),
            ),
            _pose(
                (0.0, 0.22, 0.0),
                (1.1, 0.0, 0.3),
                left=(0.05, 0.12, 0.22),
                right=(-0.05, 0.12, 0.22),
                foot_left=(0.25, 0.05, -0.28),
                foot_right=(-0.10, 0.05, -0.30),
            ),
            _pose(
                (0.05, 0.42, 0.0),
                (2.5, 0.2, 0.0),
                left=(0.06, 0.28, 0.06),
                right=(-0.08, 0.26, 0.06),
                foot_left=(0.26, 0.78, -0.12),
                foot_right=(-0.22, 0.62, 0.16),
            ),
            _pose(
                (-0.05, 0.40, 0.0),
                (2.7, -0.4, 0.2),
                left=(0.08, 0.27, 0.05),
                right=(-0.05, 0.28, 0.06),
                foot_left=(0.08, 0.86, -0.05),
                foot_right=(-0.34, 0.55, 0.05),
            ),
            _pose(
                (0.0, 0.24, 0.0),
                (-0.2, 1.1, 0.0),
                left=(0.16, -0.22, 0.05),
                right=(-0.14, 0.2, 0.1),
                foot_left=(-0.32, 0.05, 0.1),
                foot_right=(-0.36, 0.34, 0.05),
            ),
        ),
        blend_beats=0.55,
        bounce=(0.015, 1.0),
        sway=0.0,
        floor_turn=0.5,
        spin=0.22,
        kick=("x.....x...x.....", "x.x.......x..x.."),
        snare=("....x..x....x...", "....x.......x..x"),
        hat=("x.x.x.x.x.x.x.x.", "xxx.x.x.xxx.x.x."),
        bass=("0..0..3...0.5.3.", "0...0.7...0.5..."),
        chord=("..x.....x.......", "x.........x....."),
        sound={
            "kick_hz": 58,
            "snare": 1.15,
            "hat": 0.8,
            "bass": 0.7,
            "bass_edge": 0.6,
            "chord": 0.5,
            "chord_s": 0.10,
            "minor": 1,
            "octave": 1,
        },
    ),
    Genre(
        "pop",
        (90.0, 115.0),
        (
            _pose(left=(0.24, 0.0, 0.10), right=(-0.10, -0.28, 0.04), bend=(0.0, 0.12, 0.2)),
            _pose((0.0, 0.48, 0.0), left=(0.16, 0.02, 0.2), right=(-0.16, 0.02, 0.2), bend=(0.15, 0.0, 0.0)),
            _pose((0.02, 0.49, 0.0), left=(0.17, 0.24, 0.0), right=(-0.17, -0.20, 0.05), bend=(0.0, -0.15, -0.25)),
            _pose((-0.02, 0.49, 0.0), left=(0.17, -0.20, 0.05), right=(-0.17, 0.24, 0.0), bend=(0.0, 0.15, 0.25)),
            _pose(
                (0.0, 0.47, 0.0),
                left=(0.31, 0.02, 0.0),
                right=(-0.31, 0.02, 0.0),
                foot_left=(0.13, 0.04, 0.0),
                foot_right=(-0.13, 0.04, 0.0),
            ),
            _pose(left=(0.02, -0.12, 0.22), right=(-0.28, -0.05, 0.05), bend=(-0.12, 0.0, 0.3)),
        ),
        blend_beats=0.16,
        rate=2,
        bounce=(0.0, 1.0),
        sway=0.0,
        tremor=0.03,
        pump=0.10,
        kick=("x.......x.x.....", "x..x....x......."),
        snare=("....x.......x...",),
        hat=("x.xxx.xxx.xxx.xx", "xxxxxxxxxxxxxxxx"),
        bass=("0..0..0.3..5..7.", "0.0...0.5.3...0."),
        chord=("x..x..x.........", "..x...x...x...x."),
        sound={
            "kick_hz": 50,
            "snare": 0.9,
            "hat": 0.6,
            "bass": 0.9,
            "bass_edge": 1.0,
            "chord": 0.8,
            "chord_s": 0.07,
            "minor": 1,
            "octave": 2,
            "clap": 1,
        },
    ),
    Genre(
        "lock",
        (98.0, 118.0),
        (
            _pose(
                (0.0, 0.42, 0.0),
                (0.35, 0.0, 0.0),
                left=(0.20, -0.14, 0.10),
                right=(-0.20, -0.14, 0.10),
                foot_left=(0.16, 0.04, 0.04),
                foot_right=(-0.16, 0.04, -0.04),
            ),
            _pose(
                (0.03, 0.49, 0.0),
                (0.0, -0.1, 0.2),
                left=(0.20, 0.25, 0.06),
                right=(-0.10, -0.18, 0.14),
                foot_left=(0.14, 0.04, 0.0),
                foot_right=(-0.12, 0.04, 0.05),
            ),
            _pose(
                (-0.03, 0.49, 0.0),
                (0.0, 0.1, -0.2),
                left=(0.10, -0.18, 0.14),
                right=(-0.20, 0.25, 0.06),
                foot_left=(0.12, 0.04, 0.05),
                foot_right=(-0.14, 0.04, 0.0),
            ),
            _pose(
                (0.0, 0.38, 0.0),
                (0.2, 0.0, 0.0),
                left=(0.24, -0.02, 0.16),
                right=(-0.24, -0.02, 0.16),
                foot_left=(0.18, 0.04, 0.0),
                foot_right=(-0.18, 0.04, 0.0),
            ),
            _pose(
                (0.0, 0.50, 0.0),
                (-0.1, 0.0, 0.0),
                left=(0.08, -0.06, 0.05),
                right=(-0.30, -0.08, 0.10),
                foot_left=(0.10, 0.24, 0.20),
                foot_right=(-0.08, 0.04, 0.0),
            ),
        ),
        blend_beats=0.26,
        bounce=(0.03, 1.0),
        sway=0.02,
        kick=("x..x....x.x.....", "x.x....x..x....."),
        snare=("....x..x.x..x...", "....x.......x.x."),
        hat=("x.x.x.x.x.x.x.xx",),
        bass=("0..0.7..0.5.3.0.", "0.00..5.7..5..3."),
        chord=("..x...x...x...x.", "x.x...x.x.x...x."),
        sound={
            "kick_hz": 62,
            "snare": 1.0,
            "hat": 0.7,
            "bass": 0.8,
            "bass_edge": 0.5,
            "chord": 1.0,
            "chord_s": 0.05,
            "minor": 0,
            "octave": 2,
        },
    ),
    Genre(
        "waack",
        (105.0, 126.0),
        (
            _pose(
                (0.03, 0.50, 0.0),
                (0.0, 0.05, 0.2),
                left=(0.12, 0.16, 0.0),
                right=(-0.12, 0.16, 0.0),
                bend=(-0.1, 0.1, 0.0),
                foot_left=(0.12, 0.04, 0.05),
                foot_right=(-0.05, 0.04, 0.0),
            ),
            _pose(
                (-0.03, 0.50, 0.0),
                (0.0, -0.05, -0.2),
                left=(0.12, 0.18, 0.05),
                right=(-0.14, 0.12, 0.05),
                bend=(-0.1, -0.1, 0.0),
                foot_left=(0.05, 0.04, 0.0),
                foot_right=(-0.12, 0.04, 0.05),
            ),
            _pose(
                (0.0, 0.48, 0.0),
                (0.0, 0.0, 0.5),
                left=(0.16, 0.08, 0.0),
                right=(-0.10, 0.18, 0.0),
                bend=(-0.15, 0.15, 0.3),
                foot_left=(0.14, 0.04, -0.04),
                foot_right=(-0.10, 0.04, 0.06),
            ),
        ),
        blend_beats=0.5,
        bounce=(0.015, 1.0),
        sway=0.045,
        circle=(0.18, 1.0),
        kick=("x...x...x...x...",),
        snare=("....x.......x...",),
        hat=("..x...x...x...x.", ".xx..xx..xx..xx."),
        bass=("0.>.0.>.0.>.0.>.", "0.>.3.>.5.>.3.>."),
        chord=("x.......x.......", "x...........x..."),
        sound={
            "kick_hz": 56,
            "snare": 0.8,
            "hat": 1.2,
            "bass": 0.8,
            "bass_edge": 0.5,
            "chord": 1.0,
            "chord_s": 0.45,
            "minor": 1,
            "octave": 2,
            "strings": 1,
            "clap": 1,
        },
    ),
    Genre(
        "krump",
        (80.0, 98.0),
        (
            _pose(
                (0.0, 0.40, 0.0),
                (0.35, 0.0, 0.0),
                left=(0.14, 0.02, 0.24),
                right=(-0.14, -0.22, -0.10),
                bend=(0.2, 0.0, 0.4),
                foot_left=(0.22, 0.04, 0.05),
                foot_right=(-0.22, 0.04, -0.05),
            ),
            _pose(
                (0.0, 0.46, 0.0),
                (-0.35, 0.0, 0.0),
                left=(0.28, 0.16, -0.05),
                right=(-0.28, 0.16, -0.05),
                bend=(-0.35, 0.0, 0.0),
                foot_left=(0.22, 0.04, 0.0),
                foot_right=(-0.22, 0.04, 0.0),
            ),
            _pose(
                (0.04, 0.38, 0.0),
                (0.55, 0.0, 0.2),
                left=(0.16, -0.26, 0.08),
                right=(-0.10, 0.02, 0.28),
                bend=(0.25, 0.1, -0.4),
                foot_left=(0.26, 0.04, 0.0),
                foot_right=(-0.18, 0.22, 0.10),
            ),
            _pose(
                (-0.04, 0.38, 0.0),
                (0.5, 0.0, -0.2),
                left=(0.10, 0.02, 0.28),
                right=(-0.16, -0.26, 0.08),
                bend=(0.25, -0.1, 0.4),
                foot_left=(0.18, 0.22, 0.10),
                foot_right=(-0.26, 0.04, 0.0),
            ),
        ),
        blend_beats=0.28,
        bounce=(0.05, 1.0),
        sway=0.02,
        pump=0.35,
        tremor=0.012,
        kick=("x..x..x.x..x..x.", "x.x...x...x.x..."),
        snare=("........x.......", "........x.....x."),
        hat=("x.x.xxx.x.x.x.xx",),
        bass=("0.....0...0..1..", "0..0......1....."),
        chord=("x.......x.......",),
        sound={
            "kick_hz": 46,
            "snare": 1.3,
            "hat": 0.4,
            "bass": 1.3,
            "bass_edge": 1.6,
            "chord": 0.7,
            "chord_s": 0.25,
            "minor": 1,
            "octave": 0,
            "brass": 1,
        },
    ),
    Genre(
        "house",
        (116.0, 130.0),
        (
            _pose((0.03, 0.47, 0.0), (0.12, 0.0, 0.15), left=(0.14, -0.20, 0.12), right=(-0.12, -0.24, 0.02)),
            _pose((-0.03, 0.47, 0.0), (0.12, 0.0, -0.15), left=(0.12, -0.24, 0.02), right=(-0.14, -0.20, 0.12)),
            _pose((0.0, 0.46, 0.0), (0.22, 0.05, 0.0), left=(0.18, -0.12, 0.10), right=(-0.18, -0.12, 0.10)),
        ),
        blend_beats=0.7,
        bounce=(0.045, 2.0),
        sway=0.03,
        step=(0.17, 2.0),
        pump=0.22,
        kick=("x...x...x...x...",),
        snare=("....x.......x...",),
        hat=("..x...x...x...x.", "..xx..x...xx..x."),
        bass=("..0..0..3..3..5.", "0..0..0...5..7.."),
        chord=("x..x..x...x..x..", "..x..x....x..x.."),
        sound={
            "kick_hz": 54,
            "snare": 0.7,
            "hat": 1.1,
            "bass": 0.9,
            "bass_edge": 0.3,
            "chord": 1.1,
            "chord_s": 0.13,
            "minor": 1,
            "octave": 2,
            "clap": 1,
            "piano": 1,
        },
    ),
    Genre(
        "street jazz",
        (92.0, 120.0),
        (
            _pose(
                (0.06, 0.49, 0.0),
                (0.0, -0.1, 0.5),
                left=(0.10, -0.10, 0.05),
                right=(-0.26, 0.14, 0.0),
                bend=(0.0, 0.25, 0.2),
                foot_left=(0.20, 0.04, 0.0),
                foot_right=(-0.06, 0.04, 0.06),
            ),
            _pose(
                (-0.06, 0.49, 0.0),
                (0.0, 0.1, -0.5),
                left=(0.26, 0.14, 0.0),
                right=(-0.10, -0.10, 0.05),
                bend=(0.0, -0.25, -0.2),
                foot_left=(0.06, 0.04, 0.06),
                foot_right=(-0.20, 0.04, 0.0),
            ),
            _pose(
                (0.0, 0.50, 0.0),
                (-0.2, 0.0, 0.0),
                left=(0.06, 0.30, 0.02),
                right=(-0.06, 0.30, 0.02),
                bend=(-0.25, 0.0, 0.0),
                foot_left=(0.05, 0.04, 0.08),
                foot_right=(-0.06, 0.04, -0.06),
            ),
            _pose(
                (0.0, 0.44, 0.0),
                (0.2, 0.0, 1.1),
                left=(0.28, 0.03, 0.08),
                right=(-0.10, -0.24, 0.02),
                bend=(0.1, 0.0, 0.3),
                foot_left=(0.22, 0.04, 0.05),
                foot_right=(-0.12, 0.04, 0.0),
            ),
        ),
        blend_beats=0.42,
        bounce=(0.02, 1.0),
        sway=0.05,
        step=(0.05, 1.0),
        kick=("x.....x.x.......", "x..x......x....."),
        snare=("....x.......x...",),
        hat=("x.x.x.x.x.x.x.x.", "xxx.xxx.xxx.xxx."),
        bass=("0.....0...5.....", "0...3...5...7..."),
        chord=("x.....x.....x...", "x.........x....."),
        sound={
            "kick_hz": 52,
            "snare": 0.9,
            "hat": 0.8,
            "bass": 0.8,
            "bass_edge": 0.4,
            "chord": 0.9,
            "chord_s": 0.28,
            "minor": 1,
            "octave": 1,
            "clap": 1,
            "strings": 0.5,
        },
    ),
    Genre(
        "ballet jazz",
        (80.0, 104.0),
        (
            _pose(
                (0.0, 0.53, 0.0),
                left=(0.29, 0.10, 0.02),
                right=(-0.29, 0.10, 0.02),
                bend=(-0.1, 0.0, 0.0),
                foot_left=(0.16, 0.28, 0.06),
                foot_right=(-0.01, 0.07, 0.0),
            ),
            _pose(
                (0.0, 0.53, 0.0),
                (0.45, 0.0, 0.2),
                left=(0.20, 0.18, 0.18),
                right=(-0.29, 0.0, -0.08),
                bend=(-0.35, 0.0, 0.0),
                foot_left=(0.12, 0.55, -0.42),
                foot_right=(0.0, 0.07, 0.0),
            ),
            _pose(
                (0.0, 0.53, 0.0),
                (0.0, 0.1, 0.0),
                left=(0.10, 0.29, 0.04),
                right=(-0.10, 0.29, 0.04),
                bend=(0.0, 0.2, 0.0),
                foot_left=(0.40, 0.55, 0.05),
                foot_right=(0.0, 0.07, 0.0),
            ),
            _pose(
                (0.0, 0.42, 0.0),
                left=(0.28, 0.02, 0.10),
                right=(-0.08, 0.29, 0.04),
                bend=(0.0, -0.3, 0.0),
                foot_left=(0.28, 0.04, 0.0),
                foot_right=(-0.18, 0.04, 0.0),
            ),
        ),
        blend_beats=0.95,
        bounce=(0.012, 0.5),
        sway=0.02,
        spin=0.35,
        kick=("x...............", "x.......x......."),
        snare=("........x.......", "....x.......x..."),
        hat=("x...x...x...x...",),
        bass=("0.......5.......", "0...7...5...7..."),
        chord=("x.x.x.x.x.x.x.x.", "x..x..x.x..x..x."),
        sound={
            "kick_hz": 60,
            "snare": 0.35,
            "hat": 0.35,
            "bass": 0.6,
            "bass_edge": 0.15,
            "chord": 1.3,
            "chord_s": 0.5,
            "minor": 0,
            "octave": 2,
            "piano": 1,
            "arpeggio": 1,
            "strings": 0.8,
        },
    ),
    Genre(
        "LA hip-hop",
        (84.0, 106.0),
        (
            _pose(
                (0.0, 0.43, 0.0),
                (0.25, 0.0, 0.0),
                left=(0.02, 0.02, 0.24),
                right=(-0.02, -0.08, 0.24),
                foot_left=(0.17, 0.04, 0.0),
                foot_right=(-0.17, 0.04, 0.0),
            ),
            _pose(
                (0.05, 0.46, 0.0),
                (0.1, -0.15, 0.3),
                left=(0.28, -0.10, 0.08),
                right=(0.02, 0.02, 0.22),
                foot_left=(0.20, 0.04, 0.0),
                foot_right=(-0.14, 0.04, 0.03),
                bend=(0.1, 0.2, 0.2),
            ),
            _pose(
                (-0.05, 0.46, 0.0),
                (0.1, 0.15, -0.3),
                left=(-0.02, 0.02, 0.22),
                right=(-0.28, -0.10, 0.08),
                foot_left=(0.14, 0.04, 0.03),
                foot_right=(-0.20, 0.04, 0.0),
                bend=(0.1, -0.2, -0.2),
            ),
            _pose(
                (0.0, 0.48, 0.0),
                (-0.05, 0.0, 0.0),
                left=(0.12, 0.10, 0.12),
                right=(-0.12, 0.10, 0.12),
                foot_left=(0.06, 0.04, 0.0),
                foot_right=(-0.06, 0.04, 0.0),
            ),
            _pose(
                (0.0, 0.40, 0.0),
                (0.5, 0.0, 0.2),
                left=(0.08, -0.30, 0.02),
                right=(-0.08, -0.10, 0.24),
                foot_left=(0.20, 0.04, 0.05),
                foot_right=(-0.16, 0.04, -0.05),
            ),
        ),
        blend_beats=0.3,
        bounce=(0.035, 1.0),
        sway=0.02,
        kick=("x......x..x.....", "x..x......x...x."),
        snare=("....x.......x...",),
        hat=("x.xxx.x.x.xxx.xx", "xxxxx.xxxxx.x.xx"),
        bass=("0......0..0.....", "0..0......3...1."),
        chord=("x...............", "x.......x......."),
        sound={
            "kick_hz": 44,
            "snare": 1.0,
            "hat": 0.9,
            "bass": 1.3,
            "bass_edge": 0.1,
            "bass_s": 0.45,
            "chord": 0.6,
            "chord_s": 0.35,
            "minor": 1,
            "octave": 2,
            "clap": 1,
        },
    ),
    Genre(
        "middle hip-hop",
        (86.0, 110.0),
        (
            _pose(
                (0.09, 0.45, 0.0),
                (0.15, -0.15, 0.2),
                left=(0.10, -0.24, 0.10),
                right=(-0.16, -0.14, 0.14),
                foot_left=(0.20, 0.04, 0.0),
                foot_right=(-0.02, 0.04, 0.0),
                bend=(0.1, 0.15, 0.0),
            ),
            _pose(
                (-0.09, 0.45, 0.0),
                (0.15, 0.15, -0.2),
                left=(0.16, -0.14, 0.14),
                right=(-0.10, -0.24, 0.10),
                foot_left=(0.02, 0.04, 0.0),
                foot_right=(-0.20, 0.04, 0.0),
                bend=(0.1, -0.15, 0.0),
            ),
            _pose(
                (0.0, 0.42, 0.0),
                (0.3, 0.0, 0.0),
                left=(0.18, -0.20, 0.08),
                right=(-0.18, -0.20, 0.08),
                foot_left=(0.15, 0.04, 0.05),
                foot_right=(-0.15, 0.04, -0.03),
                bend=(0.15, 0.0, 0.0),
            ),
        ),
        blend_beats=0.62,
        bounce=(0.06, 1.0),
        sway=0.06,
        step=(0.04, 1.0),
        kick=("x.x.....x.x.....", "x......xx.x....."),
        snare=("....x.......x...",),
        hat=("x.x.x.x.x.x.x.x.",),
        bass=("0.0.....3.5.....", "0..0..7.5..3...."),
        chord=("x.......x.......", "..x.......x....."),
        sound={
            "kick_hz": 60,
            "snare": 1.2,
            "hat": 0.7,
            "bass": 0.9,
            "bass_edge": 0.25,
            "chord": 0.8,
            "chord_s": 0.30,
            "minor": 1,
            "octave": 1,
            "piano": 0.6,
            "swing": 0.16,
        },
    ),
)


class Beats:
    """The beats of a batch: tempo, place in the bar, and their times.

    Attributes:
        bpm: (B,) beats per minute.
        first_s: (B,) time of beat 0, in [0, one beat).
        bar: (B,) which beat of the bar beat 0 is, 0 … 3.
        onset_s: (B, N) times of beats -2, -1, 0, … to beyond the end of the clip.
    """

    BEFORE = 2

    def __init__(self, draws: Draws, genre: Genre, seconds: float) -> None:
        low, high = genre.bpm
        self.bpm = draws.uniform("bpm", low=low, high=high)
        self.period_s = 60.0 / self.bpm
        self.first_s = draws.uniform("first_beat") * self.period_s
        self.bar = draws.integers("bar", 4)
        self.count = math.ceil(seconds * 130.0 / 60.0) + self.BEFORE + 2
        self.number = torch.arange(self.count, device=draws.keys.device, dtype=torch.float32) - self.BEFORE
        self.onset_s = self.first_s[:, None] + self.number * self.period_s[:, None]

    def phase(self, time_s: Tensor) -> Tensor:
        """Beats since beat 0 at times (1, N): (B, N), a whole number on each beat."""
        return (time_s - self.first_s[:, None]) / self.period_s[:, None]

    def pulse(self, time_s: Tensor, decay_per_beat: float) -> Tensor:
        """1 on each beat, falling exponentially after it: (B, N)."""
        phase = self.phase(time_s) + 0.02
        part = phase - phase.floor()
        return torch.exp(-part * decay_per_beat) * (part * 25.0).clamp(max=1.0)


def _rotate(vector: Tensor, axis: int, angle: Tensor) -> Tensor:
    """Vectors (..., 3) turned about coordinate ``axis`` by ``angle`` (...)."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    i, j = ((1, 2), (2, 0), (0, 1))[axis]
    parts = list(vector.unbind(-1))
    parts[i], parts[j] = cos * parts[i] - sin * parts[j], sin * parts[i] + cos * parts[j]
    return torch.stack(parts, -1)


def _two_bones(start: Tensor, target: Tensor, first: float, second: float, pole: Tensor) -> tuple[Tensor, Tensor]:
    """Middle joint and end of two bones from ``start`` towards ``target``, bent towards ``pole``; all (..., 3)."""
    way = target - start
    length = torch.sqrt((way * way).sum(-1, keepdim=True) + 1e-8)
    reach = length.clamp(abs(first - second) + 0.03, (first + second) * 0.995)
    way = way / length
    along = (first * first - second * second + reach * reach) / (2 * reach)
    aside = torch.sqrt((first * first - along * along).clamp(min=1e-6))
    normal = pole - way * (pole * way).sum(-1, keepdim=True)
    normal = normal / torch.sqrt((normal * normal).sum(-1, keepdim=True) + 1e-6)
    return start + way * along + normal * aside, start + way * reach


def _poses_in_time(draws: Draws, genre: Genre, beats: Beats, time_s: Tensor) -> Tensor:
    """The pose (B, F, 21) at each frame: a new one from the table on each beat (or part of one), mirrored at will."""
    table = torch.tensor(genre.poses, dtype=torch.float32, device=draws.keys.device)
    steps = beats.count * genre.rate
    chosen = draws.integers("pose", max(1, len(table) - 1), steps + 1)
    # Never the same pose twice in a row: each draw is an offset of 1 … n - 1 from the one before.
    chosen = (chosen + 1).cumsum(1) % len(table)
    mirrored = draws.uniform("mirror", steps + 1) < 0.5
    pose = table[chosen]
    p = pose.unbind(-1)
    swapped = torch.stack(
        (
            -p[0],
            p[1],
            p[2],
            p[3],
            -p[4],
            -p[5],
            p[6],
            -p[7],
            -p[8],
            -p[12],
            p[13],
            p[14],
            -p[9],
            p[10],
            p[11],
            -p[18],
            p[19],
            p[20],
            -p[15],
            p[16],
            p[17],
        ),
        -1,
    )
    pose = torch.where(mirrored[..., None], swapped, pose)
    size = draws.uniform("amplitude", 1, low=0.9, high=1.05)
    number = torch.arange(steps, device=draws.keys.device, dtype=torch.float32) / genre.rate - beats.BEFORE
    since = beats.phase(time_s)[:, :, None] - number
    half = 0.5 * genre.blend_beats
    going = smoothstep(-half, half, since)
    change = (pose[:, 1:] - pose[:, :-1])[:, None]
    moved = pose[:, :1] + (going[..., None] * change).sum(2)
    if genre.tremor:
        after = since.clamp(min=0)
        shake = torch.exp(-after * 5.0) * torch.sin(after * TAU * 4.0) * (since > 0)
        sign = torch.sign(change)
        moved = moved + (shake[..., None] * sign).sum(2) * genre.tremor
    rest = torch.tensor(_pose(), device=draws.keys.device)
    return rest + (moved - rest) * size[..., None]


def joints_in_time(draws: Draws, genre: Genre, beats: Beats, time_s: Tensor, height_m: Tensor) -> Tensor:
    """Joints (B, F, 19, 3) of the dancer in metres: x to the right of the stage, y up, z to the audience."""
    pose = _poses_in_time(draws, genre, beats, time_s)
    phase = beats.phase(time_s)
    part = [pose[..., i : i + 3] for i in range(0, _POSE, 3)]
    pelvis, turn, bend, hand_l, hand_r, foot_l, foot_r = part
    x, y, z = pelvis.unbind(-1)
    way = torch.where(draws.uniform("way", 1) < 0.5, -1.0, 1.0)

    depth, often = genre.bounce
    dip = 0.5 + 0.5 * torch.cos(phase * often * TAU)
    y = y - depth * (dip * dip - 0.3)
    x = x + genre.sway * torch.sin(phase * math.pi + 0.5 * math.pi) * way
    pelvis = torch.stack((x, y, z), -1)
    pump = genre.pump * torch.exp(-(phase - phase.floor()) * 4.0) * ((phase - phase.floor()) * 12.0).clamp(max=1.0)
    facing = draws.uniform("facing", 1, low=-0.35, high=0.35)
    if genre.spin:
        whole = (phase * genre.spin * 2).floor()
        eased = whole + smoothstep(0.0, 1.0, phase * genre.spin * 2 - whole)
        facing = facing + way * eased * (0.5 * TAU)
    pitch, roll, yaw = turn.unbind(-1)
    yaw = yaw + facing
    chest_pitch, chest_roll, chest_twist = bend.unbind(-1)
    chest_pitch = chest_pitch + 0.25 * dip * depth / 0.05 - pump

    if genre.circle[0]:
        radius, often = genre.circle
        angle = phase * often * TAU
        swing = torch.stack((torch.cos(angle), torch.sin(angle), 0.3 * torch.sin(angle)), -1) * radius
        other = torch.stack((-torch.cos(angle + 0.7), torch.sin(angle + 0.7), 0.3 * torch.sin(angle)), -1) * radius
        hand_l, hand_r = hand_l + swing, hand_r + other
    if genre.step[0]:
        size, often = genre.step
        angle = phase * often * math.pi
        lift_l, lift_r = torch.sin(angle).clamp(min=0), (-torch.sin(angle)).clamp(min=0)
        slide = torch.cos(angle)
        zero = torch.zeros_like(slide)
        foot_l = foot_l + torch.stack((slide * size * 0.7 * way, lift_l * size * 0.8, slide * size), -1)
        foot_r = foot_r + torch.stack((slide * size * 0.7 * way, lift_r * size * 0.8, -slide * size), -1)
        del zero
    if genre.floor_turn:
        angle = phase * genre.floor_turn * TAU
        low = smoothstep(0.4, 0.25, y)[..., None]
        round_l = torch.stack((torch.cos(angle), torch.zeros_like(angle), torch.sin(angle)), -1) * 0.14
        foot_l, foot_r = foot_l + round_l * low, foot_r - round_l * low

    def in_trunk(vector: Tensor) -> Tensor:
        """From the pelvis's frame to the stage's."""
        return _rotate(_rotate(_rotate(vector, 2, roll), 0, pitch), 1, yaw)

    def in_chest(vector: Tensor) -> Tensor:
        return in_trunk(_rotate(_rotate(_rotate(vector, 2, chest_roll), 0, chest_pitch), 1, chest_twist))

    def fixed(*xyz: float) -> Tensor:
        return torch.tensor(xyz, device=pose.device).expand(*pose.shape[:2], 3)

    chest = pelvis + in_trunk(fixed(0.0, 0.06, 0.0)) + in_chest(fixed(0.0, 0.16, 0.0))
    neck = chest + in_chest(fixed(0.0, 0.10, 0.0))
    nod = _rotate(fixed(0.0, 0.085, 0.02), 0, 0.35 * dip * depth / 0.05)
    head = neck + in_chest(nod)
    crown = head + in_chest(fixed(0.0, 0.024, -0.022))
    shoulder_l, shoulder_r = chest + in_chest(fixed(0.105, 0.06, 0.0)), chest + in_chest(fixed(-0.105, 0.06, 0.0))
    elbow_l, hand_l = _two_bones(
        shoulder_l, shoulder_l + in_chest(hand_l), _UPPER_ARM, _FOREARM, in_chest(fixed(0.5, -0.6, -0.6))
    )
    elbow_r, hand_r = _two_bones(
        shoulder_r, shoulder_r + in_chest(hand_r), _UPPER_ARM, _FOREARM, in_chest(fixed(-0.5, -0.6, -0.6))
    )
    hip_l, hip_r = pelvis + in_trunk(fixed(0.055, -0.01, 0.0)), pelvis + in_trunk(fixed(-0.055, -0.01, 0.0))
    spin_only = yaw if genre.spin else facing
    knees = _rotate(fixed(0.0, 0.15, 1.0), 1, spin_only)
    knee_l, foot_l = _two_bones(
        hip_l, _rotate(foot_l, 1, spin_only), _THIGH, _SHIN, knees + 0.35 * in_trunk(fixed(1.0, 0.0, 0.0))
    )
    knee_r, foot_r = _two_bones(
        hip_r, _rotate(foot_r, 1, spin_only), _THIGH, _SHIN, knees - 0.35 * in_trunk(fixed(1.0, 0.0, 0.0))
    )
    toes = _rotate(fixed(0.0, -0.015, 0.085), 1, spin_only)
    toe_l, toe_r = foot_l + toes + 0.25 * (foot_l - knee_l) * 0.2, foot_r + toes + 0.25 * (foot_r - knee_r) * 0.2
    joints = torch.stack(
        (
            pelvis,
            chest,
            neck,
            head,
            shoulder_l,
            shoulder_r,
            elbow_l,
            elbow_r,
            crown,
            hand_l,
            hand_r,
            hip_l,
            hip_r,
            knee_l,
            knee_r,
            foot_l,
            foot_r,
            toe_l,
            toe_r,
        ),
        2,
    )
    joints = joints * height_m[:, None, None, None]
    # Nothing sinks into the floor: the whole dancer is lifted by what would.
    sunk = (0.06 - joints[..., 1].amin(2)).clamp(min=0)
    return torch.cat((joints[..., :1], joints[..., 1:2] + sunk[:, :, None, None], joints[..., 2:]), -1)
