"""Check the inputs of the operations. An error says which array is wrong, what was given and what was expected.

No array is converted silently.
"""

from __future__ import annotations

import numpy as np

from ..backend import Array, array_module


def on_host(x: Array) -> bool:
    """Return True for a NumPy array.

    Checks of values skip CuPy arrays, because reading a value would synchronise with the GPU.
    """
    return isinstance(x, np.ndarray)


def check_float(**arrays: Array) -> None:
    """Raise TypeError unless all arrays have one dtype: float32, float64 or complex128."""
    first = None
    for name, x in arrays.items():
        array_module(x)  # raises TypeError if x is not an array
        if x.dtype.kind not in "fc" or x.real.dtype.itemsize < 4:
            raise TypeError(
                f"{name} has dtype {x.dtype}; expected a float array: float32 (training) or float64 (gradient checks)"
            )
        first = first or (name, x.dtype)
        if x.dtype != first[1]:
            raise TypeError(
                f"{name} has dtype {x.dtype}, but {first[0]} has dtype {first[1]}; convert one of the two arrays"
            )


def check_shape(name: str, x: Array, *expected: int | None) -> None:
    """Raise TypeError if `x` is not an array, and ValueError unless its shape is `expected` (None allows any size)."""
    array_module(x)
    if x.shape == expected:
        return
    if len(x.shape) != len(expected) or any(e is not None and e != n for e, n in zip(expected, x.shape, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected ({wanted})")


def check_features(name: str, x: Array, size: int, of: str) -> None:
    """Raise ValueError unless the last axis of `x` has `size` entries; `of` names the array that requires this size."""
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected a last axis of size {size}, as {of} requires")


def check_ids(name: str, ids: Array, size: int, ignore: int | None = None) -> None:
    """Raise an error unless `ids` are integers in [0, size).

    Some ids may equal `ignore`, but not all. A negative id is also an error, because NumPy counts a negative
    index from the end. On a GPU only the dtype is checked, because reading the values would synchronise with the GPU.
    Check ids before they are copied to a GPU.
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
            raise ValueError(f"every target is ignore_index ({ignore}), so there is no token to learn from")
        wrong &= counts
    if wrong.any():
        raise ValueError(f"{name} contains {int(ids[wrong][0])}, outside 0 … {size - 1}; was another tokenizer used?")


def check_mask(mask: Array, b: int, s: int) -> None:
    """Raise an error unless `mask` is a boolean array of shape (b, s). True means that a key may be seen.

    An additive mask (0 and −∞) raises TypeError. In an additive mask 0 means "may be seen", but as a boolean 0 is
    False.
    """
    check_shape("attention_mask", mask, b, s)
    if mask.dtype.kind != "b":
        raise TypeError(f"attention_mask has dtype {mask.dtype}; expected booleans, True where a key may be seen")
