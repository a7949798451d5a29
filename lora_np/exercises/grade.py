"""Grade a class: every answer of every student, and a table for a spreadsheet."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..files import write_atomically
from ..progress import Progress
from .answers import SUFFIXES, answer_files, find_answer
from .diagnose import Verdict
from .exercise import Exercise, exercises
from .outcome import echo


@dataclass(frozen=True)
class Graded:
    """The verdict on one student's answer to one exercise.

    Parameters
    ----------
    student : str
        Name of the student's folder or file.
    verdict : Verdict
        The verdict.
    """

    student: str
    verdict: Verdict


def processors() -> int:
    """Return the number of processors that this process may use, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def grade_class(
    submissions: str | os.PathLike[str], asked: Sequence[Exercise] | None = None, workers: int | None = None
) -> list[Graded]:
    """Grade every submission in a folder: one folder per student, or one file per student.

    Each answer runs in a separate process and is compared with the installed catalogue, so a submission cannot change
    the grade of another submission. A file of another type, such as an archive, gets rows with the result "unreadable".

    Parameters
    ----------
    submissions : path
        The folder.
    asked : sequence of Exercise, optional
        The exercises to grade; by default all exercises.
    workers : int, optional
        Number of answers that run at the same time; by default the number of processors, at most 8.

    Returns
    -------
    list of Graded
        One entry per student and exercise.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    ValueError
        If the folder contains no submission.
    """
    folder, asked = Path(submissions), list(asked or exercises())
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}; expected a folder with one folder per student")
    handed_in = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    if not any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in handed_in):
        raise ValueError(f"no submissions: {str(folder)!r} contains no folders and no notebooks")
    jobs = [(path, exercise) for path in handed_in for exercise in asked]
    names, workers = student_names(handed_in), workers or processors()
    graded = []
    with Progress(len(jobs), "grading", unit="answer", lines=True) as bar, ThreadPoolExecutor(workers) as pool:
        for (path, _), said in zip(jobs, pool.map(_judged, *zip(*jobs, strict=True)), strict=True):
            graded.append(Graded(names[path], said))
            bar.update()
    return graded


def student_names(handed_in: Sequence[Path]) -> dict[Path, str]:
    """Return the students' names: folder names, and file names without suffix unless two names would be equal."""
    short = {path: path.name if path.is_dir() else path.stem for path in handed_in}
    often = Counter(short.values())
    names = {path: name if often[name] == 1 else path.name for path, name in short.items()}
    return {path: name.encode("utf-8", "backslashreplace").decode() for path, name in names.items()}


def _judged(path: Path, exercise: Exercise) -> Verdict:
    """Return the verdict on one submission's answer to one exercise."""
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        return Verdict(
            exercise.function, "unreadable", "this is not a folder and not a notebook; unpack it if it is an archive"
        )
    try:
        return find_answer(answer_files(path) if path.is_dir() else [path], exercise)
    except Exception as error:  # a fault of the grader is reported, and grading continues
        return Verdict(exercise.function, "unreadable", f"the grader failed on it: {echo(repr(error))}")


def write_csv(graded: Sequence[Graded], path: str | os.PathLike[str]) -> None:
    """Write the table as CSV, with one row per student and exercise. The column `passed` has 1 or 0.

    The file is written completely or not at all.
    """

    def write(path: Path) -> None:
        with path.open(
            "w", encoding="utf-8-sig", errors="backslashreplace", newline=""
        ) as file:  # the byte-order mark tells spreadsheets that it is UTF-8
            rows = csv.writer(file)
            rows.writerow(["student", "exercise", "passed", "result", "mistakes", "words"])
            for row in graded:
                said = row.verdict
                mistakes = "; ".join(mistake.name for mistake in said.mistakes)
                fields: list[str | int] = [row.student, said.function, int(said.passed), said.kind, mistakes]
                fields.append(said.words)
                rows.writerow([_harmless(field) for field in fields])

    write_atomically(Path(path), write)


def _harmless(field: str | int) -> str | int:
    """Return a field of the table; a text that a spreadsheet would run as a formula gets a quote at its start."""
    return f"'{field}" if isinstance(field, str) and field.startswith(("=", "+", "-", "@", "\t", "\r")) else field


def summary(graded: Sequence[Graded], most: int = 5) -> str:
    """Return a text with the number of right answers of each student, and with the most frequent mistakes."""
    by_student: dict[str, list[Verdict]] = {}
    for row in graded:
        by_student.setdefault(row.student, []).append(row.verdict)
    width = max(map(len, by_student))
    lines = [f"{name:<{width}}  {sum(v.passed for v in said):>2} of {len(said)}" for name, said in by_student.items()]
    made = Counter((v.function, mistake.name) for row in graded for v in [row.verdict] for mistake in v.mistakes)
    if made:
        lines += ["", "most frequent mistakes:"]
        lines += [f"  {count:>3} × {function}: {name}" for (function, name), count in made.most_common(most)]
    return "\n".join(lines)
