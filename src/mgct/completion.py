"""``mgct completion``: a shell script made from the command line's own table and signatures."""

from __future__ import annotations

import argparse
from typing import Any, Literal, get_args, get_origin

from mgct.cli import COMMANDS, parser_of
from mgct.errors import UserError


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print a script that lets a shell complete commands, options and files: `mgct completion bash > FILE`.

    For bash, FILE is ~/.local/share/bash-completion/completions/mgct; for zsh, a file `_mgct` in a folder of $fpath.
    The script is static, so completing costs nothing; make it again after an update.

    Args:
        shell: bash, zsh or tcsh.
    """
    try:
        import shtab
    except ImportError as error:
        raise UserError("completion needs shtab: pip install shtab") from error
    print(shtab.complete(command_tree(), shell=shell))


def command_tree() -> argparse.ArgumentParser:
    """Every command with its options, as plain argparse has them."""
    root = argparse.ArgumentParser("mgct")
    root.add_argument("--version", action="store_true", help="versions, for a bug report")
    levels: dict[tuple[str, ...], Any] = {(): root.add_subparsers()}
    for name, command in COMMANDS.items():
        *groups, last = name.split()
        if groups and tuple(groups) not in levels:
            levels[tuple(groups)] = levels[()].add_parser(groups[0], help=f"{groups[0]} …").add_subparsers()
        parser = levels[tuple(groups)].add_parser(last, help=command.summary)
        for action in parser_of(name)._actions:
            _copy(action, parser)
    return root


def _copy(action: argparse.Action, parser: argparse.ArgumentParser) -> None:
    """The same argument for completion only: its names, its choices, or files unless a number is wanted."""
    import shtab

    names = [name for name in action.option_strings if name.startswith("--")]
    if isinstance(action, argparse._HelpAction) or (action.option_strings and not names):
        return
    summary = str(action.help or "").split("(type:")[0].strip() or None
    copied = parser.add_argument(*(names or [action.dest]), help=summary)
    declared = getattr(action, "_typehint", None)
    choices = action.choices or (get_args(declared) if get_origin(declared) is Literal else ())
    if choices:
        copied.choices = [str(choice) for choice in choices]
    elif not {declared, *get_args(declared)} & {int, float, bool}:
        copied.complete = shtab.FILE  # type: ignore[attr-defined]
