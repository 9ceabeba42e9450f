"""The kernels compile for GPUs, which Triton's interpreter does not tell; what they give is tested in test_unet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_every_kernel_compiles_for_a_gpu(tmp_path):
    kernels = pytest.importorskip("mgct.kernels")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run([sys.executable, script, "90"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    names = {name for name in vars(kernels) if name.endswith("_kernel")}
    assert {line.split()[0] for line in done.stdout.splitlines()} == names
