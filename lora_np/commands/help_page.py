"""The layout of the help pages, and functions that several commands use."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

WIDTH = 100  # columns, also in a wider terminal


class HelpPage(argparse.RawDescriptionHelpFormatter):
    """A formatter that keeps the line breaks of descriptions and makes lines of at most 100 columns."""

    def __init__(self, prog: str, **settings: Any) -> None:
        width = min(WIDTH, shutil.get_terminal_size().columns)
        super().__init__(prog, **{"max_help_position": 28, "width": width, **settings})


def add_help(parser: argparse.ArgumentParser) -> None:
    """Add --help as the last option."""
    parser.add_argument_group("help").add_argument("-h", "--help", action="help", help="show this page and exit")


def add_actions(parser: argparse.ArgumentParser, command: str) -> Any:
    """Let a command have actions, such as "write" or "check"; return the object that `add_action` needs.

    argparse does not list the actions on the help page, because the DESCRIPTION of the command lists them.
    """
    prog = f"python -m lora_np {command}"
    return parser.add_subparsers(dest="action", required=True, metavar="ACTION", prog=prog, help=argparse.SUPPRESS)


def add_action(actions: Any, command: str, name: str, usage: str, description: str) -> Any:
    """Add an action of a command, with a help page for the action; return the group for the options of the action."""
    action = actions.add_parser(
        name,
        usage=f"python -m lora_np {command} {name} {usage}",
        description=f"{description}\n",
        formatter_class=HelpPage,
        add_help=False,
    )
    group = action.add_argument_group("options")
    add_help(action)
    return group


def add_model(group: Any) -> None:
    """Add --model, the model to load."""
    group.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="MODEL",
        help="tiny (in this package), smollm2-135m (after `fetch`), a folder in Hugging Face's format, or a .gguf file "
        "(default %(default)s)",
    )


def check_folder(path: Path) -> None:
    """Raise NotADirectoryError if `path` is a file instead of a folder."""
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file; expected a folder")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the right form: "1 step", "2 steps"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
