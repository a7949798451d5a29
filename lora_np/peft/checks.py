"""What the configurations of all methods ask of a number, so that a wrong one is named as it stands there, or in a file."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np


def check_number(name: str, value: Any) -> None:
    """Raise TypeError where `value` is no real number: "16" is none, nor is True."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; expected a number")


def check_whole(name: str, value: Any, expected: str = "expected a whole number") -> None:
    """Raise TypeError where `value` is no integer: 2.0 is none, nor is True."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; {expected}")


def storage_dtype(name: Any, base: np.dtype) -> np.dtype:
    """The dtype to store adapters in: "float16", "bfloat16", or that of the `base`. Raises TypeError for another."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)  # raises TypeError for a name that it does not know
    if dtype.kind != "f" or (dtype.itemsize > 2 and dtype != base):
        raise TypeError(f"adapter_dtype {name!r} over a base of {base}; expected 'float16', 'bfloat16' or '{base}'")
    return dtype
