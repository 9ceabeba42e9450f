"""What training costs: operations and memory, computed on tensors without data, and time, from one measurement.

    python benchmarks/training_cost.py                       # small and paper
    python benchmarks/training_cost.py --config paper --batch 16 --moved 160

Operations: matrix products, convolutions and attention of one forward call, a multiply-add as two. A training step of
stage 1 is three of these a clip (the backward pass counts as two), of stage 2 eight (θ twice forward and backward, θ⁻
and φ once), with gradient checkpointing one and two more.

Memory: weights, gradients, AdamW's two moments and the running average in float32, in stage 2 θ⁻ too; and what the
backward pass keeps of a clip's activations, each storage counted once, in the body's precision.

Time: these networks are bound by memory on a GPU (a training step of ``small`` reaches 7 % of an H100's matrix rate). So
it is taken to be what one H100 needed, by the ratio of the memory rates; ``--moved`` says it as gigabytes a clip. A loader
may be slower. Measure yours with ``benchmarks/speed.py``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from mgct import ClipSpec, MultimodalUNet, gpu

ROOT = Path(__file__).resolve().parent.parent
DEVICES = {  # GB/s and GB, from the makers' data sheets
    "RTX 3090": (936, 24),
    "RTX 4090": (1008, 24),
    "A100 80 GB": (2039, 80),
    "H100 SXM": (3350, 80),
    "H200": (4800, 141),
}
MOVED_GB = {"small": 3350 / 442, "paper": 3 * 3350 / 129.5}
"""An H100's rate over the clips/s that were measured on it: training, and three times a forward call (fp16)."""
PASSES = (3, 8)
"""Forward calls that a training step stands for, by stage."""


def forward_operations(unet: Any, clip: ClipSpec) -> float:
    """Floating-point operations of a forward call of one clip."""
    video, audio = (torch.empty(1, *shape) for shape in (clip.video_shape, clip.audio_shape))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(video, audio, torch.zeros(1), window_shift=0)
    return float(counter.get_total_flops())


def kept_bytes(unet: Any, clip: ClipSpec, clips: int) -> float:
    """Bytes that a forward call in bfloat16 on a GPU keeps for its backward pass, weights in bfloat16 included."""
    own = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    video, audio = (torch.empty(clips, *shape) for shape in (clip.video_shape, clip.audio_shape))
    with (
        mock.patch.object(gpu, "on_gpu", return_value=True),
        mock.patch.object(gpu, "has_kernels", return_value=False),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        unet(video, audio, torch.zeros(clips), window_shift=0)
    return float(sum(storage.nbytes() for storage in kept.values()))


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["small", "paper"])
    parser.add_argument("--batch", type=int, help="clips per step; the configuration's own if left out")
    parser.add_argument("--moved", type=float, help="gigabytes a clip of a step of stage 1; default: see MOVED_GB")
    options = parser.parse_args()
    for name in options.config:
        settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        clip, batch = ClipSpec(**settings["clip"]), options.batch or settings["train"]["batch_size"]
        with FakeTensorMode():
            unet: Any = MultimodalUNet(**settings["model"]).train()
            count = unet.num_parameters()
            operations = forward_operations(unet, clip)
            clip_gb = (kept_bytes(unet, clip, 2) - kept_bytes(unet, clip, 1)) / 1e9
            unet.enable_gradient_checkpointing()
            less_gb = (kept_bytes(unet, clip, 2) - kept_bytes(unet, clip, 1)) / 1e9
        state_gb = [count * 4 * copies / 1e9 for copies in (5, 6)]
        print(f"\n{name}: {count:,} parameters, {operations / 1e12:.3f} TFLOP a forward call of one clip")
        print(f"memory: {state_gb[0]:.2f} GB of weights and optimiser ({state_gb[1]:.2f} in stage 2)")
        print(
            f"        {clip_gb:.3f} GB of activations a clip and loss in bfloat16 ({less_gb:.3f} with gradient checkpointing, and"
        )
        print("        one block's at a time)\n")
        print(f"| device | clips at once in stage 1, 2 | clips/s in stage 1, 2 | 100,000 steps of {batch} clips |")
        print("|---|---|---|---|")
        moved = options.moved or MOVED_GB.get(name)
        if moved is None:
            raise SystemExit(f"no step of {name} has been measured; say what one moves: --moved GB")
        for device, (speed, memory) in DEVICES.items():
            rate = PASSES[0] * speed / moved
            fits = [int((0.9 * memory - state_gb[stage]) / clip_gb / (stage + 1)) for stage in (0, 1)]
            hours = [100_000 * batch * passes / rate / 3600 for passes in PASSES]
            rates = [rate / passes for passes in PASSES]
            print(
                f"| {device} | {fits[0]}, {fits[1]} | {rates[0]:.0f}, {rates[1]:.0f} "
                f"| {hours[0]:.1f} h, {hours[1]:.1f} h |"
            )


if __name__ == "__main__":
    main()
