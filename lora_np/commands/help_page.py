"""The layout of the help pages, and what several commands share."""

from __future__ import annotations

import argparse
import shutil
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


def add_model(group: Any) -> None:
    """Add --model, the model to load."""
    group.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="MODEL",
        help="tiny (in this package), smollm2-135m (after `fetch`), a folder in Hugging Face's format, or a .gguf file "
        "(default %(default)s)",
    )


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun in the right form: "1 step", "2 steps"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
