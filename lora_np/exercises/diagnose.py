"""Turn outcomes into a verdict: right, a known mistake with a hint, or the smallest case with a wrong result."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from .contain import Contained, Stopped
from .exercise import Case, Exercise, Mistake, NoAnswer
from .outcome import Odd, Outcome, alike, echo, is_nan, run_cases, run_program, same
from .program import program
from .recognise import recognised
from .shapes import explained

NEW_CASES = 2  # a function fails if it is wrong on all of these sets of random cases; one result can be wrong by chance
KINDS = {  # the kinds of verdict, as the page for teachers explains them
    "right": "the function is right on every case, and the inputs that must stay unchanged are unchanged",
    "known": "the function makes one or two mistakes of the list below",
    "unknown": "the function makes a mistake that is not in the list; `exercises check FILE` shows the smallest wrong case",
    "raised": "the function raised an exception; the column `words` quotes the student's line that raised the exception",
    "changed": "the function changes an input in place, but this input must stay unchanged",
    "blank": "the function is not written yet, or not finished",
    "stopped": "the answer ran too long, printed too much, or ended its Python process",
    "unreadable": "the file is neither Python nor a notebook, or several files have different answers to one exercise",
    "missing": "no file defines the function",
}


@dataclass(frozen=True)
class Verdict:
    """The grader's verdict on one answer. `str(verdict)` is the text that a student reads.

    Parameters
    ----------
    function : str
        Name of the exercise's function.
    kind : str
        One of "right", "known", "unknown", "raised", "changed", "blank", "stopped", "unreadable" and "missing".
    words : str
        One line that explains the kind.
    mistakes : tuple of Mistake
        The mistakes that were recognised.
    details : str
        Further lines, for example the smallest case with a wrong result.

    Examples
    --------
    >>> from lora_np.exercises import Verdict
    >>> said = Verdict("count_lora", "right", "right on all 5 cases")
    >>> print(said, said.passed)
    ✓ count_lora: right on all 5 cases True
    """

    function: str
    kind: str
    words: str
    mistakes: tuple[Mistake, ...] = ()
    details: str = ""

    @property
    def passed(self) -> bool:
        """True if the answer is right."""
        return self.kind == "right"

    def with_details(self, more: str) -> Verdict:
        """Return a copy of the verdict with further lines of details.

        Parameters
        ----------
        more : str
            One or more lines of text.

        Returns
        -------
        Verdict
            A new verdict.
        """
        return replace(self, details="\n".join(filter(None, [self.details, more])))

    def __str__(self) -> str:
        """Return ✓ or ✗, the function's name, the words and the details."""
        mark = "✓" if self.passed else "✗"
        return "\n".join(filter(None, [f"{mark} {self.function}: {self.words}", self.details]))


def verdict(
    cells: Sequence[str], exercise: Exercise, patience: float = math.inf, hidden: Sequence[str] = ()
) -> Verdict:
    """Find the answer in the cells, run it in a separate process and return the verdict.

    `patience` has the same meaning as in `recognised`, and `hidden` as in `Contained`.
    """
    name = exercise.function
    try:
        text = program(cells, name)
    except KeyError:
        return Verdict(name, "missing", f"no cell defines the function {name}")
    except SyntaxError as error:
        return unreadable(name, error)
    with Contained(text, name, hidden) as function:
        try:
            said = judged(function, exercise, text, patience)
        except Stopped as stopped:
            said = Verdict(name, "stopped", f"your function {stopped}")
        printed = function.printed()
    return said if said.passed or not printed else said.with_details(f"  It printed:\n{quoted(printed)}")


def judged(function: Contained, exercise: Exercise, text: str, patience: float) -> Verdict:
    """Run the contained function on the cases and return the verdict.

    A function that is right on the cases also gets new cases with random numbers, because the cases and their results
    are public. If a result is wrong, a second set of new cases is tried; the function fails if it is wrong on both
    sets.
    """
    function.start()

    def outcomes(cases: Sequence[Case]) -> list[Outcome]:
        called = function if function.is_defined else None
        return list(run_cases(called, function.passed_over, exercise, cases))

    said = diagnose(outcomes(exercise.cases()), exercise, text, patience)
    if not said.passed:
        return said
    for _ in range(NEW_CASES):
        cases = exercise.cases(secrets.randbits(64))
        expected = run_program(exercise.solution, exercise, cases)
        if all(alike(*pair) and not pair[0].changed for pair in zip(outcomes(cases), expected, strict=True)):
            return said
    words = f"right on the {len(exercise.cases())} known cases, but wrong on new cases with random numbers"
    return Verdict(exercise.function, "unknown", f"{words}. Does the function use all its arguments?")


