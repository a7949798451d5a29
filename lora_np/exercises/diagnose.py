"""From what a function did to a verdict in words: right, a known mistake and its hint, or the smallest case that is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .contain import Stopped, contained
from .exercise import Case, Exercise, Mistake, NoAnswer
from .outcome import Odd, Outcome, alike, echo, is_nan, run_program, same
from .program import program
from .recognise import recognised

KINDS = {  # what a verdict may be, as the page for teachers explains it
    "right": "the function is right on every case, and changed nothing that it should not",
    "known": "a mistake of the list below, or two of them",
    "unknown": "wrong on a case, in a way that is not listed: `exercises check FILE` shows the smallest case",
    "raised": "an exception, with the student's line that raised it",
    "changed": "an input was changed in place, which its caller still needs",
    "blank": "not written yet, or not to its end",
    "stopped": "an endless loop, a flood of prints, an end of the whole process",
    "unreadable": "no Python, no notebook, or several files that answer the same exercise differently",
    "missing": "no file defines the function",
}


@dataclass(frozen=True)
class Verdict:
    """What the grader says of one answer: one of KINDS, one line of words, and perhaps more lines of details."""

    function: str
    kind: str
    words: str
    mistakes: tuple[Mistake, ...] = ()
    details: str = ""

    @property
    def passed(self) -> bool:
        return self.kind == "right"

    def with_details(self, more: str) -> Verdict:
        """The same verdict with something more below it."""
        return replace(self, details="\n".join(filter(None, [self.details, more])))

    def __str__(self) -> str:
        mark = "✓" if self.passed else "✗"
        return "\n".join(filter(None, [f"{mark} {self.function}: {self.words}", self.details]))


def verdict(cells: Sequence[str], exercise: Exercise, patience: float = math.inf) -> Verdict:
    """Run the answer among `cells` in a process of its own, and say what it is. `patience`: see `recognised`."""
    name = exercise.function
    try:
        text = program(cells, name)
    except KeyError:
        return Verdict(name, "missing", f"there is no function {name} here")
    except SyntaxError as error:
        where = f" (line {error.lineno}: {echo(error.text, 80)})" if error.text else ""
        return Verdict(name, "unreadable", f"Python cannot read its cell: {echo(error.msg)}{where}")
    outcomes, printed = contained(text, exercise)
    if isinstance(outcomes, Stopped):
        said = Verdict(name, "stopped", f"your function {outcomes.words}")
    else:
        said = diagnose(outcomes, exercise, text, patience)
    return said if said.passed or not printed else said.with_details(f"  It printed:\n{quoted(printed)}")


def diagnose(outcomes: Sequence[Outcome], exercise: Exercise, text: str = "", patience: float = math.inf) -> Verdict:
    """What these outcomes, one a case, say of the function that had them. `text` is its program, to quote from."""
    name, cases = exercise.function, exercise.cases()
    expected = list(run_program(exercise.solution, exercise))
    right = len(outcomes) == len(expected) and all(map(alike, outcomes, expected))
    changed = sorted({argument for outcome in outcomes for argument in outcome.changed})
    if right and not changed:
        return Verdict(name, "right", f"right on all {len(cases)} cases")
    if len(outcomes) != len(expected):
        return Verdict(name, "stopped", "your function left no outcome for some of the cases")
    failing = [i for i, (mine, theirs) in enumerate(zip(outcomes, expected, strict=True)) if not alike(mine, theirs)]
    if failing and all(outcomes[i].blank for i in failing):
        return Verdict(name, "blank", "not written yet: put your answer where NotImplementedError is raised")
    if found := recognised(outcomes, expected, exercise, patience) if failing else ():
        return known(name, found)
    if changed:
        numbers = "the numbers are right, but it" if right else "it"
        return Verdict(name, "changed", f"{numbers} changes {' and '.join(changed)}, which its caller still needs")
    i = min(failing, key=lambda i: (outcomes[i].raised is None, size(cases[i])))  # an exception says most
    if outcomes[i].raised is not None:
        everywhere = len({outcome.raised for outcome in outcomes}) == 1  # then the case has nothing to do with it
        return Verdict(name, "raised", raised(outcomes[i], text), details="" if everywhere else shown(cases[i]))
    words = f"wrong, and not one of the {len(exercise.mistakes)} mistakes I know."
    if outcomes[i].value is None:
        words = "it returns nothing: does every path end in a return?"
    elif all(is_nan(outcome.value) for outcome in outcomes):
        words = "it comes to NaN, which is 0/0, ∞ − ∞ or 0·∞: which line makes the first one?"
    details = f"{shown(cases[i])}\n{comparison(outcomes[i].value, expected[i].value, exercise)}"
    return Verdict(name, "unknown", words, details=details)


def known(name: str, found: tuple[Mistake, ...]) -> Verdict:
    """The verdict that names these mistakes, each with its hint."""
    if len(found) == 1:
        return Verdict(name, "known", f"{found[0].name}. {found[0].hint}", found)
    hints = "\n".join(f"  {i}. {mistake.name}. {mistake.hint}" for i, mistake in enumerate(found, 1))
    return Verdict(name, "known", f"{len(found)} mistakes at once.", found, hints)


# ------------------------------------------------------------------------------------------------------ what to show of it


def size(case: Case) -> int:
    """How many numbers a case has: the smallest is the easiest to follow by hand."""
    return sum(np.size(argument) for argument in case.arguments.values() if not isinstance(argument, dict | str))


def raised(outcome: Outcome, text: str) -> str:
    """What was raised, in one line that quotes the student's own."""
    lines = text.splitlines()
    quote = f" at `{echo(lines[outcome.line - 1], 90)}`" if outcome.line and outcome.line <= len(lines) else ""
    kind, _, message = echo(outcome.raised or "", 240).partition(": ")
    if kind == NoAnswer.__name__:
        return message
    if "MemoryError" in kind:
        return f"it asks for far more memory than the answer needs{quote}: {message}"
    if kind == "SystemExit":
        return f"it ends the program (sys.exit or exit){quote}, where it should return"
    return f"it raises {kind}{message and f': {message}'}{quote}"


def shown(case: Case) -> str:
    """The case for a reader, and to be pasted into a cell: each argument, where it has few numbers with all of them."""
    lines = [f"  {name} = {value_text(value, len(name) + 5)}" for name, value in case.arguments.items()]
    return "\n".join([f"  The smallest case that shows it ({case.label}):", *lines])


def comparison(mine: Any, right: Any, exercise: Exercise) -> str:
    """What came out beside what was expected, down to the part that differs."""
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
        lines.insert(0, f"  expected{of}: {value_text(right, 13 + len(of))}")
    return "\n".join(lines)


def value_text(value: Any, indent: int = 0, shape: bool = True) -> str:
    """A value as one writes it in Python, its further lines indented; of an array with more than 24 numbers the shape.

    `shape`: with the shape of an array in a comment behind it, which inside a list would swallow the rest.
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
    """The first lines of what a program printed."""
    lines = [f"    {echo(line, 110)}" for line in printed.splitlines() if line.strip()]
    return "\n".join(lines[:most] + ["    …"] * (len(lines) > most))
