"""Music of the world `dance`: drums, bass and harmony on the dancer's beats, in sixteenth notes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mgct.data.worlds.motion import Beats, Genre
from mgct.data.worlds.sound import Tape

_MINOR: tuple[float, ...] = (0.0, 3.0, 7.0, 10.0)
_MAJOR: tuple[float, ...] = (0.0, 4.0, 7.0, 11.0)
_PROGRESSIONS = ((0.0, 0.0), (0.0, -4.0), (0.0, 5.0), (0.0, -2.0), (0.0, 3.0))
_REST = -100.0
_SEMITONE = math.log(2) / 12


def _pattern(tape: Tape, name: str, variants: tuple[str, ...], sixteenth: Tensor) -> Tensor:
    """The note a variant of a pattern has at each sixteenth (B, N): `_REST`, or semitones (``>`` is an octave)."""
    rows = [
        [_REST if c == "." else 0.0 if c == "x" else 12.0 if c == ">" else float(c) for c in text] for text in variants
    ]
    table = tape.draws.choice(f"pattern/{name}", torch.tensor(rows))
    return table.gather(1, sixteenth)


def _notes(onset_s: Tensor, strength: Tensor, most: int, *others: Tensor) -> tuple[Tensor, ...]:
    """Only the struck notes of a voice: times, strengths and ``others`` (B, N) cut to the first ``most`` that sound."""
    order = torch.argsort((strength <= 0).to(torch.int8), dim=1, stable=True)[:, :most]
    return tuple(value.expand_as(strength).gather(1, order) for value in (onset_s, strength, *others))


def _most(variants: tuple[str, ...], steps: int) -> int:
    """The most notes that any variant of a pattern can have in ``steps`` sixteenths, wherever in the bar they begin."""

    def count(text: str, start: int) -> int:
        return sum(text[(start + k) % 16] != "." for k in range(steps))

    return max(1, max(count(text, start) for text in variants for start in range(0, 16, 4)))


def _tone(
    tape: Tape,
    onset_s: Tensor,
    strength: Tensor,
    frequencies_hz: Sequence[Tensor],
    decay_s: float,
    harmonics: tuple[float, ...],
    attack_s: float = 0.004,
) -> Tensor:
    """Struck chords, each note with the given harmonics: (B, L). Harmonics above the band are left out.

    Args:
        tape: what to play on.
        onset_s: (B, E) seconds.
        strength: (B, E) amplitudes.
        frequencies_hz: one (B, E) for each note of the chord.
        decay_s: time constant of the fall.
        harmonics: amplitudes of the fundamental and what lies above it.
        attack_s: time of the rise.
    """

    def shape(t: Tensor) -> Tensor:
        total = torch.zeros_like(t)
        for frequency_hz in frequencies_hz:
            turn = frequency_hz[..., None] * t
            turn = (turn - turn.floor()) * (2 * math.pi)
            # sin kθ = 2 cos θ sin (k-1)θ - sin (k-2)θ
            twice_cos, before, now = 2 * torch.cos(turn), torch.zeros_like(turn), torch.sin(turn)
            for k, amplitude in enumerate(harmonics, 1):
                total += now * (tape.audible(frequency_hz * k) * amplitude)[..., None]
                before, now = now, twice_cos * now - before
        body = torch.exp(t * (-1 / decay_s)) * (t * (1 / attack_s)).clamp_(max=1)
        return total * body * strength[..., None]

    return tape.grains(onset_s, min(3.2 * decay_s, 0.8), shape)


def music(tape: Tape, genre: Genre, beats: Beats) -> Tensor:
    """The clips' music (B, L) at a natural level."""
    draws, sound = tape.draws, genre.sound
    steps = beats.count * 4
    number = torch.arange(steps, device=tape.device)
    sixteenth = (number[None] + 4 * beats.bar[:, None]) % 16
    step_s = beats.period_s[:, None] / 4
    swing = sound.get("swing", 0.0) * (number % 2) * step_s
    onset_s = beats.onset_s[:, :1] + number * step_s + swing
    on_beat = (number % 4 == 0).float()

    def struck(name: str, variants: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        note = _pattern(tape, name, variants, sixteenth)
        return note, (note > _REST / 2).float()

    _, kick = struck("kick", genre.kick)
    _, snare = struck("snare", genre.snare)
    _, hat = struck("hat", genre.hat)
    bass_note, bass = struck("bass", genre.bass)
    _, chord = struck("chord", genre.chord)
    # Whatever the pattern, the beat itself is marked: the dancer moves on it.
    mark = on_beat * 0.55 * (1 - torch.maximum(kick, snare))
    beat_kick = kick * (0.8 + 0.2 * on_beat) + mark

    at_s, hit, click = _notes(onset_s, beat_kick, _most(genre.kick, steps) + beats.count, kick * 0.5 + mark)
    kick_hz = torch.ones_like(at_s) * sound["kick_hz"] * draws.uniform("kick_hz", 1, low=0.9, high=1.1)
    short_s = torch.full_like(at_s, 0.1)
    signal = tape.chirps(at_s, hit * 0.8, kick_hz * 2.6, -14.0, short_s, 0.3)
    signal = signal + tape.chirps(at_s, hit * 0.6, kick_hz, -0.5, short_s, 0.3)
    signal = signal + tape.envelope(at_s, click, 0.001, 0.006) * tape.band_noise("beater", 300.0, 2500.0) * 0.4

    clap = bool(sound.get("clap"))
    at_s, hit = _notes(onset_s, snare * sound["snare"] * (0.4 if clap else 0.55), _most(genre.snare, steps))
    rattle = tape.envelope(at_s, hit, 0.001, 0.07 if clap else 0.1) * tape.band_noise("snare", 450.0, 5500.0, 0.3)
    skin_hz, skin_s = torch.full_like(at_s, 195.0), torch.full_like(at_s, 0.06)
    signal = signal + rattle * 0.8 + tape.chirps(at_s, hit * 0.8, skin_hz, -2.0, skin_s, 0.2)

    tick = hat * sound["hat"] * (0.55 + 0.45 * draws.uniform("hat/velocity", steps))
    at_s, hit = _notes(onset_s, tick, _most(genre.hat, steps))
    signal = signal + tape.envelope(at_s, hit, 0.001, 0.022) * tape.band_noise("hat", 900.0, 7500.0, -0.5) * 0.22

    key = draws.integers("key", 12, 1).float()
    root_hz = 41.25 * torch.exp(key * _SEMITONE)
    bars = torch.div(number[None] + 4 * beats.bar[:, None], 16, rounding_mode="floor") % 2
    move = draws.choice("progression", torch.tensor(_PROGRESSIONS)).gather(1, bars)
    edge = sound["bass_edge"]
    overtones = tuple(1.0 if k == 1 else edge / k for k in range(1, 7)) if edge > 0.2 else (1.0, 0.3 * edge)
    bass_hz = root_hz * torch.exp((bass_note.clamp(min=-24) + move) * _SEMITONE)
    at_s, hit, note_hz = _notes(onset_s, bass * sound["bass"] * 0.24, _most(genre.bass, steps), bass_hz)
    signal = signal + _tone(tape, at_s, hit, [note_hz], sound.get("bass_s", 0.18), overtones)

    tones = _MINOR if sound["minor"] else _MAJOR
    strings = sound.get("strings", 0.0)
    attack_s = 0.05 if strings >= 1 else 0.012 if strings else 0.004
    colour: tuple[float, ...] = (1.0, 0.45, 0.33, 0.15)
    if sound.get("piano"):
        colour = (1.0, 0.5, 0.25, 0.12)
    elif sound.get("brass"):
        colour = (1.0, 0.8, 0.6, 0.5)
    chord_hz = root_hz * (2.0 ** (1.5 + sound["octave"] * 0.5)) * torch.exp(move * _SEMITONE)
    if sound.get("arpeggio"):
        turn = torch.div(number, 2, rounding_mode="floor") % 4
        chord_hz = chord_hz * torch.exp(torch.tensor(tones, device=tape.device)[turn] * _SEMITONE)
        tones = tones[:1]
    level = 0.085 * sound["chord"] * (2.2 if sound.get("arpeggio") else 1.0)
    at_s, hit, note_hz = _notes(onset_s, chord * level, _most(genre.chord, steps), chord_hz)
    notes_hz = [note_hz * math.exp(tone * _SEMITONE) for tone in tones]
    signal = signal + _tone(tape, at_s, hit, notes_hz, sound["chord_s"], colour, attack_s)
    return signal * draws.uniform("volume", 1, low=0.55, high=0.8)
