"""python -m lora_np notebooks: write a copy of the course to work in, or the teachers' key."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

SHOWN = 4  # names of kept files in the report
HELP = "the course's notebooks: write a copy to work in, or the teachers' key"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of the command and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    write = actions.add_parser("write", help="write a copy of the course without outputs; existing files are kept")
    write.add_argument("folder", type=Path, help="the folder for the copy, for example my-course")
    write.add_argument("--without-answers", action="store_true", help="leave the hidden answers out, for a class")
    key = actions.add_parser("key", help="write every hidden answer of the course to one Markdown page")
    key.add_argument("file", type=Path, nargs="?", help="the page (default: notebooks/TEACHERS_KEY.md)")


def run(arguments: argparse.Namespace) -> None:
    """Run one action."""
    {"write": write, "key": key}[arguments.action](arguments)


def write(arguments: argparse.Namespace) -> None:
    """Write the copy and print what was written and what was kept."""
    from ..exercises.course import write_course

    folder = arguments.folder
    copy = write_course(folder, answers=not arguments.without_answers)
    print(f"{len(copy.written)} files written to {folder}")
    if copy.kept:
        names = [path.relative_to(folder).as_posix() for path in copy.kept]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        print(f"{len(names)} changed files kept as they are: {', '.join(names[:SHOWN])}{more}")
        print("for a new copy, write to another folder")
    print(f"to open it: jupyter lab {shlex.quote(str(folder / '00_start_here.ipynb'))}")


def key(arguments: argparse.Namespace) -> None:
    """Write the teachers' key and print its path."""
    from ..exercises.course import write_key

    print(f"written to {write_key(arguments.file)}")
