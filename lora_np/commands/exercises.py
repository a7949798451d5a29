"""python -m lora_np exercises: write them out, check a file, grade a class."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

HELP = "the exercises: write a copy to work in, check an answer, grade a class"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    write = actions.add_parser("write", help="write the exercises to a folder; files that are there stay as they are")
    write.add_argument("folder", type=Path)
    write.add_argument("--py", action="store_true", help="as .py files, for an editor and pytest")
    write.add_argument("--solutions", action="store_true", help="the teacher's notebooks, executed")
    check = actions.add_parser("check", help="what the grader says of the answers in some files")
    check.add_argument("files", nargs="+", type=Path)
    grade = actions.add_parser("grade", help="grade a folder of submissions: a folder or a file a student")
    grade.add_argument("submissions", type=Path)
    grade.add_argument(
        "--csv", type=Path, required=True, metavar="FILE", help="the table: a line a student and exercise"
    )
    grade.add_argument("--workers", type=int, default=None, help="answers at a time (default: processors, 8 at most)")


def run(arguments: argparse.Namespace) -> int | None:
    return {"write": write, "check": check, "grade": grade}[arguments.action](arguments)


def write(arguments: argparse.Namespace) -> None:
    from ..exercises.editions import student_edition, teacher_edition

    if arguments.solutions and arguments.py:
        raise ValueError("--solutions are notebooks, with their outputs: leave --py out")
    if arguments.solutions:
        written = teacher_edition(arguments.folder)
    else:
        written = student_edition(arguments.folder, arguments.py)
    print(f"{len(written)} files written to {arguments.folder}; what was there already stays as it was")
    if written and not arguments.solutions:
        how = "write in an editor, and run pytest there" if arguments.py else "`jupyter lab` opens it"
        print(f"begin with {written[0]}: {how}")


def check(arguments: argparse.Namespace) -> int:
    """0 where every answer is right, else 1."""
    from ..exercises import exercises, find_answer
    from ..exercises.answers import defines

    said = []
    for path in arguments.files:
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {str(path)!r}")
        asked = [exercise for exercise in exercises() if defines(path, exercise.function)]
        if not asked:
            known = ", ".join(exercise.function for exercise in exercises())
            raise ValueError(f"{path} defines none of the exercises' functions: {known}")
        for exercise in asked:
            said.append(find_answer([path], exercise))
            print(said[-1])
    return int(not all(verdict.passed for verdict in said))


def grade(arguments: argparse.Namespace) -> None:
    from ..exercises.grade import grade_class, summary, write_csv

    if arguments.workers is not None and arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}; expected at least 1")
    if arguments.csv.is_dir():
        raise ValueError(f"--csv {arguments.csv} is a folder; name a file")
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)  # raises now, and not after the grading
    began = time.perf_counter()
    graded = grade_class(arguments.submissions, workers=arguments.workers)
    write_csv(graded, arguments.csv)
    print(summary(graded))
    print(
        f"{len(graded)} answers in {time.perf_counter() - began:.0f} s; the table is {arguments.csv}", file=sys.stderr
    )
