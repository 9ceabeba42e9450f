"""How fast the network, its training step and its sampling are, beside what the machine can do.

    python benchmarks/speed.py                                            # forward, train, sample12 of micro and small
    python benchmarks/speed.py forward train --config paper --batch 1
    python benchmarks/speed.py --device cuda --precision bf16 --compile --config paper --batch 1 2 4 8 16 32
    python benchmarks/speed.py forward train --config paper --other DIR/mm_diffusion/multimodal_unet.py:MultimodalUNet
    python benchmarks/speed.py forward train --other-src ../before/src     # another version of mgct
    python benchmarks/speed.py profile profile-train --config paper        # where the time goes, by kind of layer
    python benchmarks/speed.py startup                                     # imports, --help, the first network call

Tasks: ``forward`` (no gradient), ``train`` (multimodal loss, backward, AdamW or Muon, running average), ``sample12`` and
``sample20`` (dpm-solver++ with that many network calls, through `AVPipeline`).

Every case runs in a process of its own: warm-up first (its time is reported apart; compilation is in it), then
``--repeats`` runs, each between two synchronisations. Reported: the median and the spread (quartiles) of wall time,
CPU seconds, clips/s, TFLOP/s = counted operations over the median time, their share of the rate of a large matrix
product measured just before in the same process, the bytes that the operations read and write (each operand once)
over the time as a share of the rate of a large copy, and the process's peak memory (device memory on a GPU).

With ``--other`` or ``--other-src`` both sides run alternately, A B A B …, and the ratio is the median of the ratios
within pairs: a disturbance of the machine hits both. ``--apart`` has each run in a process of its own, one after the
other, for cases that do not fit into memory together. ``--other`` names a class or function with MM-Diffusion's
constructor and call; it is given our weights, and the difference of the outputs is reported.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEP_TASKS = ("forward", "train", "sample12", "sample20")
PROFILE_TASKS = ("profile", "profile-train")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


# ---------------------------------------------------------------------------------------------- counting


def count_operations(function: Callable[[], Any]) -> tuple[float, float]:
    """Floating-point operations of matrix products, convolutions and attention (a multiply-add is two), and bytes.

    Bytes: what each operation reads and writes, each tensor once; views are free. Fused kernels move fewer.
    """
    import torch
    from counting import cpu_attention, onednn_products
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves
    from torch.utils.flop_counter import FlopCounterMode

    class ByteCounter(TorchDispatchMode):
        bytes = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if not func.is_view and "empty" not in func.__name__:
                tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
                self.bytes += sum(x.numel() * x.element_size() for x in tensors)
            return out

    extra = {**cpu_attention(), **onednn_products()}
    with FlopCounterMode(display=False, custom_mapping=extra) as flops, ByteCounter() as moved:
        function()
    return float(flops.get_total_flops()), float(moved.bytes)


def measured_rates(device: str, dtype: Any) -> tuple[float, float]:
    """Operations per second of a large matrix product, and bytes per second of a large copy (read plus written).

    The product is PyTorch's, or on a CPU in float32 `mgct.products` where that is faster.
    """
    import torch

    size = 8192 if device == "cuda" else 1536
    a = torch.randn(size, size, device=device).to(dtype)
    source = torch.randn(2**28 if device == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    product = best_time(lambda: a @ a, device, 8)
    if device == "cpu" and dtype == torch.float32 and find_spec("mgct.products"):  # another version may not have it
        from mgct import products

        product = min(product, best_time(lambda: products.product(a, a), device, 8))
    copy = best_time(lambda: target.copy_(source), device, 8)
    return 2 * size**3 / product, 2 * source.numel() * 4 / copy


def synchronise(device: str) -> None:
    """Wait for everything launched so far."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def best_time(function: Callable[[], Any], device: str, repeats: int) -> float:
    """Shortest of ``repeats`` runs after one for warming up, in seconds; on the CPU in CPU seconds per thread.

    So what else the machine is doing is left out.
    """
    import torch

    clock = time.perf_counter if device == "cuda" else lambda: time.process_time() / torch.get_num_threads()
    times = []
    for _ in range(repeats + 1):
        synchronise(device)
        start = clock()
        function()
        synchronise(device)
        times.append(clock() - start)
    return min(times[1:])


# ---------------------------------------------------------------------------------------------- one case


