"""Grading: a function in a notebook, a file, and a class of submissions."""

from __future__ import annotations

import csv
import inspect
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..progress import Progress
from .diagnose import Verdict, verdict
from .exercise import Exercise, exercise, exercises
from .outcome import echo
from .program import cells_of

SUFFIXES = (".ipynb", ".py")


def check(function: Callable[..., Any]) -> None:
    """Print what the grader says of the function you wrote: right, or which mistake it makes and a hint.

    Its name says which exercise it answers. It runs in a process of its own, with what it uses of your notebook.
    Raises KeyError where no exercise asks for a function of that name, TypeError for what is no function of yours.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"check takes the function that you wrote, as in check(lora_forward), not {function!r}")
    asked = exercise(function.__name__)
    print(verdict(cells_around(function), asked))


def cells_around(function: Callable[..., Any]) -> list[str]:
    """The cells that a notebook has run so far (IPython keeps them as `In`), or those of the file that defines `function`.

    Raises TypeError where its text is nowhere, as for one typed into a plain Python prompt.
    """
    path = inspect.getsourcefile(function)
    if path is not None and Path(path).is_file() and not function.__globals__.get("In"):
        return cells_of(path)
    if isinstance(executed := function.__globals__.get("In"), list):
        return [cell for cell in executed if isinstance(cell, str)]
    raise TypeError(f"the text of {function.__name__} is nowhere to be read: write it in a notebook or in a .py file")


def grade_file(path: str | os.PathLike[str], exercise: Exercise) -> Verdict:
    """The verdict on the answer in one notebook or .py file; a file that cannot be read has one too."""
    try:
        cells = cells_of(Path(path))
    except (ValueError, OSError) as error:
        return Verdict(exercise.function, "unreadable", echo(str(error)))
    return verdict(cells, exercise)


def find_answer(files: Sequence[Path], exercise: Exercise) -> Verdict:
    """The verdict on the file that answers the exercise: the one that is named after it, or else the one that defines it."""
    name = exercise.function
    named = [path for path in files if path.stem.endswith(name)]
    found = named or [path for path in files if defines(path, name)]
    if not found:
        return Verdict(name, "missing", f"there is no function {name} here")
    if len(found) > 1:
        listed = echo(", ".join(path.name for path in found))
        return Verdict(name, "unreadable", f"more than one file answers it ({listed}): which one counts?")
    return grade_file(found[0], exercise)


def answer_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The notebooks and .py files in `folder` and below, but for what Jupyter and Python keep for themselves."""
    folder = Path(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES and path.is_file()]
    return [path for path in paths if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)]


def defines(path: Path, function: str) -> bool:
    """Whether the file says `def function`, without reading it as a program."""
    try:
        return f"def {function}(" in path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------- a class


@dataclass(frozen=True)
class Graded:
    """One student's answer to one exercise."""

    student: str
    verdict: Verdict


def grade_class(
    submissions: str | os.PathLike[str], asked: Sequence[Exercise] | None = None, workers: int = 2
) -> list[Graded]:
    """Grade every submission in the folder: a folder a student, or a file a student; `workers` answers at a time.

    What a submission does, to itself or to the checks that came with it, changes no other's grade: each answer runs in a
    process of its own, and is compared here with the installed catalogue.

    Raises FileNotFoundError where the folder is not there, ValueError where it holds no submission.
    """
    folder, asked = Path(submissions), list(asked or exercises())
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: it holds a folder for each student, with their notebooks")
    handed_in = [path for path in sorted(folder.iterdir()) if _handed_in(path)]
    students = {path.name if path.is_dir() else path.stem: path for path in handed_in}
    if not students:
        raise ValueError(f"nobody handed in anything: {str(folder)!r} holds neither folders nor notebooks")
    files = {student: answer_files(path) if path.is_dir() else [path] for student, path in students.items()}
    jobs = [(student, exercise) for student in students for exercise in asked]
    with Progress(len(jobs), "grading", unit="answer", lines=True) as bar, ThreadPoolExecutor(workers) as pool:
        graded = []
        for (student, _), said in zip(jobs, pool.map(lambda job: _judged(files[job[0]], job[1]), jobs), strict=True):
            graded.append(Graded(student, said))
            bar.update()
    return graded


def _handed_in(path: Path) -> bool:
    return not path.name.startswith((".", "__")) and (path.is_dir() or path.suffix in SUFFIXES)


def _judged(files: Sequence[Path], exercise: Exercise) -> Verdict:
    try:
        return find_answer(files, exercise)
    except Exception as error:  # a fault of the grader's: it is reported as one, and the class goes on
        return Verdict(exercise.function, "unreadable", f"the grader failed on it: {echo(repr(error))}")


def write_csv(graded: Sequence[Graded], path: str | os.PathLike[str]) -> None:
    """A line a student and exercise, passed 1 or 0. The file is whole or not there."""

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8-sig", newline="") as file:  # the mark tells spreadsheets that it is UTF-8
            rows = csv.writer(file)
            rows.writerow(["student", "exercise", "passed", "result", "mistakes", "words"])
            for row in graded:
                said = row.verdict
                mistakes = "; ".join(mistake.name for mistake in said.mistakes)
                fields = [row.student, said.function, int(said.passed), said.kind, mistakes, said.words]
                rows.writerow([_harmless(field) for field in fields])

    write_atomically(Path(path), write)


def _harmless(field: str | int) -> str | int:
    """A student's text that begins like a formula would be computed by a spreadsheet; with a quote before it, it is read."""
    return f"'{field}" if isinstance(field, str) and field.startswith(("=", "+", "-", "@", "\t", "\r")) else field


def summary(graded: Sequence[Graded], most: int = 5) -> str:
    """A line a student with what passed, and the mistakes that were made most: what to talk about next time."""
    by_student: dict[str, list[Verdict]] = {}
    for row in graded:
        by_student.setdefault(row.student, []).append(row.verdict)
    width = max(map(len, by_student))
    lines = [f"{name:<{width}}  {sum(v.passed for v in said):>2} of {len(said)}" for name, said in by_student.items()]
    made = Counter((v.function, mistake.name) for row in graded for v in [row.verdict] for mistake in v.mistakes)
    if made:
        lines += ["", "made most often:"]
        lines += [f"  {count:>3} × {function}: {name}" for (function, name), count in made.most_common(most)]
    return "\n".join(lines)
