"""Find a student's answer in the notebook that calls `check`, in one file, or in several files."""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..terminal import visible
from .diagnose import Verdict, unreadable, verdict
from .executed import is_older, newest_error
from .exercise import BLANK, Exercise, exercise, exercises, sources
from .outcome import echo
from .program import program
from .reading import cells_of, entries, read_bytes

PATIENCE = 1.0  # seconds that `check` spends on the search for two mistakes at once
WIDTH = 95  # characters per line of an output in JupyterLab
SUFFIXES = (".ipynb", ".py")
NOT_ANSWERS = ("solutions", "site-packages", "node_modules")  # folders without answers
OF_THE_PROJECT = ("tests", "docs", "figures")  # folders beside the package in a clone of lora_np
MOST_FILES = 50  # files that define one function
LESSON = re.compile(r"\d\d[a-z]?_\w+\.(ipynb|py)$")
LATEX = {r"\Delta ": "Δ", r"\Delta": "Δ", r"\alpha": "α", r"\varepsilon": "ε", r"\eta": "η"}
LATEX |= {r"^\top": "ᵀ", r"\times": "×", r"\cdot": "·", r"\,": " ", "_j": "ⱼ"}


def check(function: Callable[..., Any]) -> None:
    """Print whether the function that you wrote is right; if it is not, print the mistake and a hint.

    The function's name selects the exercise. The function runs in a separate process, together with the parts of your
    notebook that it uses. After a right answer, `check` prints the question to explain and the next exercise.

    Parameters
    ----------
    function : callable
        Your function, from a notebook or a .py file.

    Raises
    ------
    TypeError
        If `function` is not a Python function, or if its source cannot be read.

    Examples
    --------
    >>> from lora_np.exercises import check
    >>> check(len)
    Traceback (most recent call last):
    TypeError: check takes the function that you wrote, as in check(lora_forward), not <built-in function len>
    """
    if not inspect.isfunction(function):
        raise TypeError(f"check takes the function that you wrote, as in check(lora_forward), not {function!r}")
    known = {asked.function for asked in exercises()}
    names = [name for name, value in function.__globals__.items() if value is function and name in known]
    name = names[0] if names else function.__name__  # a lambda has no name of its own
    cells = executed_cells(function)
    try:
        asked = exercise(name)
    except KeyError as error:
        _print(f"✗ {name}: {error.args[0]}")
        return
    said = not_defined(function, name, cells) or verdict(cells or cells_of_file(function), asked, PATIENCE)
    _print(str(said))
    if said.passed:
        _print(next_step(asked, ".ipynb" if cells else ".py"))


def not_defined(function: Callable[..., Any], name: str, cells: Sequence[str]) -> Verdict | None:
    """Return a verdict if the newest cell that defines the function failed, otherwise None.

    If that cell has a syntax error or stops before the definition, IPython keeps the previous definition, and
    `function` is then from an older cell.
    """
    if cells and function.__code__.co_filename == "<string>":
        return Verdict(
            name, "missing", "check cannot read a function that exec defines; write the definition in a cell"
        )
    error = newest_error(cells, name)
    if error is not None:
        failed = unreadable(name, error)
    elif is_older(function, name, cells):
        words = "the newest cell that defines it stopped with an error before the definition"
        failed = Verdict(name, "raised", words)
    elif not cells and is_older(function, name, cells_of_file(function)):
        return Verdict(name, "raised", "the file defines the function again further below; keep one of the definitions")
    else:
        return None
    return failed.with_details(
        "  The previous definition was not judged. Correct the cell, run it, and call check again."
    )


def next_step(asked: Exercise, suffix: str) -> str:
    """Return the text that `check` prints after a right answer: a question to explain, and the next exercise."""
    lines = [
        textwrap.fill(f"Now explain: {plain_text(asked.question)}", WIDTH, initial_indent="  ", subsequent_indent="  ")
    ]
    later = [other for other in exercises() if other.source > asked.source]
    if later:
        lines.append(f"  Next exercise: {later[0].source.stem}{suffix} ({later[0].title})")
    else:
        lines.append("  This was the last exercise.")
    return "\n".join(lines)


def plain_text(markdown: str) -> str:
    """Return a question without the marks of Markdown and LaTeX, for a terminal."""
    for command, character in LATEX.items():
        markdown = markdown.replace(command, character)
    return re.sub(r"[$*`]", "", markdown)


def _print(text: str) -> None:
    """Print text, with a question mark for each character that the output cannot encode (✓ in a pipe on Windows).

    Control characters, which an answer's error can contain, are shown as text and not sent to the terminal.
    """
    text = visible(text)
    try:
        print(text)
    except UnicodeEncodeError:
        print(text.encode(sys.stdout.encoding, "replace").decode(sys.stdout.encoding))


