"""Outcomes of a function on the cases, as plain values that can be compared."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .contain import Failed, Stopped
from .exercise import Case, Exercise, fresh
from .sandbox.execute import Failure, define, failure
from .sandbox.wire import MOST_PARTS, Odd

RTOL, ATOL = 1e-9, 1e-12  # tolerance for float64 when the same operations run in another order
MOST_BYTES = 10_000  # of an array; right answers have a few hundred


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case.

    Parameters
    ----------
    value : object
        The observed value, made of plain types (see `plain`).
    raised : str, optional
        The exception, for example "ValueError: matmul: …".
    line : int, optional
        Number of the line of the program that raised the exception.
    changed : tuple of str
        Names of the arguments that the function changed in place.
    columns : tuple of int, optional
        Byte positions in the line where the expression that raised the exception begins and ends.
    shapes : dict of str to str
        The shapes of the function's arrays at the exception.
    """

    value: Any = None
    raised: str | None = None
    line: int | None = None
    changed: tuple[str, ...] = ()
    columns: tuple[int, int] | None = None
    shapes: Mapping[str, str] = field(default_factory=dict)

    @property
    def blank(self) -> bool:
        """True if the answer is not written yet."""
        return self.raised is not None and self.raised.startswith("NotImplementedError")


def run_program(text: str, exercise: Exercise, cases: Sequence[Case] | None = None) -> Iterator[Outcome]:
    """Execute a trusted program in this process, then yield the outcome of its function on each case."""
    cases = exercise.cases() if cases is None else cases
    function, passed_over = define(text, exercise.function, Exception)
    yield from run_cases(function, passed_over, exercise, cases)


def run_cases(
    function: Callable[..., Any] | None, passed_over: Sequence[Failure], exercise: Exercise, cases: Sequence[Case]
) -> Iterator[Outcome]:
    """Yield the outcome of the function on each case. An exception is also an outcome.

    `passed_over`: the exceptions of skipped statements outside the function. If the function fails because a
    name is missing, the outcome is the exception of the last skipped statement.
    """
    for case in cases:
        outcome = Outcome(raised="NameError") if function is None else run_case(function, exercise, case)
        missing = (outcome.raised or "").startswith("NameError")
        yield Outcome(**passed_over[-1]._asdict()) if missing and passed_over else outcome


def run_case(function: Callable[..., Any], exercise: Exercise, case: Case) -> Outcome:
    """Call `function` on copies of the case's arguments, by position, and return the outcome."""
    arguments, before = fresh(case), fresh(case)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            value = plain(exercise.observe(function, *arguments.values()))
    except Stopped:
        raise
    except Failed as error:
        return Outcome(**error.failure._asdict())
    except Exception as error:
        return Outcome(**failure(error)._asdict())
    changed = [name for name in before if not same(plain(arguments[name]), plain(before[name]))]
    return Outcome(value, changed=tuple(changed))


def plain(value: Any, budget: list[int] | None = None) -> Any:
    """Return the value in plain types: None, bool, number, string, array, tuple, dict, or `Odd` for other objects."""
    budget = [MOST_PARTS] if budget is None else budget
    budget[0] -= 1
    if budget[0] < 0:
        return Odd("a collection with thousands of parts")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return value[:1000]
    if isinstance(value, np.random.Generator):
        return None  # drawing numbers changes it, which is allowed
    if isinstance(value, np.generic | np.ndarray):
        if value.dtype.kind not in "biufc" or value.nbytes > MOST_BYTES:
            return Odd(f"an array of {value.dtype} and shape {value.shape}")
        if value.ndim == 0 and value.dtype.kind == "c":
            return Odd(f"the complex number {value}")
        return value.item() if value.ndim == 0 else np.array(value)
    if isinstance(value, int | float):
        return value if isinstance(value, float) or abs(value) < 1 << 63 else float("inf")
    if isinstance(value, tuple | list):
        return tuple(plain(item, budget) for item in value[:MOST_PARTS])
    if isinstance(value, dict):
        return {str(key)[:100]: plain(item, budget) for key, item in list(value.items())[:MOST_PARTS]}
    return value if isinstance(value, Odd) else Odd(f"a {type(value).__name__}")


def is_nan(value: Any) -> bool:
    """Return whether a plain value consists only of NaN."""
    if isinstance(value, tuple | dict):
        parts = list(value.values() if isinstance(value, dict) else value)
        return any(part is not None for part in parts) and all(part is None or is_nan(part) for part in parts)
    return isinstance(value, float | np.ndarray) and np.size(value) > 0 and bool(np.isnan(value).all())


def same(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal. Numbers may differ by rounding, NaN equals NaN, and shapes must be equal."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and bool(np.allclose(a, b, RTOL, ATOL, equal_nan=True))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=RTOL, abs_tol=ATOL) or (a != a and b != b)
    return type(a) is type(b) and not isinstance(a, np.ndarray) and a == b  # text, None, complex numbers


def alike(a: Outcome, b: Outcome) -> bool:
    """Return whether both outcomes have equal values, or both have an exception of any type."""
    return (a.raised is not None) == (b.raised is not None) and (a.raised is not None or same(a.value, b.value))


def echo(text: str, most: int = 200) -> str:
    """Return a student's text for one line of a message: without line breaks and control characters, and not too long."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text.replace(os.linesep, " ")).split())
    return shown if len(shown) <= most else shown[: most - 1] + "…"
