"""Shared fixtures: the reference's numbers and tiny networks."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

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