def load_callable(address: str) -> Callable[..., Any]:
    """``PATH:NAME`` → the object NAME of the module in the file PATH, imported as part of its package if it has one."""
    path, _, name = address.rpartition(":")
    file = Path(path).resolve()
    parts, folder = [file.stem], file.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    sys.path.insert(0, str(folder))
    return getattr(importlib.import_module(".".join(parts)), name)


class Case:
    """One network on one device: everything that is timed, as functions without arguments."""

    def __init__(self, spec: dict[str, Any]) -> None:
        import torch

        from mgct import ClipSpec, MultimodalUNet

        self.spec = spec
        self.device, self.batch = spec["device"], spec["batch"]
        self.dtype = getattr(torch, DTYPES[spec["precision"]])
        self.clip = ClipSpec(**spec["clip"])
        torch.manual_seed(0)
        unet: Any = MultimodalUNet(**spec["model"])
        with torch.no_grad():
            for parameter in unet.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.02)
        self.half = spec["task"] != "train" and spec["precision"] != "fp32"
        self.module = self._other(unet) if spec["other"] else unet
        self.module.to(self.device)
        if self.half and not spec["other"]:
            self.module.to(self.dtype)
        self.module.train(spec["task"] in ("train", "profile-train"))
        if spec["compile"]:
            self.module.compile(mode=spec["compile"], dynamic=False)
        self.graphed: Callable[[Any], Any] = lambda function: function
        if spec.get("graph") and not spec["other"]:
            from mgct.graphs import Graphed

            self.graphed = Graphed
        draw = torch.Generator().manual_seed(1)
        self.video = torch.randn(self.batch, *self.clip.video_shape, generator=draw).to(self.device)
        self.audio = torch.randn(self.batch, *self.clip.audio_shape, generator=draw).to(self.device)
        self.timestep = torch.linspace(1, 998, self.batch).long().to(self.device)
        shift = torch.zeros(unet.num_shifted_blocks, dtype=torch.long, device=self.device)
        self.shift = {} if spec["other"] else {"window_shift": shift}
        self.call = self.graphed(self._call)

    def _other(self, unet: Any) -> Any:
        """The other network, built by MM-Diffusion's constructor, with our weights."""
        from mgct.convert import to_mm_diffusion

        model = dict(self.spec["model"])
        if model.pop("norm_num_groups", 32) != 32:
            raise SystemExit("the other network has 32 groups in every norm; choose widths that are multiples of 32")
        model.pop("middle_cross_attention", None)
        half = self.half and self.spec["precision"] == "fp16"
        other = load_callable(self.spec["other"])(
            video_size=list(self.clip.video_shape),
            audio_size=list(self.clip.audio_shape),
            video_out_channels=3,
            audio_out_channels=1,
            use_scale_shift_norm=True,
            resblock_updown=True,
            use_fp16=half,
            **{"audio_attention_resolutions": [-1], **model},
        )
        other.load_state_dict(to_mm_diffusion(unet))
        if half:
            other.convert_to_fp16()
        return other

    def _call(self, video: Any, audio: Any, timestep: Any) -> tuple[Any, Any]:
        """One forward call."""
        converted = self.half and (not self.spec["other"] or self.spec["precision"] == "fp16")
        video, audio = (x.to(self.dtype) if converted else x for x in (video, audio))
        with self.autocast(self.spec["precision"] != "fp32" and not converted):
            out = self.module(video, audio, timestep, **self.shift)
        return (out.video, out.audio) if hasattr(out, "video") else (out[0], out[1])

    def autocast(self, enabled: bool) -> Any:
        """Mixed precision, if enabled."""
        import torch

        return torch.autocast(self.device, self.dtype, enabled=enabled)

    def forward(self) -> Any:
        """The network without gradient."""
        import torch

        with torch.no_grad():
            return self.call(self.video, self.audio, self.timestep)

    def training(self) -> Callable[[], Any]:
        """A training step: multimodal loss, backward, optimiser, and the running average of the weights."""
        import copy

        import torch

        if not self.spec["other"]:
            self.module.recompute = bool(self.spec.get("recompute"))
            if self.spec.get("checkpointing"):
                self.module.enable_gradient_checkpointing()
        parameters = list(self.module.parameters())
        average = [copy.deepcopy(parameter.detach()) for parameter in parameters]
        optimizer: Any = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)
        if self.spec.get("muon") and not self.spec["other"]:
            from mgct.muon import Muon

            optimizer = Muon([{"params": parameters, "weight_decay": 0.0}], lr=1e-4)

        def passes(noisy_video: Any, noisy_audio: Any, timestep: Any) -> list[Any]:
            optimizer.zero_grad(set_to_none=True)
            video, audio = self._call(noisy_video, noisy_audio, timestep)
            loss = (video.float() - self.video).square().mean() + (audio.float() - self.audio).square().mean()
            # the reference recomputes activations in its backward pass, without the autocast of its forward pass
            with self.autocast(bool(self.spec["other"]) and self.spec["precision"] != "fp32"):
                loss.backward()
            return [parameter.grad for parameter in parameters]

        passes = self.graphed(passes)

        def step() -> None:
            gradients = passes(self.video, self.audio, self.timestep)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                torch._foreach_lerp_(average, parameters, 1e-4)

        return step

    def sampling(self, steps: int) -> Callable[[], Any]:
        """All network calls of the clips, batch by batch through the pipeline."""
        from mgct import AVPipeline
        from mgct.sampling_options import SamplingOptions

        pipe: Any = AVPipeline(self.module, self.clip)
        options = SamplingOptions(steps=steps, batch_size=self.batch, progress=False)

        def run() -> None:
            for _ in pipe.stream(range(self.spec["clips"]), options):
                pass

        return run

    def launched(self) -> Callable[[], Any]:
        """What is timed, without a graph."""
        self.graphed, self.call = lambda function: function, self._call
        return self.function()

    def function(self) -> Callable[[], Any]:
        """What the spec's task times."""
        task = self.spec["task"]
        if task == "forward":
            return self.forward
        return self.training() if task == "train" else self.sampling(int(task.removeprefix("sample")))


