"""Helpers to observe answers: an argument with a different value in each call, and pairs of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exercise import NoAnswer
from ..sandbox.wire import Odd


class First(int):
    """An argument with a different value in each call. The int itself is the value for the first call.

    Parameters
    ----------
    first : int
        The value for the first call.
    text : str
        The text that messages show for the argument; it also describes the values for the later calls.
    rest : tuple
        The values for the later calls (in `adamw_step`), or the steps after the first call (in `set_merged`).
    """

    rest: tuple[Any, ...]
    text: str

    def __new__(cls, first: int, text: str = "", rest: tuple[Any, ...] = ()) -> First:
        number = super().__new__(cls, first)
        number.rest, number.text = rest, text
        return number

    def __repr__(self) -> str:
        return self.text


def pair(value: Any, names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays as float64; raise `NoAnswer` if `value` is not a pair of arrays of real numbers.

    `names`: the names of the two arrays for the message, for example "A and B".
    """
    if not isinstance(value, tuple | list) or len(value) != 2:
        what = (
            f"a {type(value).__name__} of length {len(value)}"
            if isinstance(value, tuple | list)
            else f"one {type_name(value)}"
        )
        raise NoAnswer(f"the function returns {what}; expected two arrays, {names}")
    for array in value:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.size == 0:
            raise NoAnswer(
                f"one of the two returned objects is of type {type_name(array)}; expected an array of numbers"
            )
    return value[0].astype(np.float64), value[1].astype(np.float64)


def type_name(value: Any) -> str:
    """Return the name of the type of a value that the student's function returned."""
    return value.kind if isinstance(value, Odd) else type(value).__name__
