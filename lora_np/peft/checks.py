"""What the configurations of all methods ask of a number, so that a wrong one is named as it stands there, or in a file."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def check_number(name: str, value: Any) -> None:
    """Raise TypeError where `value` is no real number: "16" is none, nor is True."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; expected a number")


def check_whole(name: str, value: Any, expected: str = "expected a whole number") -> None:
    """Raise TypeError where `value` is no integer: 2.0 is none, nor is True."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; {expected}")
