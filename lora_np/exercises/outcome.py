"""Outcomes of a function on the cases, as plain values that can be compared and stored as JSON."""

from __future__ import annotations

import ast
import base64
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .exercise import Case, Exercise, fresh
from .shapes import array_shapes

ANSWER = "<your answer>"  # the file name of a student's program in tracebacks
RTOL, ATOL = 1e-9, 1e-12  # tolerance for float64 when the same operations run in another order
MOST_BYTES, MOST_PARTS = 10_000, 3_000  # limits of a stored value; right answers have a few hundred bytes and parts


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
    shapes: dict[str, str] = field(default_factory=dict)

    @property
    def blank(self) -> bool:
        """True if the answer is not written yet."""
        return self.raised is not None and self.raised.startswith("NotImplementedError")


@dataclass(frozen=True)
class Odd:
    """A value that no right answer has, for example an object of an unexpected type.

    An `Odd` value is not equal to any other value.

    Parameters
    ----------
    words : str
        A description of the value.
    """

    words: str

    def __eq__(self, other: object) -> bool:
        """Return False."""
        return False


def run_program(text: str, exercise: Exercise, catch: type[BaseException] = Exception) -> Iterator[Outcome]:
    """Execute the program, then yield the outcome of its function on each case. An exception is also an outcome.

    A statement outside the function that raises an exception is skipped. If the function then fails because a name is
    missing, the outcome is the exception of the skipped statement. `catch` is the class of exceptions that count as
    outcomes; in the child process `catch` is BaseException, because the program can also raise SystemExit.
    """
    cases = exercise.cases()  # before the student's code runs
    namespace: dict[str, Any] = {"__name__": "__main__"}
    passed_over: list[Outcome] = []
    with warnings.catch_warnings(action="ignore"):  # the compiler warns about `x is 2`
        statements = [compile(ast.Module([node], []), ANSWER, "exec") for node in ast.parse(text).body]
    for statement in statements:
        try:
            exec(statement, namespace)
        except catch as error:
            passed_over.append(_raised(error))
    function = namespace.get(exercise.function)
    for case in cases:
        outcome = run_case(function, exercise, case, catch) if callable(function) else Outcome(raised="NameError")
        missing = (outcome.raised or "").startswith("NameError")
        yield passed_over[-1] if missing and passed_over else outcome


def run_case(
    function: Callable[..., Any], exercise: Exercise, case: Case, catch: type[BaseException] = Exception
) -> Outcome:
    """Call `function` on copies of the case's arguments, by position, and return the outcome."""
    arguments, before = fresh(case), fresh(case)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            value = plain(exercise.observe(function, *arguments.values()))
    except catch as error:
        return _raised(error)
    changed = [name for name in before if not same(plain(arguments[name]), plain(before[name]))]
    return Outcome(value, changed=tuple(changed))


def _raised(error: BaseException) -> Outcome:
    """Return the outcome of a case in which the program raised `error`."""
    frames = traceback.extract_tb(error.__traceback__)
    variables = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [i for i, frame in enumerate(frames) if frame.filename == ANSWER]
    try:
        message = str(error)
    except Exception:  # an exception class of the student's
        message = ""
    words = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if not own:
        return Outcome(raised=words[:500])
    last = frames[own[-1]]
    columns = None
    if last.end_lineno == last.lineno and last.colno is not None and last.end_colno is not None:
        columns = (last.colno, last.end_colno)
    return Outcome(raised=words[:500], line=last.lineno, columns=columns, shapes=array_shapes(variables[own[-1]]))


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
        return value.item() if value.ndim == 0 else np.array(value)
    if isinstance(value, int | float):
        return value if isinstance(value, float) or abs(value) < 1 << 63 else float("inf")
    if isinstance(value, tuple | list):
        return tuple(plain(item, budget) for item in value[:MOST_PARTS])
    if isinstance(value, dict):
        return {str(key)[:100]: plain(item, budget) for key, item in list(value.items())[:MOST_PARTS]}
    return Odd(f"a {type(value).__name__}")


def is_nan(value: Any) -> bool:
    """Return whether a plain value consists only of NaN."""
    if isinstance(value, tuple | dict):
        parts = list(value.values() if isinstance(value, dict) else value)
        return any(part is not None for part in parts) and all(part is None or is_nan(part) for part in parts)
    return isinstance(value, float | np.ndarray) and np.size(value) > 0 and bool(np.isnan(value).all())


def same(a: Any, b: Any) -> bool:
    """Return whether two plain values are equal, numbers up to rounding; NaN equals NaN, and shapes must be equal."""
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


# --------------------------------------------------------------------------------------------------------------- as JSON


def to_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome in JSON's types. Pickle is not used: reading a file of an untrusted process must not run code."""
    return asdict(outcome) | {"value": _encoded(outcome.value)}


def from_json(fields: dict[str, Any]) -> Outcome:
    """Return the outcome that `to_json` wrote. Raises ValueError, KeyError or TypeError for other input."""
    columns = fields["columns"] and tuple(map(int, fields["columns"]))
    plain_types = {"changed": tuple(fields["changed"]), "columns": columns, "shapes": dict(fields["shapes"])}
    return Outcome(**fields | {"value": _decoded(fields["value"])} | plain_types)


def _encoded(value: Any) -> Any:
    """Return a plain value in JSON's types."""
    if isinstance(value, np.ndarray):
        data = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
        return {"array": [str(value.dtype), list(value.shape), data]}
    if isinstance(value, complex):
        return {"odd": f"the complex number {value}"}
    if isinstance(value, Odd):
        return {"odd": value.words}
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, dict):
        return {"dict": {key: _encoded(item) for key, item in value.items()}}
    return value


def _decoded(value: Any) -> Any:
    """Return the plain value that `_encoded` wrote."""
    if isinstance(value, list):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, dict):
        return value
    if "odd" in value:
        return Odd(value["odd"])
    if "dict" in value:
        return {key: _decoded(item) for key, item in value["dict"].items()}
    dtype, shape, data = value["array"]
    return np.frombuffer(base64.b64decode(data), np.dtype(dtype)).reshape(shape)


def echo(text: str, most: int = 200) -> str:
    """Return a student's text for one line of a message: without line breaks and control characters, and not too long."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in text.replace(os.linesep, " ")).split())
    return shown if len(shown) <= most else shown[: most - 1] + "…"
