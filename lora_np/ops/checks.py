"""Bad input, said clearly: which array, what it is, and what was expected. Nothing broadcasts or converts silently."""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module


def on_host(x: Array) -> bool:
    """Whether looking at a value of `x` is free. On a GPU it would wait for all work that is under way."""
    return isinstance(x, np.ndarray)


def check_float(**arrays: Array) -> None:
    """All arrays have one dtype: float32, float64 or complex128. Raises TypeError naming the one that does not fit."""
    first = None
    for name, x in arrays.items():
        array_module(x)  # raises for what is not an array
        if x.dtype.kind not in "fc" or x.real.dtype.itemsize < 4:
            raise TypeError(f"{name} has dtype {x.dtype}; expected a float array (float32 to train, float64 to prove)")
        first = first or (name, x.dtype)
        if x.dtype != first[1]:
            raise TypeError(
                f"{name} is {x.dtype} but {first[0]} is {first[1]}: nothing converts silently, bring both to one dtype"
            )


def check_shape(name: str, x: Array, *expected: int | None) -> None:
    """`x.shape` equals `expected` (None: any size). Raises ValueError otherwise, TypeError for what is not an array."""
    array_module(x)
    if len(x.shape) != len(expected) or any(e is not None and e != n for e, n in zip(expected, x.shape, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected ({wanted})")


def check_features(name: str, x: Array, size: int, of: str) -> None:
    """The last axis of `x` has `size` entries, as `of` requires."""
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; its last axis must be {size}, as {of} requires")


def check_ids(name: str, ids: Array, size: int, ignore: int | None = None) -> None:
    """Integer ids in [0, size); some may equal `ignore`, but not all. A negative id would index from the end.

    Only their dtype is checked on a GPU, where looking at a value means waiting for it: check ids before they go there.
    """
    array_module(ids)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {ids.dtype}; expected integers")
    if not on_host(ids):
        return
    wrong = (ids < 0) | (ids >= size)
    if ignore is not None:
        counts = ids != ignore
        if not counts.any():
            raise ValueError(f"every target is ignore_index ({ignore}): there is no token to learn from")
        wrong &= counts
    if wrong.any():
        raise ValueError(f"{name} holds {int(ids[wrong][0])}, outside 0 … {size - 1}: is it from another tokenizer?")


def check_mask(mask: Array, b: int, s: int) -> None:
    """A boolean (b, s), True where a key may be seen. An additive mask (0 and −∞) would mean the opposite: TypeError."""
    check_shape("attention_mask", mask, b, s)
    if mask.dtype.kind != "b":
        raise TypeError(f"attention_mask has dtype {mask.dtype}; expected booleans, True where a key may be seen")
