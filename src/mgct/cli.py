"""The command line: a table of typed functions. Each command is imported only when it is called."""

from __future__ import annotations

import inspect
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mgct import __version__
from mgct.errors import MgctWarning, UserError

_PYTHONS_WARNING = warnings.formatwarning


class Command(NamedTuple):
    """A command.

    Attributes:
        module: where its function is.
        function: its name.
        summary: what it does, in one line.
        when_alone: its arguments if none are given.
        leading: the option that may stand first without its name.
        takes_many: whether the words before its options are one list.
        settings: parameter → MODULE:CLASS whose constructor arguments it takes, as a dict.
    """

    module: str
    function: str
    summary: str
    when_alone: tuple[str, ...] = ()
    leading: str = ""
    takes_many: bool = False
    settings: Mapping[str, str] = MappingProxyType({})

    def load(self) -> tuple[Callable[..., Any], dict[str, type]]:
        """The function, and the classes of ``settings``."""
        names = {parameter: path.split(":") for parameter, path in self.settings.items()}
        classes = {parameter: getattr(import_module(module), name) for parameter, (module, name) in names.items()}
        return getattr(import_module(self.module), self.function), classes

    def words(self, arguments: Sequence[str]) -> list[str]:
        """The arguments as options and positions."""
        words = list(arguments) or list(self.when_alone)
        if self.leading and words and not words[0].startswith("-"):
            return [f"--{self.leading}", *words]
        if self.takes_many:
            many = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
            return [",".join(many), *words[len(many) :]] if many else words
        return words


COMMANDS = {
    "inspect": Command(
        "mgct.commands.data", "inspect_media", "report what is in a folder of videos, and what is wrong"
    ),
    "prepare": Command("mgct.commands.data", "prepare_shards", "cut a folder of videos into training shards"),
    "worlds": Command("mgct.commands.data", "write_videos", "write videos of a procedural world"),
    "train": Command(
        "mgct.commands.train",
        "train",
        "train a model through both stages, or go on with a run",
        settings={"model": "mgct.unet:MultimodalUNet"},
    ),
    "train-upsampler": Command(
        "mgct.commands.upsampler",
        "train_upsampler",
        "train a network that enlarges generated videos",
        settings={"model": "mgct.upsampler:UpsamplerUNet"},
    ),
    "sample": Command("mgct.commands.sample", "sample", "generate clips with sound", when_alone=("landscape", "clips")),
    "calibrate": Command(
        "mgct.commands.calibrate", "calibrate_model", "correct a model's predictions along the path of its sampling"
    ),
    "guide": Command(
        "mgct.commands.guide", "guide_model", "let a weaker model guide a better one away from the errors of both"
    ),
    "evaluate": Command("mgct.commands.evaluate", "evaluate_clips", "measure generated clips against real ones"),
    "compare": Command("mgct.commands.evaluate", "compare_cards", "put metric cards side by side", takes_many=True),
    "reproduce": Command(
        "mgct.commands.reproduce", "reproduce", "make a table or figure of the paper from trained models"
    ),
    "weights": Command("mgct.commands.evaluate", "get_weights", "get the weights of a measuring network"),
    "plot clips": Command("mgct.commands.plot", "plot_clips", "draw clips: frames over spectrograms"),
    "plot compare": Command("mgct.commands.plot", "plot_compare", "draw two sets of clips against each other"),
    "plot sheet": Command("mgct.commands.plot", "plot_sheet", "put clips into one video, a grid that plays with sound"),
    "plot loss": Command("mgct.commands.plot", "plot_loss", "draw a run's loss with the stage boundary"),
    "export": Command("mgct.commands.export", "export", "write a network for other programs: ONNX, MM-Diffusion"),
    "app": Command(
        "mgct.commands.app", "app", "serve a web page to generate, compare and watch training with", leading="model"
    ),
    "doctor": Command("mgct.commands.doctor", "doctor", "say what is installed and check that it works"),
    "completion": Command("mgct.completion", "completion", "print a script that lets a shell complete commands"),
}


