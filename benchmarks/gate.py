"""Fails if the network has become slower: its time over that of plain convolutions with as many operations.

    python benchmarks/gate.py            # compares with benchmarks/gate.json; exit status 1 on a loss of over 15 %
    python benchmarks/gate.py --store    # keeps today's ratios, for processors of this kind

Both sides run in this process, A B A B …, in float32 on the CPU, and are timed in CPU seconds, so that neither a faster
machine nor a busy one changes much. The ratio is the median over the pairs. The plain side is a stack of 3×3
convolutions of 64 channels in PyTorch's channels-last format, repeated until it has done the same number of operations.
How fast PyTorch's convolutions are differs between makers and families of processors and with the width of their
vectors, so each kind has its own ratios; one that is not known is compared with the largest.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from counting import onednn_products
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mgct import ClipSpec, MultimodalUNet
from mgct.cli import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
STORED = Path(__file__).with_name("gate.json")
CASES = {"micro": 16, "small": 1}
"""Configuration → clips at once."""
ALLOWED_LOSS = 0.15


def network_step(name: str, clips: int, training: bool) -> Callable[[], Any]:
    """A forward call without gradient, or forward and backward."""
    settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    torch.manual_seed(0)
    unet: Any = MultimodalUNet(**settings["model"]).train(training)
    clip = ClipSpec(**settings["clip"])
    video, audio = torch.randn(clips, *clip.video_shape), torch.randn(clips, *clip.audio_shape)
    timestep = torch.linspace(0, 999, clips).long()

    def step() -> None:
        with torch.set_grad_enabled(training):
            out = unet(video, audio, timestep, window_shift=0)
        if training:
            (out.video.square().mean() + out.audio.square().mean()).backward()
            unet.zero_grad(set_to_none=True)

    return step


def plain_step(operations: float, training: bool) -> Callable[[], Any]:
    """Convolutions that do so many floating-point operations."""
    torch.manual_seed(0)
    stack = nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1) for _ in range(4)]).to(memory_format=torch.channels_last)
    images = torch.randn(16, 64, 32, 32).to(memory_format=torch.channels_last)
    once = 4 * 2 * images.numel() * 64 * 9 * (3 if training else 1)
    share, repeats = operations / once, max(1, round(operations / once))
    if share < 1:
        images = images[: max(1, round(16 * share))]

    def step() -> None:
        for _ in range(repeats):
            with torch.set_grad_enabled(training):
                out = stack(images)
            if training:
                out.square().mean().backward()

    return step


def counted(step: Callable[[], Any]) -> float:
    """Floating-point operations of a call."""
    with FlopCounterMode(display=False, custom_mapping=onednn_products()) as counter:
        step()
    return float(counter.get_total_flops())


def cpu_seconds(step: Callable[[], Any]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def measured(pairs: int) -> dict[str, float]:
    """Case → time of the network over that of the convolutions."""
    ratios = {}
    for name, clips in CASES.items():
        for training in (False, True):
            ours = network_step(name, clips, training)
            operations = counted(ours)
            plain = plain_step(operations, training)
            exact = operations / counted(plain)  # the stack comes in whole repeats
            plain()
            found = [cpu_seconds(ours) / (cpu_seconds(plain) * exact) for _ in range(pairs)]
            ratios[f"{name} {'train' if training else 'forward'}"] = round(statistics.median(found), 3)
    return ratios


def processor() -> str:
    """Its maker and family, as Linux has them, or the kind of machine; and the widest vectors that PyTorch uses."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.is_file() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    maker, family = facts.get("vendor_id", platform.machine()), facts.get("cpu family")
    return f"{maker}{f' family {family}' if family else ''} {torch.backends.cpu.get_cpu_capability()}"


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--store", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    ratios, kind, kept = measured(options.pairs), processor(), json.loads(STORED.read_text())
    if options.store:
        kept[kind] = ratios
        STORED.write_text(json.dumps(kept, indent=1) + "\n")
    if kind not in kept:
        print(f"nothing is stored for {kind}; compared with the slowest of {', '.join(kept)}, which says little")
    stored = kept.get(kind, {case: max(known[case] for known in kept.values()) for case in ratios})
    slower = []
    for case, ratio in ratios.items():
        loss = ratio / stored[case] - 1
        print(f"{case}: {ratio:.2f} times plain convolutions, stored {stored[case]:.2f} ({loss:+.0%})")
        if loss > ALLOWED_LOSS:
            slower.append(case)
    if slower:
        print(f"slower by more than {ALLOWED_LOSS:.0%}: {', '.join(slower)}", file=sys.stderr)
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())
