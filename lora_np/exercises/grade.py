"""Grade a class: every answer of every student, and a table for a spreadsheet."""

from __future__ import annotations

import contextlib
import csv
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import write_atomically
from ..progress import Progress
from .answers import SUFFIXES
from .diagnose import Verdict
from .exercise import Exercise, exercises
from .journal import MOST_ATTEMPTS, SUFFIX, Journal, key_of
from .judge import Judge
from .outcome import echo

TABLE_SECONDS = 2.0  # between two writes of the table


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
    submissions: str | os.PathLike[str],
    asked: Sequence[Exercise] | None = None,
    workers: int | None = None,
    table: str | os.PathLike[str] | None = None,
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
    table : path, optional
        The file for the table (see `write_csv`). The file is written every few seconds. If the grader is stopped, call
        the function again with the same `table` to continue. Verdicts on submissions that have not changed are kept.

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
    ours = {os.path.realpath(f"{table}{suffix}") for suffix in ("", SUFFIX)} if table is not None else set()
    handed_in = [path for path in sorted(folder.iterdir()) if not path.name.startswith((".", "__"))]
    handed_in = [path for path in handed_in if os.path.realpath(path) not in ours]
    if not any(path.is_dir() or path.suffix.lower() in SUFFIXES for path in handed_in):
        raise ValueError(f"no submissions: {str(folder)!r} contains no folders and no notebooks")
    journal = Journal(None if table is None else Path(f"{table}{SUFFIX}"))
    jobs = [Job(path, exercise, key_of(path, exercise.function)) for path in handed_in for exercise in asked]
    names = student_names(handed_in)

    def graded() -> list[Graded]:
        return [Graded(names[job.path], journal.verdicts[job.key]) for job in jobs if job.key in journal.verdicts]

    hidden = [os.path.realpath(folder), *ours]
    written = time.monotonic()
    try:
        with Progress(len(jobs), "grading", unit="answer", lines=True, done=len(graded())) as bar:
            for _ in verdicts(jobs, journal, workers or processors(), hidden):
                bar.update()
                if table is not None and time.monotonic() - written > TABLE_SECONDS:
                    with contextlib.suppress(OSError):  # a full disk; the table is written again at the end
                        write_csv(graded(), table)
                    written = time.monotonic()
        if table is not None:
            write_csv(graded(), table)
            journal.remove()
    except KeyboardInterrupt:
        if table is not None:
            write_csv(graded(), table)
        raise
    finally:
        journal.close()
    return graded()


@dataclass(frozen=True)
class Job:
    """One answer to grade.

    Parameters
    ----------
    path : Path
        The student's folder or file.
    exercise : Exercise
        The exercise.
    key : str
        The answer's name in the journal.
    """

    path: Path
    exercise: Exercise
    key: str


def verdicts(jobs: Sequence[Job], journal: Journal, workers: int, hidden: Sequence[str]) -> Iterator[Job]:
    """Grade the jobs that have no verdict in the journal, and yield each job when its verdict is known.

    If an answer was running when an earlier grader ended, it may be the cause. Such an answer is graded last and alone.
    """
    new = [job for job in jobs if job.key not in journal.verdicts]
    suspects = sorted((job for job in new if journal.attempts[job.key] > 0), key=lambda job: journal.attempts[job.key])
    yield from _parallel([job for job in new if job not in suspects], journal, workers, hidden)
    for job in suspects:
        if journal.attempts[job.key] < MOST_ATTEMPTS:
            yield from _parallel([job], journal, 1, hidden)
        else:
            words = f"the grader ended {MOST_ATTEMPTS} times while it ran this answer; grade it by hand"
            journal.finish(job.key, Verdict(job.exercise.function, "stopped", words))
            yield job


def _parallel(jobs: Sequence[Job], journal: Journal, workers: int, hidden: Sequence[str]) -> Iterator[Job]:
    """Grade the jobs with several judges, and yield each job when its verdict is in the journal.

    A judge prefers the exercises that it has judged before, because it remembers the outcomes of their known mistakes.
    """
    waiting: dict[str, list[Job]] = {}
    for job in reversed(jobs):
        waiting.setdefault(job.exercise.function, []).append(job)
    claimed: set[str] = set()
    running: set[str] = set()
    lock, done = threading.Lock(), queue.SimpleQueue[tuple[Job, Verdict] | BaseException]()

    def take(mine: set[str]) -> Job | None:
        with lock:
            if not (left := [name for name, pending in waiting.items() if pending]):
                return None
            name = max(left, key=lambda name: (name in mine, name not in claimed, len(waiting[name])))
            mine.add(name)
            claimed.add(name)
            job = waiting[name].pop()
            running.add(job.key)
            journal.begin(job.key)
            return job

    def work() -> None:
        judge, mine = Judge(hidden), set[str]()
        try:
            while (job := take(mine)) is not None:
                done.put((job, judge.verdict(job.path, job.exercise)))
        except BaseException as error:
            done.put(error)
        finally:
            judge.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(jobs)))]
    for thread in threads:
        thread.start()
    try:
        for _ in jobs:
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            job, said = result
            with lock:
                running.discard(job.key)
                journal.finish(job.key, said)
            yield job
    finally:
        with lock:  # after Ctrl-C or an error: take no more jobs
            waiting.clear()
            for key in running:
                journal.withdraw(key)
    for thread in threads:
        thread.join()


def student_names(handed_in: Sequence[Path]) -> dict[Path, str]:
    """Return the students' names: folder names, and file names without suffix. Equal names get the suffix or a number."""
    short = {path: path.name if path.is_dir() else path.stem for path in handed_in}
    often = Counter(short.values())
    names = {path: name if often[name] == 1 else path.name for path, name in short.items()}
    names = {path: name.encode("utf-8", "backslashreplace").decode() for path, name in names.items()}
    often = Counter(names.values())
    return {path: name if often[name] == 1 else f"{name} ({i})" for i, (path, name) in enumerate(names.items(), 1)}


def write_csv(graded: Sequence[Graded], path: str | os.PathLike[str]) -> None:
    """Write the table as CSV, with one row per student and exercise. The column `passed` contains 1 or 0.

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
    """Return a field of the table; a text that a spreadsheet runs as a formula gets a quote at its start."""
    return f"'{field}" if isinstance(field, str) and field.startswith(("=", "+", "-", "@", "\t", "\r")) else field


def summary(graded: Sequence[Graded], most: int = 5) -> str:
    """Return a text with the number of right answers of each student, and with the most frequent mistakes."""
    by_student: dict[str, list[Verdict]] = {}
    for row in graded:
        by_student.setdefault(echo(row.student), []).append(row.verdict)
    width = max(map(len, by_student))
    lines = [f"{name:<{width}}  {sum(v.passed for v in said):>2} of {len(said)}" for name, said in by_student.items()]
    made = Counter((v.function, mistake.name) for row in graded for v in [row.verdict] for mistake in v.mistakes)
    if made:
        lines += ["", "most frequent mistakes:"]
        lines += [f"  {count:>3} × {function}: {name}" for (function, name), count in made.most_common(most)]
    return "\n".join(lines)
