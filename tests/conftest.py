"""Shared fixtures: the reference's numbers and tiny networks."""

import json
import os
from pathlib import Path

# Before torch: as `mgct.cli.main` has it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
if "PYTEST_XDIST_WORKER" in os.environ:  # the workers share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import load_file

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton: its kernels then run on the CPU, slowly

FIXTURES = Path(__file__).parent / "fixtures"


def load_reference_weights(path: Path) -> dict[str, torch.Tensor]:
    """A weight file in which int8 tensors stand for the float32 value q / 256."""
    return {k: v.float() / 256 if v.dtype == torch.int8 else v for k, v in load_file(path).items()}


@pytest.fixture(scope="session")
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture(scope="session")
def unet_small_weights() -> dict[str, torch.Tensor]:
    return load_reference_weights(FIXTURES / "unet_small_weights.safetensors")


@pytest.fixture(scope="session")
def paper_manifest() -> dict:
    return json.loads((FIXTURES / "mm_diffusion_manifest.json").read_text())


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory) -> Path:
    """A prepared folder of ten clips of 4 frames of 8×8 at 10 fps with 64 samples at 160 Hz."""
    from mgct import ClipSpec
    from mgct.data.media import write_mp4
    from mgct.data.prepare import prepare

    videos, out = tmp_path_factory.mktemp("videos"), tmp_path_factory.mktemp("shards") / "out"
    generator = torch.Generator().manual_seed(0)
    for number in range(10):
        coarse = torch.randint(0, 256, (4, 3, 2, 2), generator=generator, dtype=torch.uint8)
        video = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
        tone = torch.sin(torch.arange(3200) * (number + 1) / 40) * 9000
        write_mp4(videos / f"{number}.mp4", video, tone.to(torch.int16)[None], fps=10, sample_rate_hz=8000)
    prepare(videos, out, ClipSpec(4, 10.0, 8, 160), test_fraction=0.2, workers=0, progress=False)
    return out


@pytest.fixture
def other_precision():
    """accelerate keeps one precision for a process: forget it before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
