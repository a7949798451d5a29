"""Which known mistake, made in the solution, comes to the same as a student's function on every case?

No rule of thumb decides: a mistake is known as an edit of the solution, so it can be made, run, and compared. Two mistakes at
once are two edits.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from .exercise import Exercise, Mistake, mutated
from .outcome import Outcome, alike, is_nan, run_program

AT_ONCE = 2  # mistakes that are looked for together
ONE_AT_A_TIME = threading.Lock()  # a class is graded in threads, and two must not ask one program for its next case


def recognised(
    outcomes: Sequence[Outcome], expected: Sequence[Outcome], exercise: Exercise, patience: float = math.inf
) -> tuple[Mistake, ...]:
    """The mistake that explains the outcomes, or the two that together do; none where nothing known does.

    It has to come to the same on every case, exceptions of the same kind included, and on one that fails to the same
    numbers: exceptions and NaN alone are alike whatever made them. Where more than one of a kind explains the outcomes, the
    cases cannot tell, and the first is named. Pairs are looked for at most `patience` seconds, where somebody waits.
    """
    until = time.monotonic() + patience
    failing = [not alike(mine, right) for mine, right in zip(outcomes, expected, strict=True)]
    if not any(f and mine.raised is None and not is_nan(mine.value) for f, mine in zip(failing, outcomes, strict=True)):
        return ()
    with ONE_AT_A_TIME, same_random_numbers():
        try:
            for known in edited(exercise):
                if len(known.mistakes) > 1 and time.monotonic() > until:
                    return ()
                if all(map(explains, known, outcomes)):
                    return known.mistakes
        except BaseException:  # interrupted in a case: nobody may go on with half of one
            edited.cache_clear()
            raise
    return ()


def explains(known: Outcome, mine: Outcome) -> bool:
    """Whether a mistake that comes to `known` may be what came to `mine`."""
    kinds = [(outcome.raised or "").partition(":")[0] for outcome in (known, mine)]
    return alike(known, mine) and kinds[0] == kinds[1]


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


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """NumPy's global generator as it was before: some mistakes draw from it, and the notebook around must not notice."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