def serve(spec: dict[str, Any]) -> None:
    """The process of one case: one JSON line per request on stdin, ``run`` or ``outputs PATH`` or ``end``."""
    import torch

    if spec["device"] == "cpu":
        from importlib import import_module

        getattr(import_module("mgct.cli"), "keep_freed_memory", lambda: None)()
    torch.set_num_threads(spec["threads"])
    rates = measured_rates(spec["device"], getattr(torch, DTYPES[spec["precision"]]))
    case = Case(spec)
    if spec["task"] in PROFILE_TASKS:
        print(json.dumps(profile(case, rates)), flush=True)
        return
    function = case.function()
    if spec["device"] == "cuda":
        torch.cuda.reset_peak_memory_stats()
    synchronise(spec["device"])
    start = time.perf_counter()
    for _ in range(spec["warmup"]):
        function()
    synchronise(spec["device"])
    ready = {"warmup_s": time.perf_counter() - start, "matrix_flop_per_s": rates[0], "memory_byte_per_s": rates[1]}
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        request, _, argument = line.strip().partition(" ")
        if request == "run":
            synchronise(spec["device"])
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            synchronise(spec["device"])
            answer: Any = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
        elif request == "outputs":
            torch.save([part.float().cpu() for part in case.forward()], argument)
            answer = {}
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            if spec["device"] == "cuda":
                peak = torch.cuda.max_memory_allocated()
            flops = moved = 0.0
            if not spec["compile"] and not spec["other"]:  # last: a counted run keeps more in memory
                flops, moved = count_operations(case.launched() if spec.get("graph") else function)
            answer = {"peak_bytes": peak, "flops": flops, "bytes": moved}
        print(json.dumps(answer), flush=True)


