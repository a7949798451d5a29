"""What several exercises share to look at an answer: an argument that changes from call to call, and pairs of arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exercise import NoAnswer


class First(int):
    """The first of several values that an argument has, one a call: a message shows `text`, which tells of the rest."""

    rest: tuple[Any, ...]
    text: str

    def __new__(cls, first: int, text: str = "", rest: tuple[Any, ...] = ()) -> First:
        number = super().__new__(cls, first)
        number.rest, number.text = rest, text
        return number

    def __repr__(self) -> str:
        return self.text


def pair(value: Any, names: str) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays as float64. Raises NoAnswer for what is no pair of arrays of real numbers; `names` is "A and B"."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        what = f"{len(value)} things" if isinstance(value, tuple | list) else f"one {type(value).__name__}"
        raise NoAnswer(f"it returns {what}, where two arrays are asked for, {names}")
    for array in value:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu" or array.size == 0:
            raise NoAnswer(f"one of the two things it returns is a {type(array).__name__}, and no array of numbers")
    return value[0].astype(np.float64), value[1].astype(np.float64)
