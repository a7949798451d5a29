"""Code books: the values of the four-bit codes (NF4, FP4, int4) and of the 8-bit code of double quantisation."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np

from ..backend import Array, array_module

QUANT_TYPES = ("nf4", "fp4", "int4")


@cache
def code_book(quant_type: str) -> tuple[float, ...]:
    """Return the 16 values c_q of a code, in the order of q.

    Parameters
    ----------
    quant_type : {"nf4", "fp4", "int4"}
        The code.

    Returns
    -------
    tuple of float
        16 float32 numbers. All values are in [−1, 1], except the value −8/7 of int4, which is not used.

    Raises
    ------
    ValueError
        If `quant_type` is unknown.

    Notes
    -----
    nf4: if the weights are normally distributed, each of the 16 values is used about equally often. The values are
    quantiles of N(0, 1), divided by the largest quantile. Eight values are above zero and seven below. On each side,
    the probabilities of the quantiles are evenly spaced from ½ to 1 − ½(1/30 + 1/32) = 0.9677083. Zero is also a value,
    so that a weight of 0 stays 0.

    fp4: the four bits are one sign bit, two exponent bits and one mantissa bit. All values are divided by the largest
    value, 12.

    int4: the values (q − 8)/7 are evenly spaced. The code q = 0 is not used, so the used values are symmetric around 0.

    References
    ----------
    nf4: arXiv 2305.14314, section 3, and `create_normal_map` of bitsandbytes, which gives the same bits (with
    probabilities in float32). Equation 4 of the paper gives other numbers. fp4: bitsandbytes.

    Examples
    --------
    >>> from lora_np.quantization import code_book
    >>> [round(value, 3) for value in code_book("nf4")[:8]]
    [-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0]
    """
    if quant_type == "nf4":
        quantile = NormalDist().inv_cdf
        above = [quantile(p) for p in _float32_steps(0.9677083, 0.5, 9)[:-1]]
        below = [-quantile(p) for p in _float32_steps(0.9677083, 0.5, 8)[:-1]]
        codes = sorted([*below, 0.0, *above])
    elif quant_type == "fp4":
        magnitudes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
        codes = magnitudes + [0.0 - x for x in magnitudes]  # no −0
    elif quant_type == "int4":
        codes = [q - 8.0 for q in range(16)]
        return tuple(float(np.float32(c / 7)) for c in codes)
    else:
        raise ValueError(f"unknown quant_type {quant_type!r}; expected one of {', '.join(QUANT_TYPES)}")
    return tuple(float(np.float32(c) / np.float32(max(codes))) for c in codes)


@cache
def dynamic_map() -> tuple[float, ...]:
    """Return the 256 values of the 8-bit code of double quantisation, in ascending order.

    Returns
    -------
    tuple of float
        256 float32 numbers from −0.993 to 1, including 0.

    Notes
    -----
    Each value except 0 and 1 is the product of a sign, a power of ten from 10⁻⁶ to 10⁰, and a fraction between 0.1 and
    1. Each smaller power of ten leaves one bit less for the fraction. So for each sign there are 64 fractions for 10⁰,
    32 for 10⁻¹, and so on, down to 1 for 10⁻⁶.

    References
    ----------
    Dettmers 2015, arXiv 1511.04561, and `create_dynamic_map` of bitsandbytes, which gives the same bits.

    Examples
    --------
    >>> from lora_np.quantization import dynamic_map
    >>> len(dynamic_map()), round(dynamic_map()[0], 3), dynamic_map()[-1]
    (256, -0.993, 1.0)
    """
    codes = [0.0, 1.0]
    for i in range(7):
        edges = _float32_steps(0.1, 1.0, 2**i + 1)
        for low, high in pairwise(edges):
            code = float(np.float32(10.0 ** (i - 6)) * (np.float32(low + high) / np.float32(2)))
            codes += [code, -code]
    return tuple(sorted(codes))


def _float32_steps(start: float, stop: float, n: int) -> list[float]:
    """Return n evenly spaced float32 numbers.

    Each number is computed from `start` or from `stop`, whichever is nearer, so that the bits equal the bits of
    torch.linspace.
    """
    start, stop = float(np.float32(start)), float(np.float32(stop))
    step = float(np.float32(np.float32(stop - start) / np.float32(n - 1)))
    return [float(np.float32(start + step * i if i < n // 2 else stop - step * (n - 1 - i))) for i in range(n)]


@cache
def _boundaries(codes: tuple[float, ...], xp: Any) -> tuple[Array, Array]:
    """Return the midpoints between neighbouring values, and the codes sorted by their values."""
    order = sorted(range(len(codes)), key=codes.__getitem__)
    midpoints = [(codes[a] + codes[b]) / 2 for a, b in pairwise(order)]
    return xp.asarray(midpoints, "float32"), xp.asarray(order, "uint8")


@cache
def value_pairs(quant_type: str, xp: Any) -> Array:
    """Return a table with the two float32 values of each byte, the value of the high nibble first.

    The two values are stored as one 64-bit number, so that one look-up returns both.
    """
    codes = code_book(quant_type)
    pairs = [[codes[byte >> 4], codes[byte & 15]] for byte in range(256)]
    return xp.asarray(pairs, "float32").view("float64").reshape(-1)


@cache
def dynamic_values(xp: Any) -> Array:
    """Return `dynamic_map()` as an array of the module `xp` (numpy or cupy)."""
    return xp.asarray(dynamic_map(), "float32")


def nearest_codes(x: Array, codes: tuple[float, ...]) -> Array:
    """Return the uint8 code of the value nearest to each number in x. At a midpoint the lower value is used."""
    xp = array_module(x)
    midpoints, order = _boundaries(codes, xp)
    return order[xp.searchsorted(midpoints, x, side="left")]
