"""Uploaded files, decoded in a process of their own with limits on time and memory.

What a stranger uploads is read by `mgct.data.media` alone, in a child process that is killed when its time is up, that
can take only so much memory and can write no file. The child is forked from a server process that has the decoder
loaded, so a file costs milliseconds, not an import of torch.
"""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mgct.data.media import read_sound, read_video
from mgct.errors import UserError
from mgct.types import AVSample, ClipSpec, dequantise

Kind = Literal["sound", "video"]


@dataclass(frozen=True)
class DecodeLimits:
    """What decoding one file may take.

    Args:
        seconds: wall time, after which the process is killed.
        memory_bytes: that the process may take on top of what it has when it starts.
        file_bytes: the largest file that is looked at.
    """

    seconds: float = 20.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 50_000_000


def decode(path: Path, kind: Kind, clip: ClipSpec, start_s: float = 0.0, limits: DecodeLimits | None = None) -> Tensor:
    """One clip's sound or video of a file, by a process with limits.

    Args:
        path: the file.
        kind: what to take of it.
        clip: length, rates and size wanted.
        start_s: where to start, in seconds.
        limits: of the process.

    Returns:
        Sound (1, 1, L) or video (1, F, 3, H, W), float32 in [-1, 1].

    Raises:
        UserError: the file is too large, is no such medium, is too short, or goes beyond a limit.
    """
    limits = limits or DecodeLimits()
    if not start_s >= 0:
        raise UserError(f"the start must be 0 s or later, got {start_s:g}")
    size = path.stat().st_size
    if size > limits.file_bytes:
        raise UserError(f"the file has {size / 1e6:.0f} MB; at most {limits.file_bytes / 1e6:.0f} MB are taken")
    context = _context()
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, path, kind, clip, start_s, limits.memory_bytes), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(limits.seconds):
            raise UserError(f"the file took longer than {limits.seconds:g} s to decode; try a shorter or smaller one")
        failed, content = ours.recv_bytes(1), ours.recv_bytes()
    except EOFError:
        raise UserError("the file could not be decoded: it took too much memory or broke the decoder") from None
    finally:
        process.kill()
        process.join()
        ours.close()
    if failed == b"1":
        raise UserError(content.decode())
    sound = np.frombuffer(content if kind == "sound" else b"", np.int16).reshape(1, -1)
    frames = np.frombuffer(content if kind == "video" else b"", np.uint8).reshape(-1, *clip.video_shape[1:])
    clips = dequantise(AVSample(video=torch.tensor(frames), audio=torch.tensor(sound)))
    return (clips.audio if kind == "sound" else clips.video)[None]


def warm_up() -> None:
    """Start the process that the others are forked from, so that the first upload does not wait for it."""
    process = _context().Process(target=_nothing, daemon=True)
    process.start()
    process.join()


def _nothing() -> None:
    """What `warm_up` runs."""


def _context() -> Any:
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])
    return context


def _child(pipe: Connection, path: Path, kind: Kind, clip: ClipSpec, start_s: float, memory_bytes: int) -> None:
    """Decode, and send b"0" and the bytes, or b"1" and a message."""
    try:
        _limit(memory_bytes)
        part = read_sound(path, clip, start_s) if kind == "sound" else read_video(path, clip, start_s)
        failed, content = b"0", part.tobytes()
    except UserError as error:
        failed, content = b"1", str(error).encode()
    except MemoryError:
        failed, content = b"1", b"the file needs too much memory to decode; try a smaller one"
    pipe.send_bytes(failed)
    pipe.send_bytes(content)


def _limit(memory_bytes: int) -> None:
    """Bound this process: no file written, memory at most ``memory_bytes`` above what it has (Linux)."""
    if sys.platform != "linux":
        return
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    lines = Path("/proc/self/status").read_text().splitlines()
    data_kb = next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))
    limit = data_kb * 1024 + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