@cache
def right_outcomes(exercise: Exercise) -> tuple[Outcome, ...]:
    """Return the solution's outcomes on the cases."""
    return tuple(run_program(exercise.solution, exercise))


def unreadable(name: str, error: SyntaxError) -> Verdict:
    """Return the verdict on a function in a cell with a syntax error."""
    where = f" (line {error.lineno}: {echo(error.text, 80)})" if error.text else ""
    return Verdict(name, "unreadable", f"Python cannot read the cell that defines it: {echo(error.msg)}{where}")


def diagnose(outcomes: Sequence[Outcome], exercise: Exercise, text: str = "", patience: float = math.inf) -> Verdict:
    """Return the verdict for a function's outcomes, one per case; messages quote lines of the program `text`."""
    name, cases = exercise.function, exercise.cases()
    expected = right_outcomes(exercise)
    right = len(outcomes) == len(expected) and all(map(alike, outcomes, expected))
    changed = sorted({argument for outcome in outcomes for argument in outcome.changed})
    if right and not changed:
        return Verdict(name, "right", f"right on all {len(cases)} cases")
    if len(outcomes) != len(expected):
        return Verdict(name, "stopped", "your function has no outcome for some of the cases")
    failing = [i for i, (mine, theirs) in enumerate(zip(outcomes, expected, strict=True)) if not alike(mine, theirs)]
    if failing and all(outcomes[i].blank for i in failing):
        return Verdict(
            name, "blank", "not written yet: replace the line that raises NotImplementedError by your answer"
        )
    if found := recognised(outcomes, expected, exercise, patience) if failing else ():
        return known(name, found)
    if changed:
        numbers = "the result is right, but the function" if right else "the function"
        return Verdict(
            name,
            "changed",
            f"{numbers} changes {' and '.join(changed)} in place; the caller still needs the old values",
        )
    i = min(failing, key=lambda i: (outcomes[i].raised is None, size(cases[i])))  # an exception is the most useful
    if outcomes[i].raised is not None:
        everywhere = len({outcome.raised for outcome in outcomes}) == 1  # then the case does not matter
        return Verdict(name, "raised", raised(outcomes[i], text), details="" if everywhere else shown(cases[i]))
    known_mistakes = f"not one of the {len(exercise.mistakes)} known mistakes"
    which = f" ({cases[i].label})" if len(failing) == 1 else ""
    words = f"wrong on {len(failing)} of {len(cases)} cases{which}, and {known_mistakes}"
    if outcomes[i].value is None:
        words = "it returns None. Does every path through the function end with a return?"
    elif all(is_nan(outcome.value) for outcome in outcomes):
        words = "every result is NaN, which is 0/0, ∞ − ∞ or 0·∞. Which line computes the first NaN?"
    details = f"{shown(cases[i])}\n{comparison(outcomes[i].value, expected[i].value, exercise)}"
    return Verdict(name, "unknown", words, details=details)


def known(name: str, found: tuple[Mistake, ...]) -> Verdict:
    """Return the verdict that names the given mistakes with their hints."""
    if len(found) == 1:
        return Verdict(name, "known", f"{found[0].name}. {found[0].hint}", found)
    hints = "\n".join(f"  {i}. {mistake.name}. {mistake.hint}" for i, mistake in enumerate(found, 1))
    return Verdict(name, "known", f"{len(found)} mistakes at once.", found, hints)


# -------------------------------------------------------------------------------------------------- texts of the details


def size(case: Case) -> int:
    """Return how many numbers a case has. A case with few numbers is easy to compute by hand."""
    return sum(np.size(argument) for argument in case.arguments.values() if not isinstance(argument, dict | str))


