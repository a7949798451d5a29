"""Where an array lives decides who computes with it: `array_module(x)` is numpy, or cupy for an array on a GPU.

Both may be used side by side in one process. What chooses is the array, never a global switch; a name ("cupy", "numpy",
"auto") is asked for once, when a model is loaded or moved.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TypeAlias

import numpy as np

# numpy.ndarray or cupy.ndarray. A type checker sees NumPy's: CuPy's has the same interface, and may not be installed.
Array: TypeAlias = np.ndarray

VARIABLE = "LORA_NP_DEVICE"  # an environment variable that decides what "auto" means: numpy or cupy


def array_module(x: Array) -> ModuleType:
    """The module whose functions work on `x`: numpy for a NumPy array, cupy for a CuPy array.

    Mathematics written as `xp = array_module(x); xp.exp(x)` runs on either device, without asking which.
    Raises TypeError for anything that is not an array (a list, a number, a torch tensor).
    """
    if isinstance(x, np.ndarray):  # first, because it is asked thousands of times a step
        return np
    xp = sys.modules[type(x).__module__.partition(".")[0]]
    if not isinstance(x, getattr(xp, "ndarray", ())):
        raise TypeError(
            f"expected a NumPy or CuPy array, got {type(x).__name__}; convert it first, e.g. numpy.array(x)"
        )
    return xp


def device_module(device: str = "auto") -> ModuleType:
    """The array module of a device by name: "numpy", "cupy", or "auto", the GPU when one answers and numpy otherwise.

    The environment variable LORA_NP_DEVICE decides for "auto". Raises RuntimeError with the reason, in one line, where
    cupy was asked for and cannot run here; ValueError for another name.
    """
    wanted = os.environ.get(VARIABLE) or "auto" if device == "auto" else device
    if wanted not in ("numpy", "cupy", "auto"):
        where = f" (from {VARIABLE})" if device == "auto" else ""
        raise ValueError(f"device {wanted!r}{where}; expected 'numpy', 'cupy' or 'auto'")
    if wanted == "numpy":
        return np
    reason = why_no_gpu()
    if reason is None:
        return importlib.import_module("cupy")
    if wanted == "cupy":
        raise RuntimeError(f"no GPU for CuPy: {reason}")
    return np


def why_no_gpu() -> str | None:
    """None where CuPy is installed and a GPU answers; otherwise the reason, in one line."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if error.name == "cupy":
            return 'CuPy is not installed; pip install "cupy-cuda13x[ctk]", or cupy-cuda12x for a driver of CUDA 12'
        cause = error.__cause__ or error  # CuPy's own message explains, over many lines, what its cause says in one
        return f"CuPy is installed, but does not import: {str(cause).splitlines()[0]}"
    if cupy.cuda.is_available():
        return None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDARuntimeError; CuPy's own classes are not to be named without a driver
        return f"CuPy is installed, but CUDA says {error}"
    return "CuPy is installed, but CUDA finds no GPU"


def to_host(x: Array) -> np.ndarray:
    """`x` as a NumPy array: itself if it is one, otherwise copied off its device, after waiting for it."""
    return x if isinstance(x, np.ndarray | np.generic) else x.get()


def move(x: Array, like: Array) -> Array:
    """`x` where `like` lives: itself if it is there, otherwise a copy. Dtypes stay."""
    xp = array_module(like)
    return x if isinstance(x, xp.ndarray) else xp.asarray(to_host(x))


def scalars_to_host(scalars: list[Array]) -> np.ndarray:
    """Scalars as one host array: on a GPU, one wait and one copy for all of them."""
    first = scalars[0]
    return np.array(scalars) if isinstance(first, np.generic) else to_host(array_module(first).stack(scalars))
