"""Activations: SiLU, GELU (arXiv 1606.08415), and the gated SwiGLU and GeGLU (arXiv 2002.05202)."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np

from ..backend import Array, array_module
from .checks import check_float, check_shape
from .parts import parts


def sigmoid(x: Array, out: Array | None = None) -> Array:
    """Compute the sigmoid, σ(x) = 1/(1 + exp(−x)), entry by entry.

    Parameters
    ----------
    x : ndarray, any shape, float or complex
        The input.
    out : ndarray, the shape and dtype of x, optional
        The array for the result. None means a new array.

    Returns
    -------
    ndarray, the shape of x
        σ(x). For a real x far below zero, exp(−x) overflows to infinity, and the result is 0.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import sigmoid
    >>> sigmoid(np.array([-1000.0, 0.0, 1000.0]))
    array([0. , 0.5, 1. ])
    """
    xp = array_module(x)
    if x.dtype.kind == "c":
        return xp.multiply(_complex_sigmoid(x), 1, out=out)
    e = xp.negative(x, out=out)
    with np.errstate(over="ignore"):  # CuPy never warns
        xp.exp(e, out=e)
    e += 1
    return xp.divide(1, e, out=e)


def _complex_sigmoid(x: Array) -> Array:
    """Compute σ(x) for complex x. To avoid an overflow of exp, exp(x)/(1 + exp(x)) is used for Re x < 0."""
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
    """Compute SiLU, y = x·σ(x), entry by entry.

    Parameters
    ----------
    x : ndarray, any shape, float32 or float64
        The input.

    Returns
    -------
    y : ndarray, the shape of x
        The output.
    cache : SiluCache
        The second argument of `silu_backward`.

    Raises
    ------
    TypeError
        If x is not a float array.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import silu_forward
    >>> y, cache = silu_forward(np.array([-20.0, 0.0, 20.0]))
    >>> y.round(6) + 0.0
    array([ 0.,  0., 20.])
    """
    check_float(x=x)
    s = sigmoid(x)
    return x * s, (x, s)


def silu_backward(dy: Array, cache: SiluCache) -> Array:
    """Compute the gradient of `silu_forward`.

    Parameters
    ----------
    dy : ndarray, the shape of x
        The gradient of y.
    cache : SiluCache
        The cache of the forward pass.

    Returns
    -------
    dx : ndarray, the shape of x
        The gradient of x.

    Notes
    -----
    In the forward pass y = x·σ(x). The product rule with σ′ = σ(1 − σ) gives dx = dy·σ(x)·(1 + x·(1 − σ(x))).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import silu_backward, silu_forward
    >>> y, cache = silu_forward(np.array([0.0]))
    >>> silu_backward(np.array([1.0]), cache)  # the slope at 0
    array([0.5])
    """
    x, s = cache
    check_shape("dy", dy, *x.shape)
    return dy * _silu_slope(x, s)


def swiglu_forward(gate: Array, up: Array) -> tuple[Array, SwigluCache]:
    """Compute SwiGLU, y = silu(gate) ∘ up, entry by entry.

    Parameters
    ----------
    gate : ndarray, shape (…, f), float32 or float64
        The output of `gate_proj`.
    up : ndarray, shape (…, f)
        The output of `up_proj`.

    Returns
    -------
    y : ndarray, shape (…, f)
        The input of `down_proj`.
    cache : SwigluCache
        The second argument of `swiglu_backward`.

    Raises
    ------
    ValueError
        If the shapes differ.
    TypeError
        If the arrays do not all have the same float dtype.

    Notes
    -----
    To save memory, the cache does not keep σ(gate), because arrays of shape (…, f) are the largest arrays in the cache
    of a block. The backward pass computes σ(gate) a second time. This takes a sixth of the time of the backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import swiglu_forward
    >>> y, cache = swiglu_forward(np.array([-50.0, 50.0]), np.array([3.0, 3.0]))  # the gate is closed, then open
    >>> y.round(6) + 0.0
    array([  0., 150.])
    """
    check_float(gate=gate, up=up)
    check_shape("up", up, *gate.shape)
    y = array_module(gate).empty(gate.shape, gate.dtype)
    for part in parts(gate, arrays=3):
        s = sigmoid(gate[part], out=y[part])
        s *= gate[part]
        s *= up[part]
    return y, (gate, up)


def swiglu_backward(dy: Array, cache: SwigluCache, overwrite: bool = False) -> tuple[Array, Array]:
    """Compute the gradients of `swiglu_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, f)
        The gradient of y.
    cache : SwigluCache
        The cache of the forward pass.
    overwrite : bool
        If True, dgate overwrites gate and dup overwrites up. Then no new array of shape (…, f) is needed, but the cache
        can be used for one backward pass only.

    Returns
    -------
    dgate : ndarray, shape (…, f)
        The gradient of gate.
    dup : ndarray, shape (…, f)
        The gradient of up.

    Notes
    -----
    In the forward pass y = silu(gate) ∘ up. The product rule gives dup = dy ∘ silu(gate) and
    dgate = dy ∘ up ∘ silu′(gate).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import swiglu_backward, swiglu_forward
    >>> y, cache = swiglu_forward(np.array([0.0]), np.array([3.0]))
    >>> swiglu_backward(np.array([1.0]), cache)  # silu(0) = 0, silu′(0) = ½
    (array([1.5]), array([0.]))
    """
    gate, up = cache
    check_shape("dy", dy, *gate.shape)
    dgate, dup = _gradients_of(gate, up, overwrite)
    for part in parts(gate, arrays=5):
        x, s = gate[part], sigmoid(gate[part])
        slope = _silu_slope(x, s)
        slope *= up[part]
        s *= x
        array_module(x).multiply(s, dy[part], out=dup[part])  # up is no longer needed, if dup overwrites it
        array_module(x).multiply(slope, dy[part], out=dgate[part])
    return dgate, dup


def _gradients_of(gate: Array, up: Array, overwrite: bool) -> tuple[Array, Array]:
    """Return the arrays for dgate and dup: gate and up if `overwrite` is True, otherwise new arrays."""
    xp = array_module(gate)
    return (gate, up) if overwrite else (xp.empty(gate.shape, gate.dtype), xp.empty(up.shape, up.dtype))


def _silu_slope(x: Array, s: Array) -> Array:
    """Compute the derivative silu′(x) = s·(1 + x·(1 − s)), given s = σ(x). Only one new array is used."""
    slope = 1 - s
    slope *= x
    slope += 1
    slope *= s
    return slope


def gelu_forward(x: Array) -> tuple[Array, GeluCache]:
    """Compute GELU in its tanh form, y = ½x·(1 + tanh u) with u = √(2/π)·(x + 0.044715 x³).

    Parameters
    ----------
    x : ndarray, any shape, float32 or float64
        The input.

    Returns
    -------
    y : ndarray, the shape of x
        The output.
    cache : GeluCache
        The second argument of `gelu_backward`.

    Raises
    ------
    TypeError
        If x is not a float array.

    Notes
    -----
    GPT-2 uses this form. The result differs from the exact GELU, x·Φ(x), by less than 5e-4. The exact GELU needs erf,
    which NumPy does not have. NumPy's tanh also accepts complex numbers, which the complex step needs.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import gelu_forward
    >>> y, cache = gelu_forward(np.array([-10.0, 0.0, 10.0]))
    >>> y + 0.0
    array([ 0.,  0., 10.])
    """
    check_float(x=x)
    t = array_module(x).tanh(GELU_SCALE * x * (1 + GELU_CUBIC * x * x))
    return 0.5 * x * (1 + t), (x, t)


def gelu_backward(dy: Array, cache: GeluCache) -> Array:
    """Compute the gradient of `gelu_forward`.

    Parameters
    ----------
    dy : ndarray, the shape of x
        The gradient of y.
    cache : GeluCache
        The cache of the forward pass.

    Returns
    -------
    dx : ndarray, the shape of x
        The gradient of x.

    Notes
    -----
    In the forward pass y = ½x·(1 + t) with t = tanh u. The product rule with tanh′ = 1 − tanh² gives
    dx = dy·(½(1 + t) + ½x·(1 − t²)·u′), where u′ = √(2/π)·(1 + 3·0.044715 x²).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import gelu_backward, gelu_forward
    >>> y, cache = gelu_forward(np.array([0.0]))
    >>> gelu_backward(np.array([1.0]), cache)  # the slope at 0
    array([0.5])
    """
    x, t = cache
    check_shape("dy", dy, *x.shape)
    du = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * du)


def geglu_forward(gate: Array, up: Array) -> tuple[Array, SwigluCache]:
    """Compute GeGLU, y = gelu(gate) ∘ up, entry by entry, with GELU in its tanh form.

    Parameters
    ----------
    gate : ndarray, shape (…, f), float32 or float64
        The gate.
    up : ndarray, the shape of gate
        The values that the gate multiplies.

    Returns
    -------
    y : ndarray, shape (…, f)
        The output.
    cache : SwigluCache
        The second argument of `geglu_backward`.

    Raises
    ------
    ValueError
        If gate and up have different shapes.
    TypeError
        If the arrays do not both have the same float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import geglu_forward
    >>> y, cache = geglu_forward(np.array([-50.0, 50.0]), np.array([3.0, 3.0]))  # the gate is closed, then open
    >>> y + 0.0
    array([  0., 150.])
    """
    check_float(gate=gate, up=up)
    check_shape("up", up, *gate.shape)
    y = array_module(gate).empty(gate.shape, gate.dtype)
    for part in parts(gate, arrays=6):
        y[part] = gelu_forward(gate[part])[0] * up[part]
    return y, (gate, up)


def geglu_backward(dy: Array, cache: SwigluCache, overwrite: bool = False) -> tuple[Array, Array]:
    """Compute the gradients of `geglu_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, f)
        The gradient of y.
    cache : SwigluCache
        The cache of the forward pass.
    overwrite : bool
        If True, dgate overwrites gate and dup overwrites up. Then no new array of shape (…, f) is needed, but the cache
        can be used for one backward pass only.

    Returns
    -------
    dgate : ndarray, shape (…, f)
        The gradient of gate.
    dup : ndarray, shape (…, f)
        The gradient of up.

    Notes
    -----
    In the forward pass y = gelu(gate) ∘ up. The product rule gives dup = dy ∘ gelu(gate) and
    dgate = dy ∘ up ∘ gelu′(gate). The cache does not keep gelu(gate), so the backward pass computes gelu(gate) again.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import geglu_backward, geglu_forward
    >>> y, cache = geglu_forward(np.array([0.0]), np.array([3.0]))
    >>> geglu_backward(np.array([1.0]), cache)  # gelu(0) = 0, gelu′(0) = ½
    (array([1.5]), array([0.]))
    """
    gate, up = cache
    check_shape("dy", dy, *gate.shape)
    dgate, dup = _gradients_of(gate, up, overwrite)
    for part in parts(gate, arrays=8):
        y, gelu_cache = gelu_forward(gate[part])
        slope = gelu_backward(up[part], gelu_cache)
        dup[part] = dy[part] * y  # up is no longer needed, if dup overwrites it
        dgate[part] = dy[part] * slope
    return dgate, dup
