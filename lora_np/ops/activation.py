"""SiLU, the gated SwiGLU (Shazeer 2020, arXiv 2002.05202), and GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from ..backend import Array, array_module
from .checks import check_float, check_shape


def sigmoid(x: Array) -> Array:
    """σ(x) = 1/(1 + exp(−x)), in one buffer. Far to the left exp overflows to inf, and 1/inf is the 0 that is meant."""
    if x.dtype.kind == "c":
        return _complex_sigmoid(x)
    xp = array_module(x)
    e = xp.negative(x)
    with np.errstate(over="ignore"):  # CuPy never warns
        xp.exp(e, out=e)
    e += 1
    return xp.divide(1, e, out=e)


def _complex_sigmoid(x: Array) -> Array:
    """The same along the complex step, where exp must not overflow: for x < 0 as exp(x)/(1 + exp(x))."""
    xp = array_module(x)
    negative = x.real < 0
    e = xp.exp(xp.where(negative, x, -x))
    return xp.where(negative, e, 1) / (1 + e)


GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715

SiluCache: TypeAlias = tuple[Array, Array]  # x, σ(x)
SwigluCache: TypeAlias = tuple[Array, Array]  # gate, up
GeluCache: TypeAlias = tuple[Array, Array]  # x, tanh u


def silu_forward(x: Array) -> tuple[Array, SiluCache]:
    """y = x·σ(x). x any shape."""
    check_float(x=x)
    s = sigmoid(x)
    return x * s, (x, s)


def silu_backward(dy: Array, cache: SiluCache) -> Array:
    """dx = dy·σ(x)·(1 + x·(1 − σ(x))): the product rule on x·σ(x), with σ′ = σ(1 − σ)."""
    x, s = cache
    check_shape("dy", dy, *x.shape)
    return dy * _silu_slope(x, s)


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, SwigluCache]:
    """y = silu(gate) ∘ up. gate and up (…, f) → y (…, f).

    The cache has no σ(gate): of all that a block keeps, (…, f) is the widest, and the backward's own exp costs little.
    """
    check_float(gate=gate, up=up)
    check_shape("up", up, *gate.shape)
    y = sigmoid(gate)
    y *= gate
    y *= up
    return y, (gate, up)


def swiglu_backward(dy: Array, cache: SwigluCache) -> tuple[Array, Array]:
    """dgate, dup for dy (…, f).

    In the forward pass y = silu(gate) ∘ up, a product, so dup = dy ∘ silu(gate) and dgate = dy ∘ up ∘ silu′(gate).
    """
    gate, up = cache
    check_shape("dy", dy, *gate.shape)
    s = sigmoid(gate)
    dgate = _silu_slope(gate, s)
    dgate *= up
    dgate *= dy
    dup = s  # its memory, which nobody needs any more
    dup *= gate
    dup *= dy
    return dgate, dup


def _silu_slope(x: Array, s: Array) -> Array:
    """silu′(x) = σ(1 + x(1 − σ)), built in one buffer."""
    slope = 1 - s
    slope *= x
    slope += 1
    slope *= s
    return slope


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """y = ½x·(1 + tanh u) with u = √(2/π)·(x + 0.044715 x³). x any shape.

    This is GPT-2's GELU, within 5e-4 of the exact x·Φ(x): NumPy has no erf, and tanh has a complex step.
    """
    check_float(x=x)
    t = array_module(x).tanh(GELU_SCALE * x * (1 + GELU_CUBIC * x * x))
    return 0.5 * x * (1 + t), (x, t)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """dx = dy·(½(1 + t) + ½x·(1 − t²)·u′) with t = tanh u and u′ = √(2/π)·(1 + 3·0.044715 x²).

    The product rule on ½x·(1 + t), with tanh′ = 1 − tanh².
    """
    x, t = cache
    check_shape("dy", dy, *x.shape)
    du = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)
