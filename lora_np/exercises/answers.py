"""Finding an answer: in the notebook that calls `check`, in a file, among the files that a student handed in."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .diagnose import Verdict, verdict
from .exercise import BLANK, Exercise, exercise, exercises
from .outcome import echo
from .program import cells_of, program

PATIENCE = 1.0  # seconds that `check` looks for two mistakes at once: somebody waits
SUFFIXES = (".ipynb", ".py")
NOT_ANSWERS = ("solutions", "site-packages", "node_modules")  # folders that a student may hand in with the rest


def check(function: Callable[..., Any]) -> None:
    """Print what the grader says of the function you wrote: right, or which mistake it makes and a hint.

    Its name says which exercise it answers. It runs in a process of its own, with what it uses of your notebook.
    Raises TypeError for what is no function of yours.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"check takes the function that you wrote, as in check(lora_forward), not {function!r}")
    known = {asked.function for asked in exercises()}
    names = [name for name, value in function.__globals__.items() if value is function and name in known]
    name = names[0] if names else function.__name__  # a lambda has no name of its own
    try:
        _print(str(verdict(cells_around(function), exercise(name), PATIENCE)))
    except KeyError as error:
        _print(f"✗ {name}: {error.args[0]}")


def _print(text: str) -> None:
    """Also where the output has no ✓: a pipe on Windows, say."""
    try:
        print(text)
    except UnicodeEncodeError:
        print(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))


def cells_around(function: Callable[..., Any]) -> list[str]:
    """The cells that a notebook has run so far (IPython keeps them as `In`), or those of the file that defines `function`.

    Raises TypeError where its text is nowhere, as for one typed into a plain Python prompt.
    """
    executed = function.__globals__.get("In")
    if isinstance(executed, list) and executed and all(isinstance(cell, str) for cell in executed):
        return executed
    path = inspect.getsourcefile(function)
    if path is not None and Path(path).is_file():
        return cells_of(path)
    raise TypeError(f"the text of {function.__name__} is nowhere to be read: write it in a notebook or in a .py file")


def find_answer(files: Sequence[Path], exercise: Exercise) -> Verdict:
    """The verdict on the answer among these files: the one that is not blank, whatever its file is called.

    Where several answer differently, the one named after the exercise counts, if there is just one.
    """
    name = exercise.function
    programs: dict[str, list[Path]] = {}
    unreadable = []
    for path in files:
        if defines(path, name):
            try:
                programs.setdefault(program(cells_of(path), name), []).append(path)
            except KeyError:  # in words, not in code
                continue
            except (ValueError, OSError, SyntaxError):
                unreadable.append(path)
    written = {text: paths for text, paths in programs.items() if BLANK not in text} or programs
    if len(written) > 1:
        named = {text: paths for text, paths in written.items() if any(path.stem[3:] == name for path in paths)}
        if len(named) != 1:
            listed = echo(", ".join(path.name for paths in written.values() for path in paths))
            return Verdict(
                name, "unreadable", f"several files answer it, each in its own way ({listed}): which one counts?"
            )
        written = named
    if not written and not unreadable:
        return Verdict(name, "missing", f"there is no function {name} here")
    path = next(iter(written.values()))[0] if written else unreadable[0]
    try:
        return verdict(cells_of(path), exercise)
    except (ValueError, OSError) as error:
        return Verdict(name, "unreadable", echo(str(error)))


def answer_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The notebooks and .py files in `folder` and below, but for tests, solutions, and what Jupyter and Python keep there."""
    folder = Path(folder)
    environments = {path.parent for path in folder.rglob("pyvenv.cfg")}
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [
        path
        for path in paths
        if not any(part.startswith((".", "__")) or part in NOT_ANSWERS for part in path.relative_to(folder).parts)
        and not path.name.startswith("test_")
        and not environments & set(path.parents)
    ]


def defines(path: Path, function: str) -> bool:
    """Whether the file gives `function` a value or is named after it, without reading it as a program."""
    if path.stem[3:] == function:
        return True
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return f"def {function}(" in text or f"{function} =" in text
