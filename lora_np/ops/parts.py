"""Parts of an array that fit in the processor's cache, for functions that pass over the same numbers many times."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from ..backend import Array
from .checks import on_host

CACHED = 2**18  # this many float32 numbers stay in a second-level cache of 1 to 2 MiB


def rows_at_once(features: int, arrays: int) -> int:
    """Return how many rows of `features` numbers fit in the cache, if `arrays` arrays of this size are in use."""
    return max(1, CACHED // (arrays * features))


def parts(x: Array, arrays: int) -> Iterator[Any]:
    """Yield indices of x (…, features). Each index selects a view of a few rows; all indices together select all of x.

    A GPU computes all rows at once.
    """
    if x.ndim < 2 or not x.size or not on_host(x):
        yield ...
        return
    few = rows_at_once(x.shape[-1], arrays)
    if x.size <= few * x.shape[-1]:
        yield ...
        return
    for outer in product(*map(range, x.shape[:-2])):
        for start in range(0, x.shape[-2], few):
            yield (*outer, slice(start, start + few))
