"""``mgct train``."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from mgct import __version__
from mgct.checkpoint import as_json, began_from, checkpoint_to_resume, open_run_folder, run_folder
from mgct.clip_random import derive_seed
from mgct.coarse_start import CoarseStart
from mgct.convert import load_mm_diffusion
from mgct.data.batches import ClipBatch
from mgct.data.shards import make_loader
from mgct.errors import MgctWarning, UserError, explain_memory
from mgct.files import replace_folder
from mgct.layout import leave_processes, make_accelerator
from mgct.losses import Guide, NoiseWeights, UnitWeight, VelocityWeight
from mgct.model_card import HowSampled, ModelFacts, model_card
from mgct.monitors import Monitors, MonitorSettings
from mgct.noise import NoiseSchedule
from mgct.pipeline import AVPipeline, check_guide, check_start, shares_apart
from mgct.samplers import SAMPLERS, recommended_samplers
from mgct.saved_models import find_pipeline
from mgct.stages import MGCT, Balance, Consistency, Guidance, LearnedUncertainty, OwnElements, Timesteps, Transfer
from mgct.train_settings import TrainSettings
from mgct.trainer import Trainer, count_parameters
from mgct.types import ClipSpec
from mgct.unet import MultimodalUNet


def train(
    model: dict[str, Any],
    data: str = "",
    out: Path = Path("runs/train"),
    clip: ClipSpec = ClipSpec(),
    train: TrainSettings = TrainSettings(),
    transfer: Transfer = Transfer(),
    consistency: Consistency = Consistency(),
    balance: Balance = OwnElements(),
    noise_weight: NoiseWeights = NoiseWeights(),
    timesteps: Timesteps = Timesteps(),
    guidance: Guidance = Guidance(),
    monitor: MonitorSettings = MonitorSettings(),
    init: str = "",
    resume: bool = False,
    find_batch_size: bool = False,
    config_yaml: str = "",
) -> None:
    """Train a model: stage 1 on the multimodal loss, then, once its loss is below δ, stage 2 with the consistency loss.

    Ctrl-C or SIGTERM saves and leaves; --resume goes on. `mgct sample OUT CLIPS` generates from the result, and
    `mgct sample OUT/best CLIPS` from the model with the best running metric.

    Args:
        model: the network's settings.
        data: a folder made by `mgct prepare`, a glob or list of shards or URLs, or world:landscape or world:dance.
        out: the run folder, made if need be.
        clip: physical facts of the clips.
        train: how the run is trained.
        transfer: when stage 2 starts.
        consistency: what stage 2 adds.
        balance: how the losses of picture and sound are weighed.
        noise_weight: how much each noise level counts in the multimodal loss.
        timesteps: how the noise levels of the multimodal loss are drawn.
        guidance: by a weaker model, which the network learns to do without.
        monitor: what is watched while it trains.
        init: begin from these weights: a saved model or run folder, or an MM-Diffusion .pt or .safetensors file. A run
            that is resumed has its own.
        resume: go on from the newest checkpoint in the run folder.
        find_batch_size: only print the largest train.micro_batch_size that fits into memory.
        config_yaml: the whole configuration as YAML, kept in the run folder.
    """
    if not data:
        raise UserError("train needs --data: a folder made by `mgct prepare`, or world:landscape or world:dance")
    accelerator = make_accelerator(train.precision)
    if accelerator.is_main_process:
        open_run_folder(out, "mgct train")
    config = as_json({"model": model, "clip": vars(clip), "data": data})
    checkpoint = checkpoint_to_resume(out, resume, config, train.seed, train.steps)
    init = config["init"] = began_from(out, checkpoint, init)
    settings = {**yaml.safe_load(config_yaml or "{}"), "init": init}
    before = _saved_facts(out if checkpoint and (out / "model" / "model_index.json").is_file() else init)
    start_timestep = before.get("start_timestep")
    torch.manual_seed(derive_seed(train.seed, "weights"))
    unet = MultimodalUNet(**model)
    if init and checkpoint is None:
        _load_weights(unet, init)
    half = accelerator.mixed_precision == "bf16"
    _check_choices(unet.config, train, transfer, consistency, balance, noise_weight, timesteps, monitor, half)
    apart = _noise_levels_apart(before, timesteps) if unet.config["audio_time"] else None
    schedule = NoiseSchedule(device=accelerator.device)
    guide = _guide(guidance, unet, clip, accelerator.device)
    objective = MGCT(schedule, transfer, consistency, balance, noise_weight, timesteps, guide)

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
            device=accelerator.device,
        )

    def export(network: nn.Module, coarse_start: CoarseStart | None, objective: MGCT, step: int, name: str) -> None:
        recommended = recommended_samplers(objective.stage, consistency.jump.needs_target_time)
        pipe = AVPipeline(
            network,
            clip,
            recommended,
            start_timestep=start_timestep,
            coarse_start=coarse_start,
            noise_levels_apart=apart,
        )
        facts = ModelFacts(
            name=out.name,
            clip=clip,
            parameters=count_parameters(network),
            recommended=recommended,
            data=data,
            began_from=init,
            step=step,
            stage=objective.stage,
            settings=settings,
            version=__version__,
            sampled=HowSampled.by(pipe),
        )

        def write(draft: Path) -> None:
            pipe.save_pretrained(draft)  # type: ignore[attr-defined]
            (draft / "training.json").write_text(json.dumps({"step": facts.step, "stage": facts.stage}) + "\n")
            (draft / "README.md").write_text(model_card(facts))

        replace_folder(out / name, write)

    loader(checkpoint.state["step"] if checkpoint else 0)  # refuses unusable data before anything is written
    monitors = Monitors(monitor, clip, data, out, accelerator, start_timestep)
    with (
        run_folder(out, settings, "mgct train")
        if accelerator.is_main_process and not find_batch_size
        else nullcontext()
    ):
        accelerator.wait_for_everyone()
        trainer = Trainer(unet, objective, loader, train, out, config, export, accelerator, monitor, monitors)
        if checkpoint is not None:
            with checkpoint.explained():
                trainer.load(checkpoint)
        say = print if accelerator.is_main_process else _silent
        if find_batch_size:
            largest = trainer.largest_micro_batch()
            say(f"the largest micro-batch that fits: --train.micro_batch_size {largest}")
            return
        say(
            f"{count_parameters(unet):,} parameters on {accelerator.device} × {accelerator.num_processes} "
            f"({trainer.layout.name}), from step {trainer.step} to {train.steps}, {train.batch_size} clips a step",
            file=sys.stderr,
        )
        clips = train.micro_batch_size or train.batch_size // accelerator.num_processes
        with explain_memory("train.micro_batch_size", clips):
            trainer.fit()
    if trainer.step < train.steps:
        say(f"{out}: stopped at step {trainer.step} of {train.steps}; go on with --resume")
    else:
        say(f"{out}: stage {objective.stage}, step {trainer.step}; generate with `mgct sample {out} CLIPS`")
    leave_processes()


def _check_choices(
    network: Mapping[str, Any],
    train: TrainSettings,
    transfer: Transfer,
    consistency: Consistency,
    balance: Balance,
    noise_weight: NoiseWeights,
    timesteps: Timesteps,
    monitor: MonitorSettings,
    half: bool,
) -> None:
    """Refuse settings that do not go together, and warn of those that seldom do; ``half``: in bfloat16."""
    if consistency.jump.needs_target_time and not network["target_time"]:
        raise UserError("consistency.jump: a FlowMap is told where it goes; it needs --model.target_time true")
    if timesteps.apart and not network["audio_time"]:
        raise UserError(
            "timesteps.independent, given: a network is told two noise levels then; it needs --model.audio_time true"
        )
    if network["audio_time"] and not timesteps.apart:
        warnings.warn(
            "model.audio_time without timesteps.given or independent: the network does not learn, or forgets, what to "
            "make of two noise levels, by which it generates one modality for the other; give --timesteps.given 0.4 "
            "--timesteps.independent 0.2",
            MgctWarning,
            stacklevel=3,
        )
    watched = monitor.samples_every or monitor.metric_every
    if watched and SAMPLERS[monitor.sampler].jumps and not network["target_time"]:
        raise UserError(f"monitor.sampler {monitor.sampler} jumps; it needs --model.target_time true")
    if train.max_loss_rise is not None and isinstance(balance, LearnedUncertainty):
        raise UserError("train.max_loss_rise: a learned balance makes the loss negative; leave one of the two out")
    second = transfer.delta is not None or transfer.max_steps is not None
    if second and isinstance(consistency.weight, UnitWeight) and half:
        warnings.warn(
            "stage 2 with λ = 1 in bfloat16: half of its consistency loss can be rounding; --train.precision fp32, or "
            "--consistency.weight NoiseUnits",
            MgctWarning,
            stacklevel=3,
        )
    weighs_velocity = VelocityWeight in {type(weight) for weight in vars(noise_weight).values()}
    if weighs_velocity and network["prediction_type"] == "epsilon":
        warnings.warn(
            "noise_weight VelocityWeight with model.prediction_type epsilon: 1/α² reaches 24,000 at the last levels, "
            "and a few clips decide each step; use MinSNR",
            MgctWarning,
            stacklevel=3,
        )


def _silent(*_: Any, **__: Any) -> None:
    """Print nothing: what all processes but the first do."""


def _load_weights(unet: MultimodalUNet, source: str) -> None:
    """Weights of a saved model or run folder, or of an MM-Diffusion file, into the network."""
    path = Path(source)
    if path.is_file():
        load_mm_diffusion(unet, path)
        return
    other = AVPipeline.from_pretrained(find_pipeline(source)).unet
    settings = [key for key in unet.config if not key.startswith("_")]
    different = [key for key in settings if as_json(unet.config[key]) != as_json(other.config[key])]
    windows = {"cross_attention_windows", "cross_attention_shift"}

    def named(keys: set[str]) -> str:
        return ", ".join(f"{key} {other.config[key]}, here {unet.config[key]}" for key in sorted(keys))

    if unlike := set(different) - windows - {"dropout", "target_time", "audio_time"}:
        raise UserError(
            f"{source}: its network has other settings ({named(unlike)}): take the configuration that it was made with"
        )
    if moved := windows & set(different):
        warnings.warn(
            f"{source}: its modalities saw each other through other windows ({named(moved)}); training goes on with "
            "these, and needs some time for it",
            MgctWarning,
            stacklevel=2,
        )
    unet.load_state_dict(unet.with_time_inputs(other.state_dict()))


def _guide(guidance: Guidance, unet: MultimodalUNet, clip: ClipSpec, device: torch.device) -> Guide | None:
    """The weaker network that the training is led away from, on the device."""
    if not guidance.guide or guidance.strengths.video == guidance.strengths.audio == 1:
        return None
    pipe: Any = AVPipeline.from_pretrained(find_pipeline(guidance.guide))
    if pipe.clip != clip:
        raise UserError(f"guidance.guide {guidance.guide} makes other clips ({pipe.clip}) than these ({clip})")
    check_guide(unet, pipe.unet)
    return Guide(pipe.unet.to(device).requires_grad_(False), guidance.strengths)


def _saved_facts(source: str | Path) -> dict[str, Any]:
    """What the saved model of ``source`` says of itself, ``audio_time`` of its network included; nothing of a file.

    Raises:
        UserError: it is damaged; of a run it is not needed.
    """
    if not str(source) or Path(source).is_file():
        return {}
    folder = find_pipeline(source)
    try:
        facts: dict[str, Any] = json.loads((folder / "model_index.json").read_text())
        network = json.loads((folder / "unet" / "config.json").read_text())
        check_start(facts.get("start_timestep"), NoiseSchedule().num_timesteps)
        seen = {"noise_levels_apart": shares_apart(facts.get("noise_levels_apart"))}
        return {**facts, **seen, "audio_time": network.get("audio_time", False)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        advice = f"delete {folder} and resume without it" if folder.parent == source else "export or copy it anew"
        raise UserError(f"{folder} is damaged ({error}); {advice}") from error


def _noise_levels_apart(before: Mapping[str, Any], timesteps: Timesteps) -> dict[str, float] | None:
    """The largest shares of clips with two noise levels that the weights have seen; None: not known of those before."""
    own = {"given": timesteps.given, "independent": timesteps.independent}
    if not before.get("audio_time"):
        return own
    seen = before["noise_levels_apart"]
    return None if seen is None else {name: max(share, seen[name]) for name, share in own.items()}
