"""LayerNorm: subtract the mean of each vector, divide by its standard deviation, then scale and shift (arXiv 1607.06450)."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows

LayerNormCache: TypeAlias = tuple[Array, Array, Array]  # x̂ (…, d), w (d,), ρ (…, 1)


def layer_norm_forward(x: Array, w: Array, b: Array, eps: float = 1e-5) -> tuple[Array, LayerNormCache]:
    """Compute LayerNorm, y_i = w_i · x̂_i + b_i with x̂_i = (x_i − mean_j x_j) · ρ and ρ = 1/√(var_j x_j + ε).

    Parameters
    ----------
    x : ndarray, shape (…, d), float32 or float64
        The input.
    w : ndarray, shape (d,)
        The trained factor of each feature.
    b : ndarray, shape (d,)
        The trained bias of each feature.
    eps : float
        ε, a small constant that prevents a division by zero.

    Returns
    -------
    y : ndarray, shape (…, d)
        The output.
    cache : LayerNormCache
        The second argument of `layer_norm_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import layer_norm_forward
    >>> y, cache = layer_norm_forward(np.array([[1.0, 3.0], [7.0, 5.0]]), np.ones(2), np.zeros(2), eps=0.0)
    >>> y
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    check_float(x=x, w=w, b=b)
    check_shape("w", w, None)
    check_shape("b", b, w.shape[0])
    check_features("x", x, w.shape[0], "w (d,)")
    xp = array_module(x)
    centred = x - x.sum(axis=-1, keepdims=True) / x.shape[-1]
    variance = xp.einsum("...i,...i->...", centred, centred)[..., None] / x.shape[-1]
    rho = 1 / xp.sqrt(variance + eps)  # (…, 1)
    centred *= rho
    y = centred * w
    y += b
    return y, (centred, w, rho)


def layer_norm_backward(
    dy: Array, cache: LayerNormCache, need_dx: bool = True, need_dw: bool = True
) -> tuple[Array | None, Array | None, Array | None]:
    """Compute the gradients of `layer_norm_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, d)
        The gradient of y.
    cache : LayerNormCache
        The cache of the forward pass.
    need_dx : bool
        If False, dx is not computed.
    need_dw : bool
        If False, dw and db are not computed.

    Returns
    -------
    dx : ndarray, shape (…, d), or None
        The gradient of x.
    dw : ndarray, shape (d,), or None
        The gradient of w.
    db : ndarray, shape (d,), or None
        The gradient of b.

    Notes
    -----
    In the forward pass y_i = w_i x̂_i + b_i. So dw_i = Σ_n dy_ni x̂_ni and db_i = Σ_n dy_ni. For the gradient of x, let
    g = dy ∘ w. The input x_j changes x̂_j directly, changes every x̂_i through the mean, and changes every x̂_i through ρ.
    With ∂x̂_i/∂x_j = ρ (δ_ij − 1/d − x̂_i x̂_j / d) the sum Σ_i g_i ∂x̂_i/∂x_j gives

        dx_j = ρ (g_j − mean_i g_i − x̂_j · mean_i g_i x̂_i)

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import layer_norm_backward, layer_norm_forward
    >>> x = np.array([[1.0, 2.0, 6.0]])
    >>> y, cache = layer_norm_forward(x, np.ones(3), np.zeros(3))
    >>> dx, dw, db = layer_norm_backward(np.array([[0.5, -1.0, 2.0]]), cache)
    >>> bool(abs(dx.sum()) < 1e-12)  # x + c gives the same y, so the gradients sum to 0
    True
    """
    centred, w, rho = cache
    check_shape("dy", dy, *centred.shape)
    xp, d = array_module(centred), centred.shape[-1]
    dw = rows(dy * centred).sum(axis=0) if need_dw else None
    db = rows(dy).sum(axis=0) if need_dw else None
    if not need_dx:
        return None, dw, db
    g = dy * w
    dot = xp.einsum("...i,...i->...", g, centred)[..., None] / d  # mean_i g_i x̂_i
    g -= g.sum(axis=-1, keepdims=True) / d
    g -= centred * dot
    g *= rho
    return g, dw, db
