"""An exercise: the one function a student writes, the cases it is tried on, and the mistakes that are known by name."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .program import percent_cells, program

SOURCES = Path(__file__).parent / "sources"
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
BLANK = 'raise NotImplementedError("your answer goes here")'  # where the student edition has the answer to be written

Variant = Mapping[str, str]  # what is written instead of what, in the solution


@dataclass(frozen=True)
class Case:
    """One call: `arguments` by name, in the order of the function's own."""

    label: str
    arguments: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A wrong answer that is known: the solution with some of its text replaced.

    name: what the student did, in a few words. hint: a thought that leads to it and does not give the answer away.
    variants: ways to make it, each {what the solution says, once: what the student says instead}.
    """

    name: str
    hint: str
    variants: tuple[Variant, ...]

    def __init__(self, name: str, hint: str, *variants: Variant) -> None:
        for field, value in (("name", name), ("hint", hint), ("variants", variants)):
            object.__setattr__(self, field, value)


class NoAnswer(Exception):
    """What a function returned is of another kind than what was asked for; the message says what it returned."""


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The plainest observation: what the function returns."""
    return function(*arguments)


@dataclass(frozen=True, eq=False)
class Exercise:
    """What the grader knows of an exercise; its text and its solution are the source of the same name in sources/.

    function: the function to write. title, minutes, needs: for people (`needs`: what to have read or done before).
    cases: makes the cases, seeded, the same each time; together they tell the mistakes apart.
    returns: what the parts of its answer are called ("dx", "dw"), for messages.
    observe: (function, *arguments) → what is compared. Where random numbers or a state are the subject, it says what of
        them counts ("uniform", "the same mask"), so that every right answer looks alike, and every mistake like itself.
        What the function is to change it hands over as copies: an argument that is changed is reported.
        Where an answer is of another kind altogether, it raises NoAnswer with what it is.
    tells: whether a message may show what was expected; where `observe` says it in words, that would be the answer.
    """

    function: str
    title: str
    minutes: int
    needs: str
    cases: Callable[[], list[Case]]
    mistakes: tuple[Mistake, ...]
    returns: tuple[str, ...] = ()
    observe: Callable[..., Any] = call
    tells: bool = True

    @property
    def source(self) -> Path:
        """The jupytext file that both editions are made from."""
        return next(path for path in sources() if path.stem[3:] == self.function)

    @property
    def text(self) -> str:
        """The source file's text."""
        return self.source.read_text(encoding="utf-8")

    @property
    def solution(self) -> str:
        """The program of the reference solution."""
        return program(percent_cells(with_solution(self.text)), self.function)

    @property
    def blank(self) -> str:
        """The same program as the student gets it."""
        return program(percent_cells(without_solution(self.text)), self.function)


def mutated(solution: str, mistakes: list[tuple[Mistake, Variant]]) -> str | None:
    """The solution with these mistakes made, or None where they cannot be made together."""
    for _, variant in mistakes:
        for old, new in variant.items():
            if solution.count(old) != 1:
                return None
            solution = solution.replace(old, new)
    return solution


SOLUTION = re.compile(rf"^([ \t]*){BEGIN}\n.*?{END}\n?", re.DOTALL | re.MULTILINE)


def without_solution(text: str) -> str:
    """The text with every solution taken out: of code what is left raises NotImplementedError, of words an invitation."""

    def blank(found: re.Match[str]) -> str:
        indent = found[1]
        return f"{indent}{BLANK}\n" if indent else "# *Your answer:*\n"

    return SOLUTION.sub(blank, text)


def with_solution(text: str) -> str:
    """The text with its solutions, and without the marks around them."""
    return re.sub(rf"^[ \t]*({BEGIN}|{END})\n", "", text, flags=re.MULTILINE)


def sources() -> list[Path]:
    """The exercises' source files, in the course's order."""
    return sorted(SOURCES.glob("[0-9][0-9]_*.py"))


def exercise(function: str) -> Exercise:
    """The exercise that asks for `function`. Raises KeyError naming those that there are."""
    known = [path.stem[3:] for path in sources()]
    if function not in known:
        raise KeyError(f"no exercise asks for a function {function!r}; they ask for {', '.join(known)}")
    return import_module(f".catalogue.{function}", __package__).EXERCISE


def exercises() -> list[Exercise]:
    """All of them, in the course's order."""
    return [exercise(path.stem[3:]) for path in sources()]


def fresh(case: Case) -> dict[str, Any]:
    """The case's arguments, copied, so that nothing a function does to them reaches anybody else."""
    return copy.deepcopy(case.arguments)
