"""python -m lora_np exercises: write the exercises, check answers, grade a class."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from .help_page import add_action, add_actions, check_folder, counted

HELP = "write the exercises, check your answers, grade a class"
USAGE = "write|check|grade ..."
DESCRIPTION = """Write the exercises, check your answers, grade a class.

Each of these commands has its own help page:
  write   write the exercises to a folder
  check   check the answers in files, with a hint for each mistake
  grade   grade a folder of submissions

examples:
  python -m lora_np exercises write my-exercises --py
  python -m lora_np exercises check my-exercises/01_count_lora.py
  python -m lora_np exercises grade submissions --csv grades.csv"""

WRITE = """Write the exercises to a folder. Existing files are not changed.

examples:
  python -m lora_np exercises write my-exercises          # notebooks
  python -m lora_np exercises write my-exercises --py     # .py files"""

CHECK = """Check the answers in files, and print a hint for each mistake.

The exit status is 0 if all answers are right, otherwise 1.

example:
  python -m lora_np exercises check my-exercises/01_count_lora.py"""

GRADE = """Grade a folder of submissions.

The table has one row per student and exercise.

Each answer runs in its own process. On Linux this process cannot read the
solutions, other submissions or your files, use the network or start processes.
If your system lacks one of these protections, the command prints a warning.
If you do not know the students, run the command in a container.

If the command is stopped, run it again to continue. The option -P keeps
Python from importing files of the current folder.

example:
  python -P -m lora_np exercises grade submissions --csv grades.csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = add_actions(parser, "exercises")
    write = add_action(actions, "exercises", "write", "FOLDER [--py | --solutions]", WRITE)
    write.add_argument("folder", type=Path, metavar="FOLDER", help="folder for the exercises")
    write.add_argument(
        "--py", action="store_true", help="write .py files for an editor and pytest, instead of notebooks"
    )
    write.add_argument(
        "--solutions", action="store_true", help="write notebooks for the teacher, with solutions and outputs"
    )
    check = add_action(actions, "exercises", "check", "FILE [FILE ...]", CHECK)
    check.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".py files or notebooks with answers")
    grade = add_action(actions, "exercises", "grade", "SUBMISSIONS --csv FILE [--workers N]", GRADE)
    grade.add_argument(
        "submissions", type=Path, metavar="SUBMISSIONS", help="folder with one subfolder or one file per student"
    )
    grade.add_argument("--csv", type=Path, required=True, metavar="FILE", help="CSV file for the table")
    grade.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of answers graded in parallel (default: one per core, at most 8)",
    )


def run(arguments: argparse.Namespace) -> int | None:
    return {"write": write, "check": check, "grade": grade}[arguments.action](arguments)


def write(arguments: argparse.Namespace) -> None:
    from ..exercises.editions import student_edition, teacher_edition

    if arguments.solutions and arguments.py:
        raise ValueError("--solutions writes notebooks only; leave out --py")
    check_folder(arguments.folder)
    if arguments.solutions:
        written = teacher_edition(arguments.folder)
    else:
        written = student_edition(arguments.folder, arguments.py)
    print(f"{counted(len(written), 'file')} written to {arguments.folder}; existing files were not changed")
    if written and not arguments.solutions:
        name = written[0].name
        how = f"edit it, then run `pytest {name}` in this folder (`pytest` checks all exercises)"
        print(f"begin with {written[0]}: {how if arguments.py else 'open it with `jupyter lab`'}")


def check(arguments: argparse.Namespace) -> int:
    """Return 0 if all answers are right, otherwise 1."""
    from ..exercises import exercises, find_answer
    from ..exercises.answers import defines

    verdicts = []
    for path in arguments.files:
        if not path.is_file():
            raise FileNotFoundError(f"no file {str(path)!r}; expected a .py file or a notebook with answers")
        asked = [exercise for exercise in exercises() if defines(path, exercise.function)]
        if not asked:
            known = ", ".join(exercise.function for exercise in exercises())
            raise ValueError(f"{path} defines no function of an exercise; expected one of {known}")
        for exercise in asked:
            verdicts.append(find_answer([path.resolve()], exercise))
            print(verdicts[-1])
    return int(not all(verdict.passed for verdict in verdicts))


def grade(arguments: argparse.Namespace) -> None:
    from ..exercises.contain import missing_protection
    from ..exercises.grade import grade_class, summary

    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}; expected at least 1")
    if arguments.csv.is_dir():
        raise ValueError(f"--csv {arguments.csv} is a folder; expected the name of a file")
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)  # an error comes now, not after the grading
    if words := missing_protection():
        print(words, file=sys.stderr)
    began = time.perf_counter()
    graded = grade_class(arguments.submissions, workers=arguments.workers, table=arguments.csv)
    print(summary(graded))
    seconds = time.perf_counter() - began
    print(f"{counted(len(graded), 'answer')} in {seconds:.0f} s; the table is {arguments.csv}", file=sys.stderr)
