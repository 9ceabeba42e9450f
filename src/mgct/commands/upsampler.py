"""``mgct train-upsampler``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from mgct.checkpoint import as_json, began_from, checkpoint_to_resume, open_run_folder, run_folder
from mgct.clip_random import derive_seed
from mgct.convert import read_state_dict
from mgct.data.batches import ClipBatch
from mgct.data.shards import make_loader
from mgct.errors import UserError, explain_memory
from mgct.layout import Precision, leave_processes, make_accelerator
from mgct.noise import NoiseSchedule
from mgct.types import ClipSpec
from mgct.upsampler import UpsamplerUNet
from mgct.upsampler_trainer import UpsamplerTrainer, UpsamplerTraining


def train_upsampler(
    model: dict[str, Any],
    data: str = "",
    out: Path = Path("runs/upsampler"),
    clip: ClipSpec = ClipSpec(frames=1, size=256),
    train: UpsamplerTraining = UpsamplerTraining(),
    precision: Precision = "auto",
    init: str = "",
    resume: bool = False,
    config_yaml: str = "",
) -> None:
    """Train an upsampler on large videos; the small ones are made from them.

    Ctrl-C or SIGTERM saves and leaves; --resume goes on. `mgct sample MODEL CLIPS --upsampler OUT` uses the result.

    Args:
        model: the network's settings.
        data: a folder made by `mgct prepare`, a glob or list of shards or URLs, or world:landscape or world:dance.
        out: the run folder, made if need be.
        clip: size and rates of the large clips, as prepared, and how many successive frames of each to take.
        train: how the run is trained.
        precision: bf16 runs the network in bfloat16; auto: bf16 where the device has it, else fp32.
        init: begin from these weights: a saved upsampler, its run folder, or MM-Diffusion's .pt or .safetensors file. A
            run that is resumed has its own.
        resume: go on from the newest checkpoint in the run folder.
        config_yaml: the whole configuration as YAML, kept in the run folder.
    """
    if not data:
        raise UserError("train-upsampler needs --data: a folder made by `mgct prepare`, or world:landscape")
    accelerator = _accelerator(precision)
    if accelerator.is_main_process:
        open_run_folder(out, "mgct train-upsampler")
    config = as_json({"kind": "upsampler", "model": model, "clip": vars(clip), "data": data})
    checkpoint = checkpoint_to_resume(out, resume, config, train.seed, train.steps)
    init = config["init"] = began_from(out, checkpoint, init)
    settings = {**yaml.safe_load(config_yaml or "{}"), "init": init}
    if train.batch_size % accelerator.num_processes:
        raise UserError(
            f"train.batch_size {train.batch_size} is not a multiple of the {accelerator.num_processes} processes"
        )
    torch.manual_seed(derive_seed(train.seed, "upsampler weights"))
    with explain_memory("model.model_channels", model["model_channels"]):
        unet = UpsamplerUNet(**model)
    unet.check_side(clip.size)
    if init and checkpoint is None:
        _load_weights(unet, init)

    def loader(step: int) -> Iterable[ClipBatch]:
        return make_loader(
            data,
            clip,
            batch_size=train.batch_size // accelerator.num_processes,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            seed=train.seed,
            start_step=step,
            num_workers=train.num_workers,
        )

    loader(checkpoint.state["step"] if checkpoint else 0)  # refuses unusable data before anything is written
    main = accelerator.is_main_process
    with run_folder(out, settings, "mgct train-upsampler") if main else nullcontext():
        accelerator.wait_for_everyone()
        schedule = NoiseSchedule(device=accelerator.device)
        trainer = UpsamplerTrainer(unet, loader, schedule, train, out, config, accelerator)
        if checkpoint is not None:
            with checkpoint.explained():
                trainer.load(checkpoint)
        if main:
            small = clip.size // unet.config["scale"]
            print(
                f"{unet.num_parameters():,} parameters, {small} → {clip.size} pixels a side, on {accelerator.device} × "
                f"{accelerator.num_processes}, from step {trainer.step} to {train.steps}",
                file=sys.stderr,
            )
        trainer.fit()
    if main:
        stopped = f"stopped at step {trainer.step} of {train.steps}; go on with --resume"
        done = f"step {trainer.step}; enlarge clips with `mgct sample MODEL CLIPS --upsampler {out}`"
        print(f"{out}: {stopped if trainer.step < train.steps else done}")
    leave_processes()


def find_upsampler(folder: Path) -> Path:
    """The saved upsampler that ``folder`` names: itself, or the ``model`` in a run folder.

    Raises:
        UserError: there is none, or its configuration is damaged.
    """
    for candidate in (folder, folder / "model"):
        path = candidate / "config.json"
        try:
            if path.is_file() and json.loads(path.read_text()).get("_class_name") == UpsamplerUNet.__name__:
                return candidate
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is damaged: copy or train the upsampler anew") from error
    raise UserError(f"{folder}: no saved upsampler there; give a run folder made by `mgct train-upsampler`")


def _accelerator(precision: Precision) -> Accelerator:
    """The processes that accelerate or torchrun started, or this one, and their device."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise UserError("upsamplers are trained with DDP, not FSDP; see configs/accelerate/")
    return make_accelerator(precision)


def _load_weights(unet: UpsamplerUNet, source: str) -> None:
    """Weights of a saved upsampler or run folder, or of MM-Diffusion's file, into the network."""
    path = Path(source)
    if path.is_file():
        settings = {key: value for key, value in unet.config.items() if not key.startswith("_")}
        unet.load_state_dict(UpsamplerUNet.from_mm_diffusion(read_state_dict(path), **settings).state_dict())
        return
    other = UpsamplerUNet.from_pretrained(find_upsampler(path))
    different = [
        key
        for key in unet.config
        if not key.startswith("_") and key != "dropout" and as_json(unet.config[key]) != as_json(other.config[key])
    ]
    if different:
        raise UserError(f"{source}: its network differs from this one in {', '.join(sorted(different))}")
    unet.load_state_dict(other.state_dict())
