"""Grading a class: every answer of every student, whatever some of them do, and a table for a spreadsheet."""

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
    """One student's answer to one exercise."""

    student: str
    verdict: Verdict


def processors() -> int:
    """Those that this process may use, 8 at most: in a container that is fewer than the machine has."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


def grade_class(
    submissions: str | os.PathLike[str], asked: Sequence[Exercise] | None = None, workers: int | None = None
) -> list[Graded]:
    """Grade every submission in the folder: a folder a student, or a file a student; `workers` answers at a time.

    What a submission does, to itself or to the checks that came with it, changes no other's grade: each answer runs in a
    process of its own, and is compared here with the installed catalogue. What is neither folder nor notebook has its rows
    too, so that nothing that was handed in is lost from sight.

    Raises FileNotFoundError where the folder is not there, ValueError where it holds no submission.
    """
    folder, asked = Path(submissions), list(asked or exercises())
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {str(folder)!r}: it holds a folder for each student, with their notebooks")
    handed_in = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    if not any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in handed_in):
        raise ValueError(f"nobody handed in anything: {str(folder)!r} holds neither folders nor notebooks")
    jobs = [(path, exercise) for path in handed_in for exercise in asked]
    names, workers = student_names(handed_in), workers or processors()
    graded = []
    with Progress(len(jobs), "grading", unit="answer", lines=True) as bar, ThreadPoolExecutor(workers) as pool:
        for (path, _), said in zip(jobs, pool.map(_judged, *zip(*jobs, strict=True)), strict=True):
            graded.append(Graded(names[path], said))
            bar.update()
    return graded


def student_names(handed_in: Sequence[Path]) -> dict[Path, str]:
    """A folder's name, a file's without its ending; the whole name where two would be the same."""
    short = {path: path.name if path.is_dir() else path.stem for path in handed_in}
    often = Counter(short.values())
    names = {path: name if often[name] == 1 else path.name for path, name in short.items()}
    return {path: name.encode("utf-8", "backslashreplace").decode() for path, name in names.items()}


def _judged(path: Path, exercise: Exercise) -> Verdict:
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        return Verdict(
            exercise.function, "unreadable", "this is neither a folder nor a notebook: is it to be unpacked?"
        )
    try:
        return find_answer(answer_files(path) if path.is_dir() else [path], exercise)
    except Exception as error:  # a fault of the grader's: it is reported as one, and the class goes on
        return Verdict(exercise.function, "unreadable", f"the grader failed on it: {echo(repr(error))}")


def write_csv(graded: Sequence[Graded], path: str | os.PathLike[str]) -> None:
    """A line a student and exercise, passed 1 or 0. The file is whole or not there."""

    def write(path: Path) -> None:
        with path.open(
            "w", encoding="utf-8-sig", errors="backslashreplace", newline=""
        ) as file:  # the mark tells spreadsheets that it is UTF-8
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