class Worker:
    """A case in its own process."""

    def __init__(self, spec: dict[str, Any], src: str | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(spec["threads"])}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        environment.setdefault("GOMP_SPINCOUNT", "5000")
        if src:
            environment["PYTHONPATH"] = src
        command = [sys.executable, __file__, "--serve", json.dumps(spec)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process: Any = subprocess.Popen(command, env=environment, **pipes)
        self.ready = self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise MemoryError(f"the process of the case ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, request: str) -> dict[str, Any]:
        """Send a request and read the answer."""
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> dict[str, Any]:
        """Peak memory and counts; the process is over afterwards."""
        last = self.ask("end")
        self.process.stdin.close()
        self.process.wait()
        return last


Rivals = list[tuple[str, dict[str, Any], str | None]]
"""Name, spec and source folder of what runs alternately with a case."""


def measure_apart(spec: dict[str, Any], repeats: int, rivals: Rivals) -> dict[str, Any]:
    """As `measure`, but each run in a process of its own, so that only one side is in memory at a time."""
    sides = {"ours": (spec, None), **{name: (other, src) for name, other, src in rivals}}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    facts: dict[str, dict[str, float]] = {}
    for _ in range(repeats):
        for name, (side, src) in sides.items():
            worker = Worker(side, src)
            runs[name].append(worker.ask("run"))
            facts[name] = {**worker.ready, **worker.end()}
    return compared(spec, repeats, runs, facts)


def compared(
    spec: dict[str, Any], repeats: int, runs: dict[str, list[dict[str, float]]], facts: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Figures of each side, and how many times slower than ours the others are."""
    result: dict[str, Any] = {
        key: spec[key] for key in ("task", "config", "batch", "clips", "device", "precision", "compile", "graph")
    }
    result.update(threads=spec["threads"], repeats=repeats)
    for name in runs:
        result[name] = summary(facts[name], runs[name], spec)
    for name in list(runs)[1:]:
        result[name]["times_slower"] = {
            key: statistics.median(b[key] / a[key] for a, b in zip(runs["ours"], runs[name], strict=True))
            for key in ("wall_s", "cpu_s")
        }
    return result


def measure(spec: dict[str, Any], repeats: int, rivals: Rivals) -> dict[str, Any]:
    """Time one case, alternately with its rivals if there are any."""
    sides = {"ours": (spec, None), **{name: (other, src) for name, other, src in rivals}}
    workers: dict[str, Worker] = {}
    try:
        for name, (side, src) in sides.items():
            workers[name] = Worker(side, src)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(repeats):
            for name, worker in workers.items():
                runs[name].append(worker.ask("run"))
        differences = output_differences(workers) if rivals else {}
        facts = {name: {**worker.ready, **worker.end()} for name, worker in workers.items()}
        result = compared(spec, repeats, runs, facts)
        for name, difference in differences.items():
            result[name]["largest_output_difference"] = difference
        return result
    finally:
        for worker in workers.values():
            worker.process.kill()
            worker.process.wait()


def output_differences(workers: dict[str, Worker]) -> dict[str, float]:
    """Largest difference of the forward outputs, after the timed runs, relative to the outputs' largest value."""
    import tempfile

    import torch

    with tempfile.TemporaryDirectory() as folder:
        outputs = {}
        for name, worker in workers.items():
            worker.ask(f"outputs {folder}/{name}")
            outputs[name] = torch.load(f"{folder}/{name}", weights_only=True)
    ours = outputs.pop("ours")
    return {
        name: max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(ours, other, strict=True))
        for name, other in outputs.items()
    }


def summary(facts: dict[str, float], runs: list[dict[str, float]], spec: dict[str, Any]) -> dict[str, Any]:
    """Figures of one side. The shares are of what the time on the GPU, or on the CPU's threads, would have allowed."""
    wall = sorted(run["wall_s"] for run in runs)
    low, median, high = (statistics.quantiles(wall, n=4) if len(wall) > 1 else wall * 3)[:3]
    cpu = statistics.median(run["cpu_s"] for run in runs)
    figures = {
        "wall_s": median,
        "wall_s_quartiles": [low, high],
        "cpu_s": cpu,
        "clips_per_s": spec["clips"] / median,
        **facts,
    }
    if facts["flops"]:
        busy = median if spec["device"] == "cuda" else cpu / spec["threads"]
        figures["tflop_per_s"] = facts["flops"] / median / 1e12
        figures["share_of_matrix_rate"] = facts["flops"] / busy / facts["matrix_flop_per_s"]
        figures["share_of_memory_rate"] = facts["bytes"] / busy / facts["memory_byte_per_s"]
    return figures


# ---------------------------------------------------------------------------------------------- where time goes


def kinds(unet: Any) -> Iterator[tuple[Any, str]]:
    """Every layer that is profiled as a whole, and its kind."""
    from torch import nn

    from mgct import blocks, convolutions
    from mgct.norms import GroupNorm

    whole = {
        "spatial": "video 3×3 convolutions",
        "temporal": "video temporal convolutions",
        "spatial_attention": "spatial attention",
        "temporal_attention": "temporal attention",
        "audio_attention": "audio attention",
        "cross": "cross-attention",
    }
    inside_attention: set[int] = set()
    for name, module in unet.named_modules():
        leaf = name.rpartition(".")[2]
        if id(module) in inside_attention:
            continue
        if isinstance(module, blocks.SelfAttention | blocks.CrossAttention):
            inside_attention.update(map(id, module.modules()))
            yield module, whole[leaf]
        elif leaf in ("spatial", "temporal"):
            yield module, whole[leaf]
        elif isinstance(module, convolutions.AudioConv):
            yield module, "audio convolutions"
        elif isinstance(module, GroupNorm):
            yield module, "norms (with FiLM and SiLU)"
        elif isinstance(module, convolutions.VideoHead | convolutions.AudioHead):
            yield module, "heads"
        elif isinstance(module, nn.Linear):
            yield module, "pointwise layers"


def profile(case: Case, rates: tuple[float, float]) -> dict[str, Any]:
    """Time of each kind of layer, each layer run alone on the inputs it has in a forward call, beside its floor.

    Floor: the larger of operations over the matrix rate and bytes (each operand once) over the memory rate.
    """
    import torch

    training = case.spec["task"] == "profile-train"
    calls: list[tuple[Any, str, tuple[Any, ...]]] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, kind=kind: calls.append((module, kind, args)))
        for module, kind in kinds(case.module)
    ]
    case.forward()
    for handle in handles:
        handle.remove()
    step = case.training() if training else case.forward
    whole = best_time(step, case.device, case.spec["repeats"])
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for module, kind, args in calls:
        run = (lambda m=module, a=args: backward(m, a)) if training else (lambda m=module, a=args: m(*a))
        with torch.set_grad_enabled(training):
            row, flops_bytes = rows[kind], count_operations(run)
            row["seconds"] += best_time(run, case.device, case.spec["repeats"])
        row["calls"] += 1
        row["flops"] += flops_bytes[0]
        row["bytes"] += flops_bytes[1]
        row["floor_s"] += max(flops_bytes[0] / rates[0], operand_bytes(module, args, training) / rates[1])
    rest = whole - sum(row["seconds"] for row in rows.values())
    return {
        "task": case.spec["task"],
        "config": case.spec["config"],
        "batch": case.batch,
        "threads": case.spec["threads"],
        "precision": case.spec["precision"],
        "whole_s": whole,
        "rest_s": rest,
        "matrix_flop_per_s": rates[0],
        "memory_byte_per_s": rates[1],
        "kinds": rows,
    }


