"""The linear layer, y = x Wᵀ + b."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array
from .checks import check_features, check_float, check_shape
from .few_rows import times_transposed

# x (…, in), or None if W is frozen; W (out, in); whether there is a bias
LinearCache: TypeAlias = tuple[Array | None, Array, bool]


def rows(x: Array) -> Array:
    """Return x (…, n) reshaped to (N, n), so that one matrix product is enough for the whole batch."""
    return x.reshape(-1, x.shape[-1])


def linear_forward(x: Array, W: Array, b: Array | None = None) -> tuple[Array, LinearCache]:
    """Compute the output of a linear layer, y = x Wᵀ + b.

    Parameters
    ----------
    x : ndarray, shape (…, in), float32 or float64
        The input.
    W : ndarray, shape (out, in)
        The weight, with the dtype of `x`.
    b : ndarray, shape (out,), optional
        The bias. None means no bias.

    Returns
    -------
    y : ndarray, shape (…, out)
        The output.
    cache : LinearCache
        The second argument of `linear_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import linear_forward
    >>> y, cache = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]]))
    >>> y
    array([[11., 17., 23.]])
    """
    check_float(x=x, W=W)
    check_shape("W", W, None, None)
    check_features("x", x, W.shape[1], "W (out, in)")
    y = times_transposed(rows(x), W)  # (N, in) (in, out) → (N, out)
    if b is not None:
        check_float(x=x, b=b)
        check_shape("b", b, W.shape[0])
        y += b
    return y.reshape(*x.shape[:-1], W.shape[0]), (x, W, b is not None)


def linear_backward(
    dy: Array, cache: LinearCache, need_dx: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """Compute the gradients of `linear_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, out)
        The gradient of the output.
    cache : LinearCache
        The cache of the forward pass. If x in the cache is None (W is frozen), dW is not computed.
    need_dx : bool
        If False, dx is not computed.

    Returns
    -------
    dx : ndarray, shape (…, in), or None
        The gradient of x.
    dW : ndarray, shape (out, in), or None
        The gradient of W.
    db : ndarray, shape (out,), or None
        The gradient of b. None if the layer has no bias.

    Notes
    -----
    In the forward pass, y_no = Σ_i x_ni W_oi + b_o. For a loss L with dy = ∂L/∂y the gradients are

        dx_ni = Σ_o dy_no W_oi,   that is, dx = dy W,    shapes (N, out) (out, in);
        dW_oi = Σ_n dy_no x_ni,   that is, dW = dyᵀ x,   shapes (out, N) (N, in);
        db_o  = Σ_n dy_no,        that is, db = the column sums of dy.

    If W is frozen, dW is not needed, so the cache does not have to keep x. A frozen W therefore saves the memory of x
    and a third of the layer's arithmetic.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import linear_backward, linear_forward
    >>> y, cache = linear_forward(np.ones((2, 5, 3)), np.ones((4, 3)), np.zeros(4))
    >>> dx, dW, db = linear_backward(np.ones((2, 5, 4)), cache)
    >>> dx.shape, dW.shape, db.shape
    ((2, 5, 3), (4, 3), (4,))
    >>> float(dW[0, 0])  # a sum over the 2 · 5 tokens
    10.0
    """
    x, W, has_bias = cache
    check_features("dy", dy, W.shape[0], "W (out, in)")
    dx = (rows(dy) @ W).reshape(*dy.shape[:-1], W.shape[1]) if need_dx else None
    dW = None if x is None else rows(dy).T @ rows(x)
    db = rows(dy).sum(axis=0) if has_bias else None
    return dx, dW, db
