"""`AVPipeline`: a trained network and the facts of its clips, made to generate."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from mgct import coarse_start as _coarse_start  # noqa: F401  (a saved pipeline names these modules)
from mgct import samplers, two_levels
from mgct import unet as _unet  # noqa: F401
from mgct.batch_sampling import Batch, integrate
from mgct.calibration import PathGains
from mgct.errors import MgctWarning, UserError, explain_damage, explain_memory
from mgct.given import Given, Method, as_clips
from mgct.grids import Point
from mgct.network_calls import AUTOGUIDANCE, autoguided, network_of
from mgct.noise import NoiseSchedule
from mgct.products import warn_if_slow
from mgct.sampling_options import SamplingOptions
from mgct.saved_models import find_pipeline
from mgct.types import AVSample, ClipSpec, concatenate, pack, unpack
from mgct.windows import Network, windowed

FEWER_SECONDS = "ask for fewer seconds"


class AVPipeline(DiffusionPipeline):
    """Generates video with its sound.

    Clip k of seed s is a function of the model, the sampler, (s, k) and the kind of device: it does not depend on how
    many clips are made, in which order, in what batches, or by how many processes. The noise at the start is drawn on
    the CPU; the shifts of the attention windows are drawn from (s, timestep), the same for all clips.

    Args:
        unet: the network, a `MultimodalUNet`.
        clip: what it was trained on: a `ClipSpec` or its fields.
        recommended: the samplers it was made for, name → (fewest, most) network calls. Another choice warns.
        num_timesteps: T of the noise schedule it was trained with.
        beta_start: β_0 of that schedule.
        beta_end: β_{T-1}.
        start_timestep: the noisiest level that this model is best sampled from; None: T-1. `SamplingOptions` overrules.
        coarse_start: the law of the clips' coarse colours (`mgct.coarse_start.CoarseStart`), which the noise at the
            start is given; None: it is left as it is.
        calibration: gains of x̂0 for some ways of sampling (`mgct.calibration.Calibration`), used by these where nothing
            is given, or what is given is put in by replacement.
        noise_levels_apart: the shares of clips, ``given`` and ``independent`` (`mgct.stages.Timesteps`), with two noise
            levels that the network was trained on; None: not known.
        guide: a weaker network of the same data, which the network is led away from; None: it goes alone.
        autoguidance: how far, unless asked otherwise (`SamplingOptions`); None: not.
    """

    _optional_components: ClassVar[list[str]] = ["coarse_start", "calibration", "guide"]

    if TYPE_CHECKING:  # what diffusers provides through untyped bases
        unet: Any
        coarse_start: Any
        calibration: Any
        guide: Any
        config: Any
        register_modules: Callable[..., None]
        register_to_config: Callable[..., None]
        _execution_device: torch.device

    def __init__(
        self,
        unet: Any,
        clip: ClipSpec | dict[str, Any] | None = None,
        recommended: dict[str, Sequence[int]] | None = None,
        num_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        start_timestep: int | None = None,
        coarse_start: Any = None,
        calibration: Any = None,
        noise_levels_apart: Mapping[str, float] | None = None,
        guide: Any = None,
        autoguidance: float | None = None,
    ) -> None:
        super().__init__()
        check_start(start_timestep, num_timesteps)
        check_guide(unet, guide)
        if not isinstance(clip, ClipSpec):
            clip = ClipSpec(**(clip or {}))
        self.register_modules(unet=unet, coarse_start=coarse_start, calibration=calibration, guide=guide)
        self.register_to_config(
            clip=asdict(clip),
            recommended={name: list(steps) for name, steps in (recommended or {}).items()},
            num_timesteps=num_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            start_timestep=start_timestep,
            noise_levels_apart=shares_apart(noise_levels_apart),
            autoguidance=autoguidance,
        )
        self.schedule = NoiseSchedule(num_timesteps, beta_start, beta_end)
        predicts_velocity = unet.config.get("prediction_type") == "v_prediction"
        if predicts_velocity and not torch.equal(self.schedule.betas, NoiseSchedule().betas):
            raise UserError(
                "a network of prediction_type v_prediction is of the default noise schedule, and of no other"
            )
        for network in self.networks:
            network.eval()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """Load a saved pipeline: its folder, a run folder, or the name of one on the Hub (USER/NAME).

        The names of `mgct.saved_models.bundled_models`, such as ``landscape``, are those of models that come with the
        package; a saved pipeline in a folder of that name goes before them. A name that ends in ``/model``, as a run's
        does, or whose first part is a folder here is never asked of the Hub.

        Raises:
            UserError: there is no such model, or its files are damaged.
        """
        path, name = Path(pretrained_model_name_or_path), str(pretrained_model_name_or_path)
        could_be_on_hub = isinstance(pretrained_model_name_or_path, str) and name.count("/") == 1
        if not could_be_on_hub or path.exists() or path.parent.is_dir() or path.name == "model":
            name = str(find_pipeline(name))
        with explain_damage(Path(name), "pipeline"):
            return super().from_pretrained(name, **{"use_safetensors": True, **kwargs})

    @property
    def clip(self) -> ClipSpec:
        """Physical facts of one generated clip."""
        return ClipSpec(**self.config.clip)

    @property
    def networks(self) -> list[Any]:
        """The network, and its guide if it has one."""
        return [network for network in (self.unet, self.guide) if network is not None]

    def take_guide(self, weaker: AVPipeline, autoguidance: float | None = AUTOGUIDANCE) -> None:
        """Let the network of a weaker model of the same clips guide this one's.

        Raises:
            UserError: it makes other clips, has another noise schedule, or lacks a time input that this one has.
        """
        for name in ("clip", "num_timesteps", "beta_start", "beta_end"):
            if (own := self.config[name]) != (other := weaker.config[name]):
                raise UserError(f"the guide has another {name} ({other}) than the model ({own})")
        check_guide(self.unet, weaker.unet)
        self.register_modules(guide=weaker.unet)
        self.register_to_config(autoguidance=autoguidance)

    def cast(self, dtype: torch.dtype) -> None:
        """Let the networks compute in a precision, and no other part: a law or a gain has none to spare.

        Warns of a precision that the CPU is slow in, if they are there.
        """
        if self.unet.device.type == "cpu":
            warn_if_slow(dtype)
        for network in self.networks:
            torch.nn.Module.to(network, dtype)  # diffusers' own warns of layers that there are none of

    # ------------------------------------------------------------------------------------------ public calls

    def __call__(
        self,
        num_clips: int = 1,
        steps: int | None = None,
        sampler: str | Any = samplers.DEFAULT,
        seed: int = 0,
        *,
        indices: Sequence[int] | None = None,
        seconds: float | None = None,
        **options: Any,
    ) -> AVSample:
        """Generate clips.

        Args:
            num_clips: how many; they are clips 0 … num_clips-1 of the seed.
            steps: network calls per clip; None: the sampler's default.
            sampler: a name out of `mgct.samplers.SAMPLERS`, or a scheduler object of diffusers.
            seed: any integer.
            indices: generate these clips of the seed instead of the first ``num_clips``.
            seconds: a duration longer than the model's own: made in overlapping windows (see `extend`).
            options: the rest of `SamplingOptions`.

        Returns:
            Video (num_clips, F, 3, H, W) and audio (num_clips, 1, L), float32 on the CPU in [-1, 1].

        Raises:
            UserError: an unknown sampler, steps out of its range, a duration or batch size that cannot be, or too
                little memory; the message says what would work.
        """
        chosen = SamplingOptions(steps=steps, sampler=sampler, seed=seed, **options)
        return _gather(self.stream(_clip_indices(num_clips, indices), chosen, seconds=seconds))

    def audio_to_video(
        self,
        audio: Tensor,
        num_clips: int | None = None,
        *,
        method: Method | None = None,
        guidance_scale: float | None = None,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> AVSample:
        """Generate video for given sound.

        ``conditional`` is for a network trained on modalities at noise levels of their own (`MultimodalUNet` with
        ``audio_time``): it is told that the sound is clean. With a guidance_scale s other than 1 there are two calls a
        step, and ε̂_∅ + s (ε̂ - ε̂_∅) (classifier-free guidance). The others are for any network. ``replacement`` puts the
        sound, diffused to the present noise level, into every network call. ``guided`` also moves the video so that
        the network's idea of the sound agrees with the given one: about three times the cost, and much closer to the
        truth where that is known (``docs/sampling.md``). ``mm-diffusion`` is the gradient-guided method of
        MM-Diffusion, for the sampler ``ddpm`` alone.

        The strength: with G the gradient of the mean squared misfit of the sound, for the inner product mean(u v)
        over the generated elements, ε̂ of the video moves by guidance_scale · σ α² · G (misfit of x̂0; ``guided``),
        or the video by -guidance_scale · α · G at each step (misfit of the noisy sound; ``mm-diffusion``). Neither
        depends on batch size, precision or clip size. MM-Diffusion's ``classifier_scale`` λ stands for guidance_scale
        = λ K / (B N) in ``mm-diffusion``, B its batch size, N the elements of one generated clip, K = 2^20 with its
        fp16 flag and else 1: the published λ = 3 is 16.0 here (B = 1, N = 196,608) and 61.4 in `video_to_audio` (B =
        2, N = 25,600).

        Args:
            audio: (1, L) or (N, 1, L) in [-1, 1] at the model's sample rate, N = 1 or num_clips. L is the clip's own
                number of samples, or that of a longer whole number of frames (then made in windows, see `extend`).
            num_clips: how many; None: N.
            method: ``conditional``, ``replacement``, ``guided`` or ``mm-diffusion``; None: the first if the network
                can, else the second.
            guidance_scale: strength of all but ``replacement``; None: 1 for ``conditional``, else 8.
            indices: generate these clips of the seed instead of the first ``num_clips``.
            options: see `SamplingOptions`.

        Returns:
            The generated video with the given audio, as `__call__` does.

        Raises:
            UserError: audio of a wrong shape or length, and as in `__call__`.
        """
        audio = as_clips(audio, 3, "audio", "(1, L) or (N, 1, L)")
        empty, chosen = torch.zeros(len(audio), 0, *self.clip.video_shape[1:]), SamplingOptions(**options)
        given = Given(
            AVSample(video=empty, audio=audio), method or two_levels.best_method(self, chosen), guidance_scale
        )
        indices = _clip_indices(len(audio) if num_clips is None else num_clips, indices)
        return _gather(self.stream(indices, chosen, given=given))

    def video_to_audio(
        self,
        video: Tensor,
        num_clips: int | None = None,
        *,
        method: Method | None = None,
        guidance_scale: float | None = None,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> AVSample:
        """Generate sound for given video, the counterpart of `audio_to_video`.

        Args:
            video: (F, 3, H, W) or (N, F, 3, H, W) in [-1, 1] at the model's frame rate and size, F at least the
                model's own.
            num_clips: how many; None: N.
            method: ``conditional``, ``replacement``, ``guided`` or ``mm-diffusion``; None: the first if the network
                can, else the second.
            guidance_scale: strength of all but ``replacement``; None: 1 for ``conditional``, else 8.
            indices: generate these clips of the seed instead of the first ``num_clips``.
            options: see `SamplingOptions`.

        Returns:
            The given video with the generated audio, as `__call__` does.

        Raises:
            UserError: video of a wrong shape, and as in `__call__`.
        """
        video = as_clips(video, 5, "video", "(F, 3, H, W) or (N, F, 3, H, W)")
        start, chosen = AVSample(video=video, audio=torch.zeros(len(video), 1, 0)), SamplingOptions(**options)
        given = Given(start, method or two_levels.best_method(self, chosen), guidance_scale)
        indices = _clip_indices(len(video) if num_clips is None else num_clips, indices)
        return _gather(self.stream(indices, chosen, given=given))

    def extend(
        self,
        clip: AVSample,
        seconds: float,
        num_clips: int | None = None,
        *,
        method: Method = "replacement",
        guidance_scale: float | None = None,
        **options: Any,
    ) -> AVSample:
        """Continue clips to a longer duration.

        The whole long clip is denoised at once: at each noise level the network sees it through windows of its own
        length that overlap by half, and their predictions are cross-faded where they overlap (`windowed`), in both
        modalities; so there is no join at which one finished window meets another. The given start is imposed at
        every level, except its last quarter of a window (`fade_frames`): that is generated anew and cross-faded with
        the given one, for imposing alone leaves a click where it ends (``docs/sampling.md`` measures it).

        Args:
            clip: the start: video (N, F, 3, H, W) and audio (N, 1, L) of the same duration, at least two frames, in
                [-1, 1], N = 1 or num_clips.
            seconds: total duration wanted, the given start included.
            num_clips: how many continuations; None: N.
            method: how the start steers the rest: ``replacement`` or ``guided``, as in `audio_to_video`.
            guidance_scale: strength of ``guided``; None: 8.
            options: see `SamplingOptions`.

        Returns:
            Clips of round(seconds · fps) frames, as `__call__` does.

        Raises:
            UserError: a start longer than ``seconds``, out of range, or whose modalities differ in duration, and as in
                `__call__`.
        """
        clip = AVSample(
            video=as_clips(clip.video, 5, "the clip's video", "(N, F, 3, H, W)").clamp(-1, 1),
            audio=as_clips(clip.audio, 3, "the clip's audio", "(N, 1, L)").clamp(-1, 1),
        )
        frames, start = self.frames_of(seconds), clip.video.shape[1]
        if clip.audio.shape[-1] != self.clip.samples_at(start):
            expected = self.clip.samples_at(start)
            raise UserError(f"the clip has {start} frames, hence {expected} audio samples, got {clip.audio.shape[-1]}")
        if not 2 <= start <= frames:
            raise UserError(
                f"the clip has {start} frames; it can be continued from 2 up to {frames} (seconds={seconds:g})"
            )
        kept = start - self.fade_frames(start)
        kept_samples = self.clip.samples_at(kept)
        imposed = AVSample(video=clip.video[:, :kept], audio=clip.audio[:, :, :kept_samples])
        indices = _clip_indices(len(clip.video) if num_clips is None else num_clips, None)
        given = Given(imposed, method, guidance_scale)
        long = _gather(self.stream(indices, SamplingOptions(**options), seconds=seconds, given=given))
        for made, old, first, axis in (
            (long.video, clip.video, kept, 1),
            (long.audio, clip.audio, kept_samples, 2),
        ):
            length = old.shape[axis] - first
            share = torch.arange(1, length + 1) / (length + 1)
            zone = made.narrow(axis, first, length)
            zone.lerp_(old.narrow(axis, first, length).to(zone), 1 - share.reshape(-1, *[1] * (made.dim() - axis - 1)))
        return long

    def fade_frames(self, start: int) -> int:
        """Frames at the end of a given start of ``start`` frames over which `extend` passes into what is generated."""
        return min(max(self.clip.frames // 4, 1), start - 1)

    def stream(
        self,
        indices: Sequence[int],
        options: SamplingOptions,
        *,
        seconds: float | None = None,
        given: Given | None = None,
    ) -> Iterator[tuple[list[int], AVSample]]:
        """Generate batch by batch, so that memory does not grow with the number of clips.

        Args:
            indices: which clips of the seed.
            options: how.
            seconds: duration; None: that of what is given, but at least the model's own.
            given: the part of the clips that is given; its row n belongs to the n-th of ``indices``.

        Yields:
            (indices, clips) of each batch as it is done, as `__call__` returns them.
        """
        if seconds is not None:
            frames = self.frames_of(seconds)
        else:
            frames = self.clip.frames if given is None else self._frames_of_given(given)
        shapes = self._shapes(frames)
        self._check_room(shapes, frames)
        if given is not None:
            given.check(shapes, len(indices))
            if given.method == "mm-diffusion" and options.sampler != "ddpm":
                raise UserError("method 'mm-diffusion' needs sampler 'ddpm'; 'guided' works with every sampler")
        two_levels.check(self, options, given, shapes)
        network = self.network(options)
        if frames != self.clip.frames:
            network = windowed(network, self.clip, frames)
        self.schedule_of(options)
        if isinstance(options.sampler, str):
            self.check_sampler(options)
            samplers.warn_if_not_recommended(self.config.recommended, options.sampler, options.calls)
            self._warn_if_not_calibrated(options, given)
        return self._batches(network, shapes, indices, options, given)

    # ------------------------------------------------------------------------------------------ the common path

    def _check_room(self, shapes: AVSample, frames: int) -> None:
        """Refuse clips of which not one fits into memory, which is asked for and given back at once."""
        try:
            torch.empty(math.prod(shapes.video) + math.prod(shapes.audio))
        except (RuntimeError, TypeError, OverflowError) as error:
            raise UserError(
                f"one clip of {frames / self.clip.fps:g} s does not fit into memory: {FEWER_SECONDS}"
            ) from error

    def check_sampler(self, options: SamplingOptions) -> None:
        """Refuse a sampler that needs a second time input which the network has not."""
        sampler, _ = samplers.get_sampler(options.sampler, options.steps)
        if sampler.jumps and not self.unet.config["target_time"]:
            others = ", ".join(name for name, other in samplers.SAMPLERS.items() if not other.jumps)
            raise UserError(
                f"sampler {options.sampler!r} jumps, and this model has no second time input (it was not trained with "
                f"model.target_time); choose one of: {others}"
            )

    def _batches(
        self,
        network: Network,
        shapes: AVSample,
        indices: Sequence[int],
        options: SamplingOptions,
        given: Given | None,
    ) -> Iterator[tuple[list[int], AVSample]]:
        """The generator behind `stream`."""
        settings = getattr(self, "_progress_bar_config", {})
        quiet = not options.progress or settings.get("disable", False)
        total = len(indices) * options.calls * two_levels.calls_a_step(options, given)
        with tqdm(total=total, unit="call", **{**settings, "disable": quiet}) as bar:
            started = time.monotonic()
            for first in range(0, len(indices), options.batch_size):
                numbers = list(indices[first : first + options.batch_size])
                done = first + len(numbers)

                def predict(x: Tensor, point: Point) -> Tensor:
                    bar.update(len(x))
                    return pack(network(unpack(x, shapes), point))

                at_one = (FEWER_SECONDS,) if shapes.video[0] > self.clip.frames else ()
                with explain_memory("batch_size", options.batch_size, *at_one):
                    batch = Batch(numbers, range(first, done), shapes, options, self._execution_device)
                    x = integrate(self, predict, batch, given)
                    self._check_finite(x, numbers)
                    clips = unpack(x, shapes).map(lambda part: part.clamp(-1, 1).cpu())
                bar.set_postfix_str(f"{done}/{len(indices)} clips, {done / (time.monotonic() - started):.2f} clips/s")
                yield numbers, clips

    def _check_finite(self, x: Tensor, numbers: list[int]) -> None:
        """Refuse packed clips (B, D) that are not finite numbers; stored, they would be black and silent."""
        finite = torch.isfinite(x).all(1).tolist()
        if broken := [str(clip) for clip, good in zip(numbers, finite, strict=True) if not good]:
            raise UserError(
                f"clips {', '.join(broken)} are not finite numbers: the model's weights are damaged, {self.unet.dtype} "
                "is too narrow for it, or a guidance_scale, autoguidance or coupling is too large"
            )

    def schedule_of(self, options: SamplingOptions) -> NoiseSchedule:
        """The levels that ``options`` sample through."""
        start = self.start_timestep(options)
        if start >= self.schedule.num_timesteps:
            raise UserError(f"start_timestep must be below the schedule's {self.schedule.num_timesteps}, got {start}")
        if options.start_timestep is not None and options.calls > start:
            raise UserError(f"{options.calls} steps do not fit below start_timestep={start}; ask for at most that")
        return self.schedule if start == self.schedule.num_timesteps - 1 else self.schedule.until(start)

    def start_timestep(self, options: SamplingOptions) -> int:
        """The noisiest level that ``options`` sample from.

        The model's own is for the samplers named here, and for no more calls than it has levels.
        """
        last: int = self.schedule.num_timesteps - 1
        if options.start_timestep is not None:
            return options.start_timestep
        own = self.config.start_timestep
        fits = own is not None and isinstance(options.sampler, str) and options.calls <= own
        return own if fits else last

    def _warn_if_not_calibrated(self, options: SamplingOptions, given: Given | None) -> None:
        """Say that a model which is calibrated for other ways of sampling is not for this one."""
        if self.calibration is not None and not options.asks_ends and self.gains(options, given) is None:
            warnings.warn(
                f"this model is calibrated for {self.calibration.said()}; as asked, it goes without. "
                "`mgct calibrate` adds to it",
                MgctWarning,
                stacklevel=4,
            )

    def gains(self, options: SamplingOptions, given: Given | None = None) -> PathGains | None:
        """What x̂0 is corrected by at each call, if the model was calibrated for this way of sampling.

        Corrected values are clipped, so there are none for ``clip_x0=False``. Guidance by what is given follows the
        gradient of what the network itself predicts, and the other ways but ``replacement``, and a coupling, predict
        with another power than was measured.
        """
        guided = options.coupled or (given is not None and given.method != "replacement")
        if self.calibration is None or guided or not isinstance(options.sampler, str) or options.clip_x0 is False:
            return None
        return self.calibration.find(
            options.sampler, options.calls, self.start_timestep(options), self.autoguidance(options)
        )

    def network(self, options: SamplingOptions) -> Network:
        """The network as ``options`` have it called and guided.

        Raises:
            UserError: they ask for autoguidance that cannot be.
        """
        network, scale = network_of(self.unet, options, self._execution_device), self.autoguidance(options)
        if scale == 1:
            return network
        if self.guide is None:
            raise UserError("autoguidance needs a model with a guide: `mgct guide` gives it one")
        if options.asks_ends:
            raise UserError(
                f"autoguidance is of denoised clips, and sampler {options.sampler!r} asks for ends of paths"
            )
        return autoguided(network, network_of(self.guide, options, self._execution_device), scale)

    def autoguidance(self, options: SamplingOptions) -> float:
        """How far ``options`` lead the network away from its guide's errors; 1: not.

        The model's own is for the samplers that ask for denoised clips, not for ends of paths.
        """
        if options.autoguidance is not None:
            return options.autoguidance
        own = self.config.autoguidance
        return 1.0 if self.guide is None or own is None or options.asks_ends else own

    def _shapes(self, frames: int) -> AVSample:
        """Shapes of one clip of ``frames`` frames."""
        clip = self.clip
        return AVSample(video=(frames, *clip.video_shape[1:]), audio=(1, clip.samples_at(frames)))

    def frames_of(self, seconds: float) -> int:
        """Frames of a clip of ``seconds``, at least the model's own."""
        frames = seconds * self.clip.fps
        if not self.clip.frames - 0.5 <= frames < math.inf:
            raise UserError(
                f"seconds={seconds:g} is less than the model's own {self.clip.seconds:g}; ask for that or more"
            )
        return round(frames)

    def _frames_of_given(self, given: Given) -> int:
        """Frames of a clip as long as what is given, at least the model's own."""
        clip, samples = self.clip, given.start.audio.shape[-1]
        frames = max(clip.frames, given.start.video.shape[1], round(samples / clip.sample_rate_hz * clip.fps))
        if samples and (expected := clip.samples_at(frames)) != samples:
            raise UserError(
                f"audio of {samples} samples at {clip.sample_rate_hz} Hz is not a whole number of frames, at least "
                f"{clip.frames}; the nearest that fits has {expected} samples ({frames} frames)"
            )
        return frames


