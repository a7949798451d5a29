"""From what a function did to what went wrong: which known mistake, made in the solution, does the same on every case?

A mistake is known as an edit of the solution, so the grader can make it, run it, and compare: no rule of thumb decides. Two
mistakes at once are two edits. What no edit explains is reported as unknown, with the smallest case that shows it.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .contain import Stopped, contained
from .exercise import Case, Exercise, Mistake, mutated
from .outcome import Odd, Outcome, alike, echo, run_program, same
from .program import program

AT_ONCE = 2  # mistakes that are looked for together


@dataclass(frozen=True)
class Verdict:
    """What the grader says of one answer. kind: "right", "blank", "known", "unknown", "raised", "changed", "stopped",
    "unreadable" or "missing"; `words` is one line, `details` may be several, `mistakes` are those that were recognised."""

    function: str
    kind: str
    words: str
    mistakes: tuple[Mistake, ...] = ()
    details: str = ""

    @property
    def passed(self) -> bool:
        return self.kind == "right"

    def __str__(self) -> str:
        mark = "✓" if self.passed else "✗"
        return "\n".join(filter(None, [f"{mark} {self.function}: {self.words}", self.details]))


def verdict(cells: Sequence[str], exercise: Exercise) -> Verdict:
    """Run the answer among `cells` in a process of its own, and say what it is."""
    name = exercise.function
    try:
        text = program(cells, name)
    except KeyError:
        return Verdict(name, "missing", f"there is no function {name} here")
    except SyntaxError as error:
        where = f" (line {error.lineno}: {echo(error.text, 80)})" if error.text else ""
        return Verdict(name, "unreadable", f"Python cannot read its cell: {echo(error.msg)}{where}")
    outcomes = contained(text, exercise)
    if isinstance(outcomes, Stopped):
        return Verdict(name, "stopped", f"your function {outcomes.words}")
    return diagnose(outcomes, exercise, text)


def diagnose(outcomes: Sequence[Outcome], exercise: Exercise, text: str = "") -> Verdict:
    """What these outcomes, one a case, say of the function that had them. `text` is its program, to quote from."""
    name, cases = exercise.function, exercise.cases()
    expected = list(run_program(exercise.solution, exercise))
    if len(outcomes) == len(expected) and all(map(alike, outcomes, expected)):
        changed = sorted({argument for outcome in outcomes for argument in outcome.changed})
        if changed:
            what = " and ".join(changed)
            return Verdict(
                name, "changed", f"the numbers are right, but it changes {what}, which its caller still needs"
            )
        return Verdict(name, "right", f"right on all {len(cases)} cases")
    if all(outcome.blank for outcome in outcomes):
        return Verdict(name, "blank", "not written yet: put your answer where NotImplementedError is raised")
    found = recognised(outcomes, exercise)
    if found:
        words = " and ".join(mistake.name for mistake in found) + "."
        if len(found) == 1:
            return Verdict(name, "known", f"{words} {found[0].hint}", found)
        hints = "\n".join(f"  – {mistake.hint}" for mistake in found)
        return Verdict(name, "known", f"two mistakes at once: {words}", found, hints)
    failing = [i for i, (mine, right) in enumerate(zip(outcomes, expected, strict=False)) if not alike(mine, right)]
    i = min(failing, key=lambda i: size(cases[i]))
    if outcomes[i].raised is not None:
        everywhere = len({outcome.raised for outcome in outcomes}) == 1  # then the case has nothing to do with it
        return Verdict(name, "raised", raised(outcomes[i], text), details="" if everywhere else shown(cases[i]))
    words = f"wrong, and not one of the {len(exercise.mistakes)} mistakes I know."
    if outcomes[i].value is None:
        words = "it returns nothing: does every path end in a return?"
    details = f"{shown(cases[i])}\n{comparison(outcomes[i].value, expected[i].value)}"
    return Verdict(name, "unknown", words, details=details)


# ------------------------------------------------------------------------------------------------- the mistakes, made here


def recognised(outcomes: Sequence[Outcome], exercise: Exercise) -> tuple[Mistake, ...]:
    """The mistake that comes to the same on every case, or the two that together do; none where nothing known does.

    Where more than one of a kind explains the outcomes, the cases cannot tell, and the first is named.
    """
    if all(outcome.raised for outcome in outcomes):
        return ()  # an exception everywhere says nothing but itself
    with ONE_AT_A_TIME:
        for known in edited(exercise):
            if all(map(alike, outcomes, known)):
                return known.mistakes
    return ()


class Known:
    """One mistake, or two, made in the solution: iterating gives what that comes to, a case after the other.

    A case is tried when somebody asks for it, and once: most programs are dropped at their first.
    """

    def __init__(self, mistakes: tuple[Mistake, ...], text: str, exercise: Exercise) -> None:
        self.mistakes, self.text = mistakes, text
        self.seen: list[Outcome] = []
        self.to_come = run_program(text, exercise)

    def __iter__(self) -> Iterator[Outcome]:
        yield from self.seen
        for outcome in self.to_come:
            self.seen.append(outcome)
            yield outcome


ONE_AT_A_TIME = (
    threading.Lock()
)  # a class is graded in threads, and two must not ask the same program for its next case


@cache
def edited(exercise: Exercise) -> tuple[Known, ...]:
    """Every known mistake, and every two that can be made together, single ones first."""
    solution = exercise.solution
    single = [(mistake, variant) for mistake in exercise.mistakes for variant in mistake.variants]
    known = []
    for count in range(1, AT_ONCE + 1):
        for edits in itertools.combinations(single, count):
            mistakes = tuple(mistake for mistake, _ in edits)
            if len(set(mistakes)) < count:
                continue  # two ways to make the same mistake
            texts = (mutated(solution, list(order)) for order in itertools.permutations(edits))
            text = next((text for text in texts if text is not None), None)
            if text is not None:
                known.append(Known(mistakes, text, exercise))
    return tuple(known)


# ------------------------------------------------------------------------------------------------------ what to show of it


def size(case: Case) -> int:
    """How many numbers a case has: the smallest is the easiest to follow by hand."""
    return sum(np.size(argument) for argument in case.arguments.values() if not isinstance(argument, dict | str))


def raised(outcome: Outcome, text: str) -> str:
    """What was raised, in one line that quotes the student's own."""
    lines = text.splitlines()
    quoted = f" at `{echo(lines[outcome.line - 1], 90)}`" if outcome.line and outcome.line <= len(lines) else ""
    words = echo(outcome.raised or "", 240)
    if words.startswith("MemoryError") or "ArrayMemoryError" in words:
        return f"it asks for far more memory than the answer needs{quoted}: {words}"
    if words.startswith("SystemExit"):
        return f"it ends the program (sys.exit or exit){quoted}, where it should return"
    return f"it raises {words}{quoted}"