def raised(outcome: Outcome, text: str) -> str:
    """Return the exception in one line, with the line of the student's program that raised it."""
    lines = text.splitlines()
    line = lines[outcome.line - 1] if outcome.line and outcome.line <= len(lines) else ""
    quote = f" at `{echo(line, 90)}`" if line else ""
    kind, _, message = echo(outcome.raised or "", 240).partition(": ")
    if kind == NoAnswer.__name__:
        return message
    if "MemoryError" in kind:
        return f"it needs far more memory than a right answer{quote}: {message}"
    if kind == "SystemExit":
        return f"it ends the program (sys.exit or exit){quote}; it must return its result"
    begin, end = outcome.columns or (0, None)
    expression = line.encode()[begin:end].decode(errors="replace")
    if about_shapes := explained(message, expression, outcome.shapes):
        quote = f", at `{echo(expression, 90)}`." if expression else "."
        return f"it raises {kind}: {about_shapes[0]}{quote} {echo(about_shapes[1], 300)}".rstrip()
    return f"it raises {kind}{message and f': {message}'}{quote}"


def shown(case: Case) -> str:
    """Return the case as assignments that can be pasted into a cell; a large array is described by its shape."""
    lines = [f"  {name} = {value_text(value, len(name) + 5)}" for name, value in case.arguments.items()]
    return "\n".join([f"  The smallest case that is wrong ({case.label}):", *lines])


def comparison(mine: Any, right: Any, exercise: Exercise) -> str:
    """Return the student's value and the expected value as text; for a tuple or dict, only the first entry that
    differs."""
    where: list[str] = []
    while isinstance(mine, tuple | dict) and isinstance(right, type(mine)) and len(mine) == len(right):
        keys = list(right) if isinstance(right, dict) else range(len(right))
        if isinstance(mine, dict) and isinstance(right, dict) and mine.keys() != right.keys():
            break
        key = next(key for key in keys if not same(mine[key], right[key]))
        where.append(exercise.returns[key] if not where and key in range(len(exercise.returns)) else str(key))
        mine, right = mine[key], right[key]
    of = f" for {', '.join(where)}" if where else ""
    lines = [f"  got{of}: {value_text(mine, 8 + len(of))}"]
    if isinstance(mine, np.ndarray) and np.shape(mine) == np.shape(right) and mine.dtype.kind in "biuf":
        dtype = f", in {mine.dtype}" if mine.dtype != np.float64 else ""
        lines.append(f"  largest difference {abs(mine - right).max():.2g}{dtype}")
    if exercise.tells:
        if isinstance(mine, np.ndarray) and isinstance(right, np.ndarray) and mine.shape != right.shape:
            lines.append(f"  your result has the shape {mine.shape}, expected {right.shape}")
        lines.insert(0, f"  expected{of}: {value_text(right, 13 + len(of))}")
    return "\n".join(lines)


def value_text(value: Any, indent: int = 0, shape: bool = True) -> str:
    """Return a value as Python source; an array of more than 24 numbers is described by its shape.

    `indent`: spaces before the second and later lines. `shape`: True adds the shape of an array as a comment.
    """
    if isinstance(value, np.ndarray):
        if value.size > 24:
            return f"an array of shape {value.shape}"
        text = np.array2string(value, precision=6, suppress_small=True, separator=", ", prefix=" " * (indent + 9))
        return f"np.array({text})" + (f"  # {value.shape}" if shape else "")
    if isinstance(value, tuple | list):
        inner = ", ".join(value_text(item, indent, False) for item in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}": {value_text(item, indent, False)}' for key, item in value.items()) + "}"
    if isinstance(value, np.random.Generator):
        return "np.random.default_rng(…)"
    return value.words if isinstance(value, Odd) else echo(f"{value:.10g}" if type(value) is float else repr(value))


def quoted(printed: str, most: int = 8) -> str:
    """Return the first lines of the printed text, indented."""
    lines = [f"    {echo(line, 110)}" for line in printed.splitlines() if line.strip()]
    return "\n".join(lines[:most] + ["    …"] * (len(lines) > most))
