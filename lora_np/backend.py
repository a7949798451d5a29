"""Where an array lives decides who computes with it: `array_module(x)` is numpy, or cupy for an array on a GPU."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

Array = Any  # numpy.ndarray or cupy.ndarray: whatever `array_module` answers for


def array_module(x: Array) -> ModuleType:
    """The module whose functions work on `x`: numpy for a NumPy array, cupy for a CuPy array.

    Mathematics written as `xp = array_module(x); xp.exp(x)` runs on either device, without asking which.
    Raises TypeError for anything that is not an array (a list, a number, a torch tensor).
    """
    xp = sys.modules[type(x).__module__.partition(".")[0]]
    if not isinstance(x, getattr(xp, "ndarray", ())):
        raise TypeError(
            f"expected a NumPy or CuPy array, got {type(x).__name__}; convert it first, e.g. numpy.array(x)"
        )
    return xp


def to_host(x: Array) -> Any:
    """`x` as a NumPy array: itself if it is one, otherwise copied off its device."""
    return x.get() if hasattr(x, "get") else x
