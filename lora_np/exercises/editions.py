"""Generate the students' notebooks, the teachers' notebooks with solutions, and the page for teachers."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..files import write_text
from ..optional import extra
from ..report.notebooks import execute, notebook_json
from .diagnose import KINDS
from .exercise import SOURCES, Exercise, exercises, with_solution, without_solution

TERMINAL = ("conftest.py", "test_answers.py")  # for `pytest` in a folder of answers, and for `pytest FILE`
TEACHERS = "TEACHERS.md"
HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

"""


def student_edition(folder: str | os.PathLike[str], as_py: bool = False) -> list[Path]:
    """Write the exercises without solutions or outputs, and return the files that were written.

    An existing file is not changed, because it may contain a student's work. If `as_py`, .py files are written instead
    of notebooks.
    """
    folder, written = Path(folder), []
    for exercise in exercises():
        text = _text(exercise, without_solution)
        path = folder / f"{exercise.source.stem}{'.py' if as_py else '.ipynb'}"
        if not path.exists():
            write_text(path, text if as_py else notebook_text(text))
            written.append(path)
    for name in TERMINAL:
        if not (folder / name).exists():
            write_text(folder / name, (SOURCES / name).read_text(encoding="utf-8"))
            written.append(folder / name)
    return written


def teacher_edition(folder: str | os.PathLike[str]) -> list[Path]:
    """Write the executed notebooks with solutions and the list of known mistakes, and return their paths.

    Raises RuntimeError with the failing cell if a solution does not run.
    """
    written = []
    for exercise in exercises():
        path = Path(folder) / f"{exercise.source.stem}.ipynb"
        with tempfile.TemporaryDirectory(prefix="lora_np_") as temporary:
            source = Path(temporary) / f"{exercise.source.stem}.py"
            source.write_text(HEADER + teacher_text(exercise), encoding="utf-8")
            execute(source, path)
        written.append(path)
    return written


def teachers_page() -> str:
    """Return the page for teachers: order, minutes, prerequisites and known mistakes of the exercises."""
    rows = ["| | exercise | function | minutes | prerequisites |", "|---|---|---|---|---|"]
    wrong = []
    for number, exercise in enumerate(exercises(), 1):
        link = f"[{exercise.title}]({exercise.source.stem}.ipynb)"
        rows.append(f"| {number} | {link} | `{exercise.function}` | {exercise.minutes} | {exercise.needs} |")
        wrong += ["", f"**{number} {exercise.title}**", "", *mistake_lines(exercise)]
    total = sum(exercise.minutes for exercise in exercises())
    rows.append(f"| | all | | {total} | |")
    template = (SOURCES / TEACHERS).read_text(encoding="utf-8")
    kinds = "\n".join(f"| {kind} | {meaning} |" for kind, meaning in KINDS.items())
    count = sum(len(exercise.mistakes) for exercise in exercises())
    for mark, text in {
        "exercises": "\n".join(rows),
        "mistakes": "\n".join(wrong).strip(),
        "count": str(count),
        "kinds": kinds,
    }.items():
        template = template.replace(f"<!-- {mark} -->", text)
    return template


def teacher_text(exercise: Exercise) -> str:
    """Return the source of an exercise with its solution and with a list of the known mistakes."""
    cell = ["", "# %% [markdown]", "# ## Known mistakes and their hints", "#"]
    cell += [f"# {line}" for line in mistake_lines(exercise)]
    return "\n".join([_text(exercise, with_solution), *cell, ""])


def mistake_lines(exercise: Exercise) -> list[str]:
    """Return one line per mistake, with the hint that the student reads."""
    return [f"- **Mistake:** {mistake.name}. **Hint:** {mistake.hint}" for mistake in exercise.mistakes]


def build(folder: str | os.PathLike[str]) -> None:
    """Write notebooks/exercises again: both editions and the page for teachers."""
    folder = Path(folder)
    for path in [*folder.glob("[0-9]*.ipynb"), *folder.glob("solutions/[0-9]*.ipynb")]:
        path.unlink(missing_ok=True)
    for path in (folder / name for name in TERMINAL):
        path.unlink(missing_ok=True)
    student_edition(folder)
    teacher_edition(folder / "solutions")
    write_text(folder / TEACHERS, teachers_page())


def _text(exercise: Exercise, edition: Callable[[str], str]) -> str:
    """Return the text of an exercise, changed by `edition`, with the minutes and prerequisites below the title."""
    title, rest = edition(exercise.text).split("\n#\n", 1)
    number, among = int(exercise.source.stem[:2]), len(exercises())
    return f"{title}\n#\n# *Exercise {number} of {among} · {exercise.minutes} minutes · prerequisites: {exercise.needs}*\n#\n{rest}"


def notebook_text(text: str) -> str:
    """Return a jupytext file's text as a notebook (JSON) without outputs. Equal texts give equal bytes."""
    with extra("course", "writing a notebook"):
        import jupytext

    return notebook_json(jupytext.reads(HEADER + text, fmt="py:percent"))


if __name__ == "__main__":
    build(sys.argv[1] if len(sys.argv) > 1 else "notebooks/exercises")
