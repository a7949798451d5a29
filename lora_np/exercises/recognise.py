"""Find the known mistake that gives the same results as a student's function on every case.

Each mistake is an edit of the solution. The edited solution runs on the cases, and its outcomes are compared with the
student's outcomes. An answer with two mistakes is recognised by a solution with two edits.
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

AT_ONCE = 2  # the most mistakes at once that are recognised
ONE_AT_A_TIME = threading.Lock()  # grading uses threads, and two threads must not advance the same program


def recognised(
    outcomes: Sequence[Outcome], expected: Sequence[Outcome], exercise: Exercise, patience: float = math.inf
) -> tuple[Mistake, ...]:
    """Return the known mistake, or the two known mistakes, that give the student's outcomes; otherwise an empty tuple.

    All outcomes must be equal, including the types of exceptions. At least one wrong outcome must be a value that is
    not NaN, because different mistakes can raise the same exception or give NaN. If several mistakes give the same
    outcomes, the first mistake is returned.

    Parameters
    ----------
    outcomes : sequence of Outcome
        The student's outcomes, one per case.
    expected : sequence of Outcome
        The solution's outcomes.
    exercise : Exercise
        The exercise.
    patience : float
        Seconds that the search for two mistakes may take.

    Returns
    -------
    tuple of Mistake
        One mistake, two mistakes, or an empty tuple.
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
        except BaseException:  # if a case is interrupted, its generator cannot continue
            edited.cache_clear()
            raise
    return ()


def explains(known: Outcome, mine: Outcome) -> bool:
    """Return whether the student's outcome `mine` equals the outcome `known` of a known mistake, for one case."""
    kinds = [(outcome.raised or "").partition(":")[0] for outcome in (known, mine)]
    return alike(known, mine) and kinds[0] == kinds[1]


class Known:
    """The solution with one or two known mistakes; iteration yields the outcomes of this solution, one per case.

    Each case runs at most once, and only when its outcome is needed. Most mistakes are excluded by the first case; the
    other cases do not run for these mistakes.
    """

    def __init__(self, mistakes: tuple[Mistake, ...], text: str, exercise: Exercise) -> None:
        self.mistakes, self.text = mistakes, text
        self.seen: list[Outcome] = []
        self.to_come = run_program(text, exercise)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield the outcomes in the order of the cases; run a case if it has not run yet."""
        yield from self.seen
        for outcome in self.to_come:
            self.seen.append(outcome)
            yield outcome


@cache
def edited(exercise: Exercise) -> tuple[Known, ...]:
    """Return the solution with each known mistake, then with each pair of mistakes that can be made together."""
    solution = exercise.solution
    single = [(mistake, variant) for mistake in exercise.mistakes for variant in mistake.variants]
    known = []
    for count in range(1, AT_ONCE + 1):
        for edits in itertools.combinations(single, count):
            mistakes = tuple(mistake for mistake, _ in edits)
            if len(set(mistakes)) < count:
                continue  # two variants of one mistake
            texts = (mutated(solution, list(order)) for order in itertools.permutations(edits))
            text = next((text for text in texts if text is not None), None)
            if text is not None:
                known.append(Known(mistakes, text, exercise))
    return tuple(known)


@contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restore NumPy's global random generator at the end, because known mistakes may change the generator's state."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
