"""``mgct export``."""

from __future__ import annotations

import importlib.util
import json
import logging
import shlex
import warnings
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from mgct import __version__
from mgct.convert import mm_diffusion_flags, to_mm_diffusion
from mgct.errors import UserError
from mgct.pipeline import AVPipeline
from mgct.saved_models import find_pipeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgct.types import ClipSpec
    from mgct.unet import MultimodalUNet

Format = Literal["onnx", "mm-diffusion"]
SUFFIXES: dict[str, tuple[str, ...]] = {"onnx": (".onnx",), "mm-diffusion": (".pt", ".safetensors")}
TOLERANCE = 1e-3
"""Largest difference of an element of ε̂ between ONNX Runtime and PyTorch with which an ONNX file is kept."""
LARGEST_BYTES = 2**31 - 2**24
"""An ONNX file is one protocol buffer, of at most 2 GiB; some of it is not weights."""


def export(model: str, out: Path, format: Format = "onnx") -> None:
    """Write a model's network into one file for other programs.

    onnx: the network for clips of the model's size, any number at once. It is compared with PyTorch on random input
    and kept only if no element of the result differs by more than 0.001. Takes minutes; needs `mgct[export]`.

    mm-diffusion: the weights under MM-Diffusion's names; prints the model options of its scripts.

    Args:
        model: a run folder made by `mgct train`, or a saved model's folder.
        out: the file to write: .onnx, or for mm-diffusion .pt or .safetensors.
        format: onnx or mm-diffusion.
    """
    if out.suffix not in SUFFIXES[format]:
        raise UserError(f"{out}: a file of the format {format} ends in {' or '.join(SUFFIXES[format])}")
    if format == "onnx":
        _need_packages()
    pipe: AVPipeline = AVPipeline.from_pretrained(find_pipeline(model))
    if format == "mm-diffusion":
        flags = mm_diffusion_flags(pipe.unet)
        frames, channels, height, width = pipe.clip.video_shape
        flags |= {
            "video_size": f"{frames},{channels},{height},{width}",
            "audio_size": ",".join(map(str, pipe.clip.audio_shape)),
        }
        with _replacing(out) as draft:
            write_mm_diffusion(pipe.unet, draft)
        print(f"{out}: load it there with")
        print(" ".join(f"--{name} {shlex.quote(value)}" for name, value in flags.items()))
        return
    with _replacing(out) as draft:
        write_onnx(pipe, draft)
        difference = onnx_difference(pipe, draft)
        if not difference <= TOLERANCE:
            raise UserError(
                f"the ONNX network differs from PyTorch's by {difference:.2g}, more than {TOLERANCE:g}, and was not "
                "kept; report this with what `mgct doctor` prints"
            )
    print(f"{out}: differs from PyTorch by {difference:.1e} at most; inputs {', '.join(onnx_inputs(pipe.unet))}")


def write_mm_diffusion(unet: MultimodalUNet, path: Path) -> None:
    """The weights under MM-Diffusion's names, as a ``.safetensors`` file or else one of `torch.save`."""
    state = to_mm_diffusion(unet)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)


def onnx_inputs(unet: MultimodalUNet) -> list[str]:
    """Names of the inputs of the network's ONNX form, in order; after three, those that it has."""
    shift = ["window_shift"] if unet.num_shifted_blocks else []
    times = {"target_timestep": "target_time", "audio_timestep": "audio_time"}
    return ["video", "audio", "timestep", *shift, *(name for name, has in times.items() if unet.config[has])]


class OnnxForm(nn.Module):
    """The network with tensors for all inputs and outputs, in the order of `onnx_inputs`.

    Args:
        unet: the network.
    """

    def __init__(self, unet: MultimodalUNet) -> None:
        super().__init__()
        self.unet: Any = unet
        self.names = onnx_inputs(unet)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """ε̂ of video (B, F, C, H, W) and audio (B, C, L)."""
        out = self.unet(**dict(zip(self.names, inputs, strict=True)))
        return out.video, out.audio


def example(unet: MultimodalUNet, clip: ClipSpec, batch: int, seed: int = 0) -> list[Tensor]:
    """Random inputs of `OnnxForm` for ``batch`` clips, the window shifts anything that they may be."""
    draw = torch.Generator().manual_seed(seed)
    timestep = torch.rand(batch, generator=draw) * 999
    made: dict[str, Callable[[], Tensor]] = {
        "video": lambda: torch.randn(batch, *clip.video_shape, generator=draw),
        "audio": lambda: torch.randn(batch, *clip.audio_shape, generator=draw),
        "timestep": lambda: timestep,
        "window_shift": lambda: torch.tensor(unet.draw_window_shifts(clip.frames, draw)),
        "target_timestep": lambda: timestep * torch.rand(batch, generator=draw),
        "audio_timestep": lambda: torch.rand(batch, generator=draw) * 999,
    }
    return [made[name]() for name in onnx_inputs(unet)]


def write_onnx(pipe: AVPipeline, path: Path) -> None:
    """Write the network of ``pipe`` as ONNX, for clips of the model's size, the batch left open.

    The file's metadata has ``mgct``: JSON of the clip, the noise schedule, the recommended samplers and the largest
    window shifts.

    Raises:
        UserError: the network is too large for one ONNX file, or PyTorch cannot translate it.
    """
    unet: MultimodalUNet = pipe.unet
    size = sum(p.numel() * p.element_size() for p in unet.parameters())
    if size > LARGEST_BYTES:
        raise UserError(f"the network has {size / 2**30:.1f} GiB of weights; an ONNX file holds at most 2")
    names = onnx_inputs(unet)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    shapes = tuple(None if name == "window_shift" else {0: batch} for name in names)
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                OnnxForm(unet).eval(),
                tuple(example(unet, pipe.clip, batch=2)),
                dynamo=True,
                input_names=names,
                output_names=["video_noise", "audio_noise"],
                dynamic_shapes=(shapes,),  # forward takes its inputs as one tuple, *inputs
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"PyTorch {torch.__version__} cannot translate the network to ONNX: {reason}") from error
    if program is None:
        raise RuntimeError("torch.onnx.export with dynamo=True returns a program")
    config = {key: value for key, value in pipe.config.items() if not key.startswith("_") and key != "unet"}
    facts = {**config, "max_window_shifts": unet.max_window_shifts(pipe.clip.frames), "version": __version__}
    program.model.metadata_props["mgct"] = json.dumps(facts)
    program.save(path, external_data=False)


def onnx_difference(pipe: AVPipeline, path: Path) -> float:
    """The largest difference of an element of ε̂ between the file at ``path`` and PyTorch, on random clips."""
    import onnxruntime

    unet = pipe.unet
    inputs = example(unet, pipe.clip, batch=3, seed=1)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    named = {name: value.numpy() for name, value in zip(onnx_inputs(unet), inputs, strict=True)}
    theirs = [torch.from_numpy(value) for value in session.run(None, named)]
    with torch.no_grad():
        ours = OnnxForm(unet).eval()(*inputs)
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def _need_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"ONNX needs {', '.join(missing)}: pip install 'mgct[export]'")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on its own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A draft to write; it takes the place of ``out`` in the end, and is removed if that is not reached.

    Raises:
        UserError: ``out`` cannot be written.
    """
    draft = out.with_name(f".{out.stem}.draft{out.suffix}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        draft.replace(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another file") from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