def shown(case: Case) -> str:
    """The case for a reader: each argument with its shape and, where they are few, its values."""
    lines = [f"  {name} = {value_text(value)}" for name, value in case.arguments.items()]
    return "\n".join([f"  The smallest case that shows it ({case.label}):", *lines])


def comparison(mine: Any, right: Any) -> str:
    """What came out beside what was expected, down to the part that differs."""
    where = ""
    while isinstance(mine, tuple | dict) and isinstance(right, type(mine)) and len(mine) == len(right):
        keys = list(right) if isinstance(right, dict) else range(len(right))
        if isinstance(right, dict) and mine.keys() != right.keys():
            break
        key = next(key for key in keys if not same(mine[key], right[key]))
        where, mine, right = f"{where}[{key!r}]", mine[key], right[key]
    of = f" (part {where} of the answer)" if where else ""
    return f"  expected{of}: {value_text(right)}\n  got{of}:      {value_text(mine)}"


def value_text(value: Any) -> str:
    """A value as a student reads it: an array with its shape, and its numbers where there are at most 24."""
    if isinstance(value, np.ndarray):
        numbers = np.array2string(value, precision=4, suppress_small=True, separator=", ").replace("\n", "\n      ")
        return f"array of shape {value.shape}" + (f":\n      {numbers}" if value.size <= 24 else "")
    if isinstance(value, tuple | list):
        return f"({', '.join(value_text(item) for item in value)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {value_text(item)}" for key, item in value.items()) + "}"
    return value.words if isinstance(value, Odd) else echo(f"{value:.10g}" if isinstance(value, float) else str(value))
