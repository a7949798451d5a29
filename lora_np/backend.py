"""Select the array library: `array_module(x)` returns numpy for a NumPy array, and cupy for an array on a GPU.

One process can use both libraries. The type of an array selects the library. A device name
("cupy", "numpy", "auto") is needed only to load or move a model.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import TypeAlias

import numpy as np

# numpy.ndarray or cupy.ndarray. Type checkers see numpy.ndarray: CuPy has the same interface and may not be installed.
Array: TypeAlias = np.ndarray

VARIABLE = "LORA_NP_DEVICE"  # an environment variable that sets the device for "auto": numpy or cupy


def array_module(x: Array) -> ModuleType:
    """Return the module with the functions for `x`: numpy for a NumPy array, cupy for a CuPy array.

    Code written as `xp = array_module(x); xp.exp(x)` runs on both devices. Raises TypeError if `x` is not an array, for
    example if `x` is a list, a number or a torch tensor.
    """
    if isinstance(x, np.ndarray):  # checked first: this function is called thousands of times per step
        return np
    xp = sys.modules[type(x).__module__.partition(".")[0]]
    if not isinstance(x, getattr(xp, "ndarray", ())):
        raise TypeError(
            f"expected a NumPy or CuPy array, got {type(x).__name__}; convert it first, e.g. numpy.array(x)"
        )
    return xp


def device_module(device: str = "auto") -> ModuleType:
    """Return the array module of a device: "numpy", "cupy", or "auto" (cupy if a GPU is available, else numpy).

    If the environment variable LORA_NP_DEVICE is set, its value replaces "auto". Raises RuntimeError, with the reason
    in one line, if cupy was requested but cannot run. Raises ValueError for an unknown device name.
    """
    wanted = os.environ.get(VARIABLE) or "auto" if device == "auto" else device
    if wanted not in ("numpy", "cupy", "auto"):
        where = f" (from {VARIABLE})" if device == "auto" else ""
        raise ValueError(f"unknown device {wanted!r}{where}; expected 'numpy', 'cupy' or 'auto'")
    if wanted == "numpy":
        return np
    reason = why_no_gpu()
    if reason is None:
        return importlib.import_module("cupy")
    if wanted == "cupy":
        raise RuntimeError(f"CuPy cannot use a GPU: {reason}")
    return np


def why_no_gpu() -> str | None:
    """Return None if CuPy is installed and finds a GPU; otherwise return the reason, in one line."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        if error.name == "cupy":
            return 'CuPy is not installed; run pip install "cupy-cuda13x[ctk]", or "cupy-cuda12x[ctk]" for a CUDA 12 driver'
        cause = error.__cause__ or error  # the cause is one line, CuPy's own message is many lines
        return f"CuPy is installed, but its import fails: {str(cause).splitlines()[0]}"
    if cupy.cuda.is_available():
        return None
    try:
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CUDARuntimeError, a class that CuPy does not define without a driver
        return f"CuPy is installed, but CUDA reports: {error}"
    return "CuPy is installed, but CUDA finds no GPU"


def to_host(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array: `x` itself if it is a NumPy array, otherwise a copy.

    For an array on a GPU, the copy is made after the GPU has computed `x`.
    """
    return x if isinstance(x, np.ndarray | np.generic) else x.get()


def move(x: Array, like: Array) -> Array:
    """Return `x` on the device of `like`: `x` itself if `x` is already there, otherwise a copy of the same dtype."""
    xp = array_module(like)
    return x if isinstance(x, xp.ndarray) else xp.asarray(to_host(x))


def scalars_to_host(scalars: list[Array]) -> np.ndarray:
    """Return a list of scalar arrays as one NumPy array.

    Scalars on a GPU are copied to the host together, after one synchronisation.
    """
    first = scalars[0]
    return np.array(scalars) if isinstance(first, np.generic) else to_host(array_module(first).stack(scalars))
