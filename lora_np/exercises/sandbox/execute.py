"""Execute the statements of a student's program, and describe the exceptions that it raises."""

from __future__ import annotations

import ast
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

ANSWER = "<your answer>"  # the file name of a student's program in tracebacks
MOST_ARRAYS = 50  # limit of the stored shapes; a right answer has about ten arrays
MOST_TEXT = 500  # characters of an exception


class Failure(NamedTuple):
    """An exception that the program raised.

    Parameters
    ----------
    raised : str
        The exception, for example "ValueError: matmul: …".
    line : int, optional
        Number of the line of the program that raised the exception.
    columns : tuple of int, optional
        Byte positions in the line where the expression that raised the exception begins and ends.
    shapes : mapping of str to str
        The shapes of the function's arrays when the exception was raised.
    """

    raised: str
    line: int | None = None
    columns: tuple[int, int] | None = None
    shapes: Mapping[str, str] = {}


def define(text: str, name: str, catch: type[BaseException]) -> tuple[Callable[..., Any] | None, list[Failure]]:
    """Execute the program; return its function `name` (None if it is not defined) and the exceptions of the statements.

    A statement that raises an exception of the class `catch` is skipped.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    passed_over = []
    with warnings.catch_warnings(action="ignore"):  # the compiler warns about `x is 2`
        statements = [compile(ast.Module([node], []), ANSWER, "exec") for node in ast.parse(text).body]
    for statement in statements:
        try:
            exec(statement, namespace)
        except catch as error:
            passed_over.append(failure(error))
    function = namespace.get(name)
    return (function if callable(function) else None), passed_over


def failure(error: BaseException) -> Failure:
    """Return the description of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    variables = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    own = [i for i, frame in enumerate(frames) if frame.filename == ANSWER]
    try:
        message = str(error)
    except Exception:  # the exception's own class, written by the student, fails
        message = ""
    words = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if not own:
        return Failure(words[:MOST_TEXT])
    last = frames[own[-1]]
    columns = None
    if last.end_lineno == last.lineno and last.colno is not None and last.end_colno is not None:
        columns = (last.colno, last.end_colno)
    return Failure(words[:MOST_TEXT], last.lineno, columns, array_shapes(variables[own[-1]]))


def array_shapes(variables: Mapping[str, Any]) -> dict[str, str]:
    """Return the shapes of the arrays in a function's variables, also inside dicts, as text by name."""
    arrays = {name: value for name, value in variables.items() if isinstance(value, np.ndarray)}
    for name, value in variables.items():
        if type(value) is dict:
            arrays |= {f'{name}["{key}"]': item for key, item in value.items() if isinstance(item, np.ndarray)}
    return {name: str(array.shape) for name, array in list(arrays.items())[:MOST_ARRAYS]}