def usage() -> str:
    """What ``mgct --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: mgct COMMAND [options]      mgct COMMAND --help      mgct --version",
            "",
            "Joint audio-video generation in few steps (MGCT).",
            "",
            *lines,
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 for bad input, 130 for Ctrl-C."""
    # Before torch loads OpenMP. Its threads spin while they wait, which on a busy machine makes training 20 times
    # slower; not spinning at all costs a third on a quiet one; spinning briefly is right on both.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from mgct.commands.doctor import versions

        print("\n".join([f"mgct {__version__}", *(f"{name} {version}" for name, version in versions().items())]))
        return 0
    warnings.formatwarning = _warning_line
    try:
        status = run(arguments)
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"mgct: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        _drop_output()
        return 0
    except (OSError, UnicodeError) as error:  # a folder or file that is not what it should be
        kind = "a file that is not text in UTF-8: " if isinstance(error, UnicodeError) else ""
        print(f"mgct: {kind}{' '.join(str(error).split())}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:
            _drop_output()
        return 2
    except KeyboardInterrupt:
        print("mgct: interrupted", file=sys.stderr)
        return 130


def _warning_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """What this package warns of in one line; others' warnings as Python has them."""
    if issubclass(category, MgctWarning):
        return f"mgct: {message}\n"
    return _PYTHONS_WARNING(message, category, filename, lineno, line)


def keep_freed_memory() -> None:
    """Have glibc keep the memory that is freed instead of giving it back to the system; elsewhere do nothing.

    A large activation would otherwise be made of fresh pages every time, and touching those for the first time takes
    longer than computing most of what goes into them (``docs/performance.md``).
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # numbers of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    mallopt(top_pad, 2**26)


def _drop_output() -> None:
    """Have what is still to be printed go nowhere, or Python would fail on it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: list[str]) -> int:
    """Find the command, parse its arguments, call it."""
    name = next((" ".join(arguments[:n]) for n in (2, 1) if " ".join(arguments[:n]) in COMMANDS), None)
    if name is None:
        known = ", ".join(COMMANDS)
        raise UserError(f"no command {arguments[0]!r}; the commands are: {known}")
    keep_freed_memory()
    command = COMMANDS[name]
    function, settings = command.load()
    call(function, f"mgct {name}", command.words(arguments[len(name.split()) :]), settings)
    return 0


def parser_of(name: str) -> Any:
    """The parser of the command called ``name``."""
    function, settings = COMMANDS[name].load()
    return make_parser(function, f"mgct {name}", settings)


def make_parser(function: Callable[..., Any], prog: str, settings: Mapping[str, type]) -> Any:
    """A parser of the function's own signature.

    Parameters without a default are positional. Those named in ``settings`` take the constructor arguments of a class,
    as a dict. One called ``config_yaml`` gets the whole parsed configuration.
    """
    from jsonargparse import ArgumentParser

    summary = (inspect.getdoc(function) or "").split("\n\n")[0]
    parser = ArgumentParser(prog=prog, description=summary, exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file of options; options after it win")
    skip: set[str | int] = {*settings, "config_yaml"}
    parser.add_function_arguments(
        function,
        as_group=False,
        as_positional=True,
        skip=skip,
        fail_untyped=True,
        sub_configs=True,  # --clip FILE, also where it may be None
    )
    for name, class_type in settings.items():
        parser.add_class_arguments(class_type, name, instantiate=False, fail_untyped=False)
    return parser


def complete_flags(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """The arguments, with ``true`` given to every yes-or-no option that stands without a value."""
    parameters = inspect.signature(function).parameters.values()
    flags = {f"--{parameter.name}" for parameter in parameters if isinstance(parameter.default, bool)}
    following = [*arguments, "--"][1:]
    return [
        f"{word}=true" if word in flags and after.startswith("-") else word
        for word, after in zip(arguments, following, strict=True)
    ]


def own_clip(arguments: Sequence[str]) -> list[str]:
    """The arguments, with ``--clip FILE`` of a training configuration replaced by what that file has under ``clip``."""
    import yaml

    words = list(arguments)
    for place, (word, after) in enumerate(itertools.zip_longest(arguments, arguments[1:], fillvalue="")):
        name, given = word.split("=", 1) if "=" in word else (word, after)
        if name != "--clip" or not Path(given).is_file():
            continue
        try:
            clip = yaml.safe_load(Path(given).read_text())["clip"]
        except (OSError, UnicodeError, yaml.YAMLError, LookupError, TypeError):
            continue  # whatever it is, the parser will say
        if isinstance(clip, dict):
            words[place : place + 1 + ("=" not in word)] = [f"--clip={json.dumps(clip, default=str)}"]
        break
    return words


def call(
    function: Callable[..., Any], prog: str, arguments: list[str], settings: Mapping[str, type] = MappingProxyType({})
) -> None:
    """Parse and call; ``settings`` as in `make_parser`.

    Raises:
        UserError: an option is unknown or its value is not of its type; the message names it.
    """
    from jsonargparse import ArgumentError

    parser = make_parser(function, prog, settings)
    if "clip" in inspect.signature(function).parameters:
        arguments = own_clip(arguments)
    try:
        parsed = parser.parse_args(complete_flags(function, arguments))
        options = parser.instantiate(parsed).as_dict()
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{reason} (see {prog} --help)") from error
    options.pop("config", None)
    if "config_yaml" in inspect.signature(function).parameters:
        options["config_yaml"] = parser.dump(parsed, skip_unset=False)
    for name in settings:
        options[name] = parsed[name].as_dict()
    function(**options)


if __name__ == "__main__":
    sys.exit(main())