# ---------------------------------------------------------------------------------------------- checks, helpers


def check_start(start_timestep: Any, num_timesteps: int) -> None:
    """Refuse what is no noise level that a model can be sampled from; None is the schedule's last."""
    whole = isinstance(start_timestep, int) and not isinstance(start_timestep, bool)
    if start_timestep is not None and not (whole and 1 <= start_timestep < num_timesteps):
        raise UserError(
            f"a model's start_timestep must be a whole number from 1 to {num_timesteps - 1}, got {start_timestep!r}"
        )


def check_guide(unet: Any, guide: Any) -> None:
    """Refuse a guide that cannot be called as the network is."""
    if guide is not None and unet.config.get("audio_time") and not guide.config.get("audio_time"):
        raise UserError("the guide of a network with audio_time needs it too (--model.audio_time true)")


def shares_apart(levels: Mapping[str, float] | None) -> dict[str, float] | None:
    """``noise_levels_apart`` of a model, as it is kept."""
    return None if levels is None else {name: float(levels[name]) for name in ("given", "independent")}


def _clip_indices(num_clips: int, indices: Sequence[int] | None) -> list[int]:
    if indices is not None:
        return list(indices)
    if num_clips < 1:
        raise UserError(f"num_clips must be at least 1, got {num_clips}")
    return list(range(num_clips))


def _gather(chunks: Iterator[tuple[list[int], AVSample]]) -> AVSample:
    return concatenate([clips for _, clips in chunks])
