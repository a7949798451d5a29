"""Inverted dropout (Srivastava et al. 2014): numbers not set to 0 are scaled up, to keep the expected values."""

from __future__ import annotations

import numpy as np

from ..backend import Array, move
from .checks import check_float, check_shape


def dropout_forward(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Array | None]:
    """Set each number of x to 0 with probability p, and multiply the other numbers by 1/(1 − p).

    Parameters
    ----------
    x : ndarray, any shape, float32 or float64
        The input.
    p : float
        The dropout probability, 0 ≤ p < 1.
    rng : numpy.random.Generator or None
        The generator of the mask. None means evaluation, with y = x.

    Returns
    -------
    y : ndarray, the shape of x
        x ∘ mask.
    mask : ndarray, the shape of x, or None
        0 or 1/(1 − p) for each number of x; None without dropout. The mask is the second argument of
        `dropout_backward`.

    Raises
    ------
    ValueError
        If p is outside 0 ≤ p < 1.
    TypeError
        If x is not a float array.

    Notes
    -----
    The mask is drawn on the host, so one seed gives the same mask on every device.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import dropout_forward
    >>> y, mask = dropout_forward(np.ones(1000), p=0.2, rng=np.random.default_rng(0))
    >>> np.unique(y)
    array([0.  , 1.25])
    """
    check_float(x=x)
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability p = {p}; expected 0 ≤ p < 1")
    if rng is None or p == 0:
        return x, None
    real = x.real.dtype
    kept = rng.random(x.shape, dtype=np.float32) >= p
    mask = move(kept, x).astype(real)
    mask *= 1 / (1 - p)
    return x * mask, mask


def dropout_backward(dy: Array, mask: Array | None) -> Array:
    """Compute the gradient of `dropout_forward`.

    Parameters
    ----------
    dy : ndarray, the shape of x
        The gradient of y.
    mask : ndarray, the shape of x, or None
        The mask of the forward pass.

    Returns
    -------
    dx : ndarray, the shape of x
        The gradient of x.

    Notes
    -----
    In the forward pass each number of x was multiplied by an entry of the mask. So the gradient is multiplied by the
    same entries: dx = dy ∘ mask.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import dropout_backward
    >>> dropout_backward(np.array([1.0, 2.0]), np.array([0.0, 1.25]))
    array([0. , 2.5])
    """
    if mask is None:
        return dy
    check_shape("dy", dy, *mask.shape)
    return dy * mask
