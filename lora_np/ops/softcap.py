"""The soft cap of Gemma 2 (arXiv 2408.00118): a smooth bound for logits."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_shape

SoftcapCache: TypeAlias = tuple[Array]  # tanh(x/c)


def softcap_forward(x: Array, cap: float) -> tuple[Array, SoftcapCache]:
    """Compute the soft cap y = c·tanh(x/c), entry by entry.

    Parameters
    ----------
    x : ndarray, any shape, float32 or float64
        The input.
    cap : float
        c, the bound: y is between −c and c. Near 0, y is close to x.

    Returns
    -------
    y : ndarray, the shape of x
        The output.
    cache : SoftcapCache
        The second argument of `softcap_backward`.

    Raises
    ------
    TypeError
        If x is not a float array.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import softcap_forward
    >>> y, cache = softcap_forward(np.array([-1000.0, 0.0, 1000.0]), cap=30.0)
    >>> y
    array([-30.,   0.,  30.])
    """
    check_float(x=x)
    t = x / cap
    array_module(x).tanh(t, out=t)
    return t * cap, (t,)


def softcap_backward(dy: Array, cache: SoftcapCache) -> Array:
    """Compute the gradient of `softcap_forward`.

    Parameters
    ----------
    dy : ndarray, the shape of x
        The gradient of y.
    cache : SoftcapCache
        The cache of the forward pass.

    Returns
    -------
    dx : ndarray, the shape of x
        The gradient of x.

    Notes
    -----
    In the forward pass y = c·t with t = tanh(x/c). The derivative of t is (1 − t²)/c, so dx = dy·(1 − t²).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import softcap_backward, softcap_forward
    >>> y, cache = softcap_forward(np.array([0.0]), cap=30.0)
    >>> softcap_backward(np.array([1.0]), cache)  # the slope at 0
    array([1.])
    """
    (t,) = cache
    check_shape("dy", dy, *t.shape)
    dx = tanh_slope(t)
    dx *= dy
    return dx


def tanh_slope(t: Array) -> Array:
    """Return 1 − t², the slope of c·tanh(x/c), for t = tanh(x/c). Only one new array is used."""
    slope = t * t
    return array_module(t).subtract(1, slope, out=slope)
