"""RMSNorm: divide each vector by its root mean square, then scale each feature (arXiv 1910.07467)."""

from __future__ import annotations

import math
from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows

RMSNormCache: TypeAlias = tuple[Array, Array, Array]  # x (…, d), w (d,), ρ (…, 1)


def rms_norm_forward(x: Array, w: Array, eps: float = 1e-5) -> tuple[Array, RMSNormCache]:
    """Compute RMSNorm, y_i = w_i · x_i · ρ with ρ = 1/√(mean_j x_j² + ε).

    Parameters
    ----------
    x : ndarray, shape (…, d), float32 or float64
        The input.
    w : ndarray, shape (d,)
        The trained factor of each feature.
    eps : float
        ε, a small constant that prevents a division by zero.

    Returns
    -------
    y : ndarray, shape (…, d)
        The output.
    cache : RMSNormCache
        The second argument of `rms_norm_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Notes
    -----
    If x_j² overflows, y is set to NaN. Otherwise y would be 0, and the overflow would not be noticed.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rms_norm_forward
    >>> y, cache = rms_norm_forward(np.array([[3.0, -3.0], [0.1, 0.1]]), np.ones(2), eps=0.0)
    >>> y.round(12)
    array([[ 1., -1.],
           [ 1.,  1.]])
    """
    check_float(x=x, w=w)
    check_shape("w", w, None)
    check_features("x", x, w.shape[0], "w (d,)")
    xp = array_module(x)
    mean_square = xp.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1]  # one pass, no x² in memory
    rho = 1 / xp.sqrt(mean_square + eps)  # (…, 1)
    rho = xp.where(xp.isfinite(mean_square), rho, math.nan)  # if x² overflowed: NaN instead of a silent y = 0
    y = x * rho
    y *= w
    return y, (x, w, rho)


def rms_norm_backward(
    dy: Array, cache: RMSNormCache, need_dx: bool = True, need_dw: bool = True
) -> tuple[Array | None, Array | None]:
    """Compute the gradients of `rms_norm_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, d)
        The gradient of y.
    cache : RMSNormCache
        The cache of the forward pass.
    need_dx : bool
        If False, dx is not computed.
    need_dw : bool
        If False, dw is not computed.

    Returns
    -------
    dx : ndarray, shape (…, d), or None
        The gradient of x.
    dw : ndarray, shape (d,), or None
        The gradient of w.

    Notes
    -----
    In the forward pass y_i = w_i x_i ρ. So the gradient of w is dw_i = Σ_n dy_ni x_ni ρ_n. For the gradient of x, let
    g = dy ∘ w. The input x_j changes y_j directly, and changes every y_i through ρ. The derivative of ρ is
    ∂ρ/∂x_j = −½ (mean x² + ε)^(−3/2) · 2 x_j / d = −ρ³ x_j / d. So

        dx_j = g_j ρ + Σ_i g_i x_i · ∂ρ/∂x_j = ρ g_j − x_j · ρ³ (Σ_i g_i x_i) / d

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rms_norm_backward, rms_norm_forward
    >>> x = np.array([[1.0, 2.0, 3.0]])
    >>> y, cache = rms_norm_forward(x, np.ones(3), eps=0.0)
    >>> dx, dw = rms_norm_backward(np.array([[0.5, -1.0, 2.0]]), cache)
    >>> bool(abs((dx * x).sum()) < 1e-12)  # a longer x gives the same y, so dx is perpendicular to x
    True
    """
    x, w, rho = cache
    check_shape("dy", dy, *x.shape)
    xp = array_module(x)
    dw = rows(dy * x * rho).sum(axis=0) if need_dw else None
    if not need_dx:
        return None, dw
    g = dy * w
    dot = xp.einsum("...i,...i->...", g, x)[..., None]  # Σ_i g_i x_i
    dot *= rho**3 / x.shape[-1]
    g *= rho
    g -= x * dot
    return g, dw