def backward(module: Any, args: tuple[Any, ...]) -> None:
    """Forward and backward of one layer, to its inputs and parameters."""
    import torch

    leaves = [x.detach().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
    out = module(*leaves)
    outs = [x for x in (out if isinstance(out, tuple) else (out,)) if x is not None and x.requires_grad]
    torch.autograd.backward(outs, [torch.ones_like(x) for x in outs])
    module.zero_grad(set_to_none=True)


def operand_bytes(module: Any, args: tuple[Any, ...], training: bool) -> float:
    """The least a layer must move: its inputs, outputs and weights once; three times that with the backward pass."""
    import torch

    with torch.no_grad():
        out = module(*args)
    outs = out if isinstance(out, tuple) else (out,)
    tensors = [x for x in (*args, *outs, *module.parameters()) if torch.is_tensor(x)]
    return sum(x.numel() * x.element_size() for x in tensors) * (3.0 if training else 1.0)


# ---------------------------------------------------------------------------------------------- start-up


FIRST_CALL = """
import sys, time
from mgct import cli
from mgct.errors import UserError
import importlib.abc
class Stop(Exception): pass
class Hook(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        return None
import builtins
real = builtins.__import__
def patched(name, *args, **kwargs):
    module = real(name, *args, **kwargs)
    unet = sys.modules.get("mgct.unet")
    if unet is not None and hasattr(unet, "MultimodalUNet"):
        builtins.__import__ = real
        def forward(self, *args, **kwargs): raise Stop
        unet.MultimodalUNet.forward = forward
    return module
builtins.__import__ = patched
try:
    cli.main(["sample", sys.argv[1], sys.argv[2], "--num", "1"])
except Stop:
    pass
else:
    raise SystemExit("the network was never called")
"""


def startup(repeats: int, config: str) -> dict[str, dict[str, float]]:
    """Seconds of whole processes, imports and all: median wall and CPU time."""
    import tempfile

    import torch

    from mgct import AVPipeline, ClipSpec, MultimodalUNet

    settings = read_config(config, [])
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        pipe: Any = AVPipeline(MultimodalUNet(**settings["model"]), ClipSpec(**settings["clip"]))
        pipe.save_pretrained(f"{folder}/model")
        python = [sys.executable, "-c"]
        cases = {
            "mgct --help": [sys.executable, "-m", "mgct.cli", "--help"],
            "import mgct": [*python, "import mgct"],
            "from mgct import MultimodalUNet": [*python, "from mgct import MultimodalUNet"],
            "from mgct import AVPipeline": [*python, "from mgct import AVPipeline"],
            f"mgct sample ({config}) to the first network call": [
                *python,
                FIRST_CALL,
                f"{folder}/model",
                f"{folder}/out",
            ],
        }
        results = {}
        for name, command in cases.items():
            walls, cpus = [], []
            for _ in range(repeats):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                start = time.perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                walls.append(time.perf_counter() - start)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            results[name] = {"wall_s": statistics.median(walls), "cpu_s": statistics.median(cpus)}
    return results


# ---------------------------------------------------------------------------------------------- the command


def read_config(name: str, changes: list[str]) -> dict[str, Any]:
    """Clip and model of ``configs/NAME.yaml`` or of a YAML file, with ``model.key=value`` changes (values in YAML)."""
    import yaml

    path = ROOT / "configs" / f"{name}.yaml"
    settings = yaml.safe_load((path if path.is_file() else Path(name)).read_text())
    for change in changes:
        key, _, value = change.partition("=")
        section, _, field = key.partition(".")
        settings[section][field] = yaml.safe_load(value)
    return {"clip": settings["clip"], "model": settings["model"]}


def describe_machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    facts = {
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
    }
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts["cpu"] = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


HEAD = "| task | config | batch | precision | ms (quartiles) | CPU s | clips/s | TFLOP/s | of matrix rate | of memory rate | peak GiB |"


def clips_words(result: dict[str, Any]) -> str:
    """The batch; behind the number of clips, if that is another."""
    clips, batch = result["clips"], result["batch"]
    return str(batch) if clips == batch else f"{clips} by {batch}"


def row_of(result: dict[str, Any], name: str) -> str:
    """One line of the table."""
    side = result[name]
    low, high = (1e3 * value for value in side["wall_s_quartiles"])
    shares = [
        f"{side['tflop_per_s']:.3f}", f"{side['share_of_matrix_rate']:.0%}", f"{side['share_of_memory_rate']:.0%}"
    ] if "tflop_per_s" in side else ["", "", ""]  # fmt: skip
    task = result["task"] + (f" ({name})" if name != "ours" else "") + (" compiled" if result["compile"] else "")
    task += " replayed" if result["graph"] and name == "ours" else ""
    cells = [
        task, result["config"], clips_words(result), result["precision"],
        f"{1e3 * side['wall_s']:.0f} ({low:.0f}-{high:.0f})", f"{side['cpu_s']:.2f}", f"{side['clips_per_s']:.2f}",
        *shares, f"{side['peak_bytes'] / 2**30:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def print_profile(result: dict[str, Any]) -> None:
    """The profile as a table."""
    whole = result["whole_s"]
    print(
        f"\n{result['task']} of {result['config']}, batch {result['batch']}, {result['threads']} threads: {whole:.3f} s"
    )
    print("| kind | calls | ms | share | GFLOP | floor ms | time / floor |\n|---|---|---|---|---|---|---|")
    for kind, row in sorted(result["kinds"].items(), key=lambda item: -item[1]["seconds"]):
        seconds, floor = row["seconds"], row["floor_s"]
        print(
            f"| {kind} | {row['calls']:.0f} | {1e3 * seconds:.1f} | {seconds / whole:.0%} | {row['flops'] / 1e9:.1f} "
            f"| {1e3 * floor:.1f} | {seconds / floor:.2f} |"
        )
    print(
        f"| rest (skips, sums, resampling, optimiser) | | {1e3 * result['rest_s']:.1f} | {result['rest_s'] / whole:.0%} | | | |"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help=", ".join((*STEP_TASKS, *PROFILE_TASKS, "startup")))
    parser.add_argument("--config", nargs="+", default=["micro", "small"], help="names in configs/, or YAML files")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. model.model_channels=32")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--clips", nargs="+", type=int, help="of one run of sampling, made in batches; else one batch")
    parser.add_argument("--precision", nargs="+", choices=list(DTYPES), default=["fp32"])
    parser.add_argument("--compile", nargs="?", const="default", help="also compiled; a mode of torch.compile")
    parser.add_argument("--graph", action="store_true", help="on a GPU: our passes are CUDA graphs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--other", metavar="PATH:NAME", help="a network with MM-Diffusion's signature, run alternately")
    parser.add_argument("--other-src", metavar="DIR", help="the src folder of another version of mgct, run alternately")
    parser.add_argument("--apart", action="store_true", help="each run in a process of its own: less memory, slower")
    parser.add_argument("--checkpointing", action="store_true", help="our training steps recompute all activations")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, default=False, help="or the cheap ones")
    parser.add_argument("--muon", action="store_true", help="our training steps by mgct.muon instead of AdamW")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run what was asked for and print it."""
    options = parse(arguments)
    if options.serve:
        serve(json.loads(options.serve))
        return
    tasks = options.tasks or ["forward", "train", "sample12"]
    if unknown := set(tasks) - {*STEP_TASKS, *PROFILE_TASKS, "startup"}:
        raise SystemExit(f"unknown task {', '.join(sorted(unknown))}")
    results: list[dict[str, Any]] = []
    report = {"machine": describe_machine(options.device), "results": results}
    print(json.dumps(report["machine"]))
    if "startup" in tasks:
        report["startup"] = startup(options.repeats, options.config[0])
        for name, figures in report["startup"].items():
            print(f"{name}: {figures['wall_s']:.2f} s ({figures['cpu_s']:.2f} CPU s)")
    timed = [task for task in tasks if task in STEP_TASKS]
    if timed:
        print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
    for task in [*timed, *(task for task in tasks if task in PROFILE_TASKS)]:
        for config in options.config:
            settings = read_config(config, options.set)
            if options.other:
                windows = list(settings["model"].get("cross_attention_windows", (1, 4, 8)))
                settings["model"].update(cross_attention_shift=False, middle_cross_attention=windows == [1, 4, 8])
            for precision in options.precision:
                for mode in dict.fromkeys([None, options.compile]):
                    sizes = itertools.product(
                        options.batch, options.clips if options.clips and task.startswith("sample") else [None]
                    )
                    for batch, clips in sizes:
                        spec = {
                            **settings, "task": task, "config": config, "batch": batch, "clips": clips or batch, "precision": precision,
                            "compile": mode, "graph": options.graph, "device": options.device, "threads": options.threads, "other": None,
                            "warmup": options.warmup, "repeats": options.repeats, "checkpointing": options.checkpointing,
                            "recompute": options.recompute,
                            "muon": options.muon,
                        }  # fmt: skip
                        try:
                            results.append(run_case(spec, options))
                        except MemoryError as error:
                            print(f"| {task} | {config} | {batch} | {precision} | {error} |")
                            break
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1))


def run_case(spec: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One case, measured and printed."""
    if spec["task"] in PROFILE_TASKS:
        result = Worker(spec).ready
        print_profile(result)
        return result
    rivals: Rivals = []
    if options.other and not spec["task"].startswith("sample"):
        rivals.append(("other", {**spec, "other": options.other, "compile": None}, None))
    if options.other_src:
        rivals.append(("other version", spec, options.other_src))
    result = (measure_apart if options.apart else measure)(spec, options.repeats, rivals)
    print(row_of(result, "ours"), flush=True)
    for name, _, _ in rivals:
        ratio = result[name]["times_slower"]
        print(row_of(result, name))
        difference = result[name].get("largest_output_difference")
        words = f"; largest difference of the outputs {difference:.1e}" if difference is not None else ""
        print(
            f"  {name}: {ratio['wall_s']:.2f} × the time, {ratio['cpu_s']:.2f} × the CPU seconds, memory "
            f"{result[name]['peak_bytes'] / result['ours']['peak_bytes']:.2f} ×{words}",
            flush=True,
        )
    return result


if __name__ == "__main__":
    main()
