"""python -m lora_np notebooks: write a working copy of the course, or the teachers' key."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from .help_page import add_action, add_actions, check_folder, counted

HELP = "write a working copy of the course, or the teachers' key"
USAGE = "write|key ..."
DESCRIPTION = """Write a working copy of the course, or the teachers' key.

This command needs a clone of the repository.

Each of these commands has its own help page:
  write   write a copy of the course's notebooks and exercises to a folder
  key     write all answers of the course's questions to one page

examples:
  python -m lora_np notebooks write my-course
  python -m lora_np notebooks key"""

WRITE = """Write the notebooks and exercises of the course to a folder, without outputs.

Existing files are not changed.

examples:
  python -m lora_np notebooks write my-course
  python -m lora_np notebooks write class --without-answers     # for students"""

KEY = """Write the questions of all notebooks, with answers, to one Markdown page.

example:
  python -m lora_np notebooks key answers.md"""

SHOWN = 4  # the most names of kept files in the report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions of the command and their options."""
    actions = add_actions(parser, "notebooks")
    write = add_action(actions, "notebooks", "write", "FOLDER [--without-answers]", WRITE)
    write.add_argument("folder", type=Path, metavar="FOLDER", help="the folder to create or to complete")
    write.add_argument("--without-answers", action="store_true", help="leave out the answers to questions and tasks")
    key = add_action(actions, "notebooks", "key", "[FILE]", KEY)
    key.add_argument("file", type=Path, nargs="?", metavar="FILE", help="default: notebooks/TEACHERS_KEY.md")


def run(arguments: argparse.Namespace) -> None:
    """Run one action."""
    {"write": write, "key": key}[arguments.action](arguments)


def write(arguments: argparse.Namespace) -> None:
    """Write a copy of the course; print how many files were written, and which existing files were not changed."""
    from ..exercises.course import write_course

    folder = arguments.folder
    check_folder(folder)
    copy = write_course(folder, answers=not arguments.without_answers)
    print(f"{counted(len(copy.written), 'file')} written to {folder}")
    if copy.kept:
        names = [path.relative_to(folder).as_posix() for path in copy.kept]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        print(f"{counted(len(names), 'changed file')} kept: {', '.join(names[:SHOWN])}{more}")
        print("for a new copy, write to another folder")
    print(f"to open it: jupyter lab {shlex.quote(str(folder / '00_start_here.ipynb'))}")


def key(arguments: argparse.Namespace) -> None:
    """Write the teachers' key and print its path."""
    from ..exercises.course import write_key

    print(f"written to {write_key(arguments.file)}")