def executed_cells(function: Callable[..., Any]) -> list[str]:
    """Return the source of the cells that the notebook of `function` has run so far; outside a notebook, return [].

    The cells are read from IPython's history if there is one. In IPython's list `In`, magics such as %%time are already
    replaced by Python code.
    """
    executed, shell = function.__globals__.get("In"), function.__globals__.get("get_ipython")
    history = getattr(shell(), "history_manager", None) if callable(shell) else None
    executed = getattr(history, "input_hist_raw", executed)
    if isinstance(executed, list) and all(isinstance(cell, str) for cell in executed):
        return executed
    return []


def cells_of_file(function: Callable[..., Any]) -> list[str]:
    """Return the cells of the file that defines `function`.

    Raises TypeError if no file defines the function, for example if the function was typed at Python's prompt.
    """
    path = inspect.getsourcefile(function)
    if path is not None and Path(path).is_file():
        return cells_of(Path(path).resolve())
    raise TypeError(f"cannot read the source of {function.__name__}; write the function in a notebook or in a .py file")


def find_answer(files: Sequence[Path], exercise: Exercise, hidden: Sequence[str] = ()) -> Verdict:
    """Search several files for the answer to an exercise, and return the verdict on the answer.

    Files in which the answer is not written yet are ignored. If several files have different answers, and only one of
    these answers is in a file named after the exercise, this answer is judged.

    Parameters
    ----------
    files : sequence of Path
        Notebooks and .py files, for example from `answer_files`.
    exercise : Exercise
        The exercise whose answer the files may contain.
    hidden : sequence of str
        Files and folders that the answer must not read while it runs, for example the other students' answers. The
        solutions are always hidden. Only Linux can hide files; see `contain.py`.

    Returns
    -------
    Verdict
        The verdict. Its kind is "missing" if no file defines the function, and "unreadable" if several different
        answers remain.

    Examples
    --------
    >>> from lora_np.exercises import exercise, find_answer
    >>> print(find_answer([], exercise("count_lora")))
    ✗ count_lora: no file defines the function count_lora
    """
    name = exercise.function
    programs: dict[str, list[Path]] = {}
    unreadable: list[Path] = []
    defining = [path for path in files if defines(path, name)]
    if len(defining) > MOST_FILES:
        return Verdict(name, "unreadable", f"{len(defining):,} files define it, expected at most {MOST_FILES}")
    for path in defining:
        try:
            programs.setdefault(program(cells_of(path), name), []).append(path)
        except KeyError:  # the name is in a text, not in code
            continue
        except (ValueError, OSError, SyntaxError):
            unreadable.append(path)
    written = {text: paths for text, paths in programs.items() if BLANK not in text} or programs
    if len(written) > 1:
        named = {text: paths for text, paths in written.items() if any(path.stem[3:] == name for path in paths)}
        if len(named) != 1:
            listed = echo(", ".join(path.name for paths in written.values() for path in paths))
            return Verdict(name, "unreadable", f"several files have different answers ({listed}); keep one of them")
        written = named
    if not written and not unreadable:
        return Verdict(name, "missing", f"no file defines the function {name}")
    path = next(iter(written.values()))[0] if written else unreadable[0]
    try:
        return verdict(cells_of(path), exercise, hidden=hidden)
    except (ValueError, OSError) as error:
        return Verdict(name, "unreadable", echo(str(error)))


def answer_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the notebooks and .py files that may contain answers, in a folder and its subfolders.

    Tests, solutions, virtual environments, hidden folders, caches and copies of the package lora_np are left out. Links
    are listed, but not followed.

    Parameters
    ----------
    folder : path
        A student's folder.

    Returns
    -------
    list of Path
        Sorted by path.

    Raises
    ------
    ValueError
        If the folder contains more than 10,000 files.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.exercises import answer_files
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("01_count_lora.py", "test_answers.py"):
    ...         Path(folder, name).touch()
    ...     print([path.name for path in answer_files(folder)])
    ['01_count_lora.py']
    """
    folder = Path(folder)
    found = (Path(entry.path) for entry in entries(folder, _left_out) if entry.is_symlink() or entry.is_file())
    return sorted(path for path in found if path.suffix.lower() in SUFFIXES)


def _left_out(here: Path, listed: list[os.DirEntry[str]]) -> set[str]:
    """Return the names in a folder that cannot be answers: hidden and test files, environments, a copy of lora_np."""
    names = {entry.name for entry in listed}
    if "pyvenv.cfg" in names:
        return names
    out = {name for name in names if name.startswith((".", "__", "test_")) or name in NOT_ANSWERS}
    packages = {name for name in names if (here / name / "exercises" / "catalogue").is_dir()}
    if packages:
        out |= packages | names.intersection(OF_THE_PROJECT)
    if "exercises" in names:  # the course's folder of notebooks; its lessons define functions of the exercises too
        asked = {path.stem for path in sources()}
        out |= {name for name in names if LESSON.match(name) and Path(name).stem not in asked}
    return out


def defines(path: Path, function: str) -> bool:
    """Return True if the file is named after `function`, defines `function` in its text, or cannot be read."""
    if path.stem[3:] == function:
        return True
    try:
        text = read_bytes(path).decode("utf-8", "replace")
    except (ValueError, OSError):  # `find_answer` reports the reason
        return True
    return f"def {function}(" in text or f"{function} =" in text
