"""Where the core's tests compute. The environment variable LORA_NP_TESTS_ON says: numpy (the default), double or cupy.

    LORA_NP_TESTS_ON=double pytest tests/proofs/test_ops.py

`xp` is the array module, and what the tests make with it lies there; `host` brings a result back to be compared. The double
(cupy_double.py) takes the place of CuPy itself, so the library runs as it would on a GPU, with no hook for it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import cupy_double
import numpy as np

from lora_np.backend import Array, device_module, to_host

DEVICE = os.environ.get("LORA_NP_TESTS_ON", "numpy")
if DEVICE == "double":
    sys.modules["cupy"] = cupy_double
os.environ["LORA_NP_DEVICE"] = "numpy" if DEVICE == "numpy" else "cupy"  # what "auto" means in these tests
xp = device_module("auto")
errors: list[float] = []  # that assert_allclose saw; a proof prints the worst of its own


def host(x: Any) -> Any:
    """`x` in the host's memory: an array, or a tuple or list of them; anything else as it is."""
    if isinstance(x, tuple | list):
        return type(x)(map(host, x))
    return to_host(x) if isinstance(x, xp.ndarray) else x


def assert_allclose(actual: Array, desired: Array, **options: Any) -> None:
    """numpy.testing.assert_allclose, wherever the arrays live. The error is kept, relative to the largest number."""
    actual, desired = np.asarray(host(actual)), np.asarray(host(desired))
    np.testing.assert_allclose(actual, desired, **options)
    if desired.size and np.isfinite(desired).all():
        off = np.abs(actual - desired).max()
        errors.append(float(off / (np.abs(desired).max() or 1)))


def assert_array_equal(actual: Array, desired: Array, **options: Any) -> None:
    """numpy.testing.assert_array_equal, wherever the arrays live."""
    np.testing.assert_array_equal(host(actual), host(desired), **options)
