"""Joint audio-video generation in few steps: Multimodal Generation with Consistency Transferring.

The public names are imported on first use, so that ``import mgct`` costs next to nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "AVSample": "mgct.types",
    "ClipSpec": "mgct.types",
    "MultimodalUNet": "mgct.unet",
    "AVPipeline": "mgct.pipeline",
}
__all__ = ["AVPipeline", "AVSample", "ClipSpec", "MultimodalUNet", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'mgct' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
