"""The definition of an exercise: the function that a student writes, the cases that test it, and the known mistakes."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .program import program
from .reading import percent_cells

SOURCES = Path(__file__).parent / "sources"
BEGIN, END = "# BEGIN SOLUTION", "# END SOLUTION"
BLANK = (
    'raise NotImplementedError("your answer goes here")'  # the student edition has this line in place of the solution
)

Variant = Mapping[str, str]  # text of the solution → text that replaces it


@dataclass(frozen=True)
class Case:
    """One call of a student's function.

    Parameters
    ----------
    label : str
        A short description for messages.
    arguments : dict
        The arguments by name, in the order of the function's parameters.

    Examples
    --------
    >>> from lora_np.exercises import exercise
    >>> exercise("count_lora").cases()[0]
    Case(label='one matrix, two features out, three in', arguments={'shapes': [(2, 3)], 'r': 2})
    """

    label: str
    arguments: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Mistake:
    """A known mistake: a name, a hint, and one or more ways to change the solution so that it has the mistake.

    Parameters
    ----------
    name : str
        The mistake in a few words.
    hint : str
        A hint that helps the student to find the mistake and does not contain the answer.
    *variants : mapping of str to str
        Ways to make the mistake. Each key is a text that occurs once in the solution; the value replaces this text.

    Examples
    --------
    >>> from lora_np.exercises import Mistake
    >>> mistake = Mistake("the rank is missing", "Try r = 1 and r = 2.", {"r * in_": "in_"})
    >>> len(mistake.variants)
    1
    """

    name: str
    hint: str
    variants: tuple[Variant, ...]

    def __init__(self, name: str, hint: str, *variants: Variant) -> None:
        for field, value in (("name", name), ("hint", hint), ("variants", variants)):
            object.__setattr__(self, field, value)


class NoAnswer(Exception):
    """A function returned an object of the wrong kind; the message describes the object.

    Examples
    --------
    >>> from lora_np.exercises import NoAnswer
    >>> str(NoAnswer("the function returns one int; expected two arrays"))
    'the function returns one int; expected two arrays'
    """


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function and return its result: the default of `Exercise.observe`.

    Parameters
    ----------
    function : callable
        The student's function.
    *arguments : object
        The arguments of a case.

    Returns
    -------
    object
        The function's result.

    Examples
    --------
    >>> from lora_np.exercises.exercise import call
    >>> call(max, 2, 3)
    3
    """
    return function(*arguments)


@dataclass(frozen=True, eq=False)
class Exercise:
    """One exercise of the course; its text and solution are in the file of the same name in sources/.

    Parameters
    ----------
    function : str
        Name of the function to write.
    title : str
        Title of the exercise.
    minutes : int
        Estimated working time.
    needs : str
        What a student should read or do before the exercise.
    cases : callable
        A function that returns the cases; every call without an argument returns the same cases. Each known mistake must
        give a wrong result in at least one of these cases. `cases(seed)` returns cases with other numbers.
    mistakes : tuple of Mistake
        The known mistakes.
    returns : tuple of str
        Names of the returned values for messages, for example ("dx", "dw").
    observe : callable
        A function that is called with the student's function and the arguments of a case, and returns the value to
        compare. By default this value is the function's result. If the result contains random numbers, the value is a
        description that is equal for all right answers. If the function changes a state, the value contains the state.
        `observe` raises `NoAnswer` if the result is of the wrong kind.
    tells : bool
        True if a message may show the expected value. False if the expected value reveals the answer.

    Examples
    --------
    >>> from lora_np.exercises import exercise
    >>> asked = exercise("lora_forward")
    >>> asked.title, asked.minutes, len(asked.cases())
    ('The forward pass of LoRA', 10, 4)
    """

    function: str
    title: str
    minutes: int
    needs: str
    cases: Callable[..., list[Case]]
    mistakes: tuple[Mistake, ...]
    returns: tuple[str, ...] = ()
    observe: Callable[..., Any] = call
    tells: bool = True

    @property
    def source(self) -> Path:
        """The jupytext file of the exercise, with its solution."""
        return next(path for path in sources() if path.stem[3:] == self.function)

    @property
    def text(self) -> str:
        """The text of the source file."""
        return self.source.read_text(encoding="utf-8")

    @property
    def question(self) -> str:
        """The question that follows a right answer, as Markdown on one line."""
        after = self.text.split("# **Explain.**", 1)[1].split("\n\n", 1)[0]
        return " ".join(line.lstrip("# ") for line in after.splitlines()).strip()

    @property
    def solution(self) -> str:
        """The program of the reference solution."""
        return program(percent_cells(with_solution(self.text)), self.function)

    @property
    def blank(self) -> str:
        """The program of the exercise before the student writes an answer."""
        return program(percent_cells(without_solution(self.text)), self.function)


def mutated(solution: str, mistakes: list[tuple[Mistake, Variant]]) -> str | None:
    """Return the solution with the given mistakes, or None if the mistakes cannot be made together."""
    for _, variant in mistakes:
        for old, new in variant.items():
            if solution.count(old) != 1:
                return None
            solution = solution.replace(old, new)
    return solution


SOLUTION = re.compile(rf"^([ \t]*){BEGIN}\n.*?{END}\n?", re.DOTALL | re.MULTILINE)


def without_solution(text: str) -> str:
    """Return the text without its solutions.

    Code is replaced by a line that raises NotImplementedError, and words are replaced by "Your answer:".
    """

    def blank(found: re.Match[str]) -> str:
        indent = found[1]
        return f"{indent}{BLANK}\n" if indent else "# *Your answer:*\n"

    return SOLUTION.sub(blank, text)


def with_solution(text: str) -> str:
    """Return the text with its solutions, but without the lines that mark the beginning and end of a solution."""
    return re.sub(rf"^[ \t]*({BEGIN}|{END})\n", "", text, flags=re.MULTILINE)


def sources() -> list[Path]:
    """Return the source files of the exercises in the order of the course."""
    return sorted(SOURCES.glob("[0-9][0-9]_*.py"))


def exercise(function: str) -> Exercise:
    """Return the exercise that asks for a function.

    Parameters
    ----------
    function : str
        Name of the function, for example "lora_forward".

    Returns
    -------
    Exercise
        The exercise.

    Raises
    ------
    KeyError
        If no exercise asks for this function. The message lists the functions.

    Examples
    --------
    >>> from lora_np.exercises import exercise
    >>> exercise("count_lora").title
    'How many numbers LoRA trains'
    """
    known = [path.stem[3:] for path in sources()]
    if function not in known:
        raise KeyError(f"no exercise has the function {function!r}; expected one of {', '.join(known)}")
    return import_module(f".catalogue.{function}", __package__).EXERCISE


def exercises() -> list[Exercise]:
    """Return all exercises in the order of the course.

    Returns
    -------
    list of Exercise
        The exercises.

    Examples
    --------
    >>> from lora_np.exercises import exercises
    >>> [asked.function for asked in exercises()][:3]
    ['count_lora', 'lora_forward', 'lora_backward']
    """
    return [exercise(path.stem[3:]) for path in sources()]


def fresh(case: Case) -> dict[str, Any]:
    """Return a deep copy of the case's arguments, so that a function cannot change the originals."""
    return copy.deepcopy(case.arguments)
