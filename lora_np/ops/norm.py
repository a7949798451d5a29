"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467): divide by the root mean square, then scale each feature."""

from __future__ import annotations

import math
from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows

RMSNormCache: TypeAlias = tuple[Array, Array, Array]  # x (…, d), w (d,), ρ (…, 1)


def rms_norm_forward(x: Array, w: Array, eps: float = 1e-5) -> tuple[Array, RMSNormCache]:
    """y_i = w_i · x_i · ρ, with ρ = 1/√(mean_j x_j² + ε).

    x (…, d), w (d,) → y (…, d). Raises ValueError or TypeError on shapes or dtypes that do not fit.
    """
    check_float(x=x, w=w)
    check_shape("w", w, None)
    check_features("x", x, w.shape[0], "w (d,)")
    xp = array_module(x)
    mean_square = xp.einsum("...i,...i->...", x, x)[..., None] / x.shape[-1]  # one pass, no x² in memory
    rho = 1 / xp.sqrt(mean_square + eps)  # (…, 1)
    rho = xp.where(xp.isfinite(mean_square), rho, math.nan)  # where x² overflowed: NaN, rather than a silent y = 0
    y = x * rho
    y *= w
    return y, (x, w, rho)


def rms_norm_backward(
    dy: Array, cache: RMSNormCache, need_dx: bool = True, need_dw: bool = True
) -> tuple[Array | None, Array | None]:
    """dx, dw for dy (…, d); each None where it is not needed.

    In the forward pass y_i = w_i x_i ρ. For w: dw_i = Σ_n dy_ni x_ni ρ_n. For x, with g = dy ∘ w, x_j enters y_j
    directly and every y_i through ρ, where ∂ρ/∂x_j = −½ (mean x² + ε)^(−3/2) · 2 x_j / d = −ρ³ x_j / d. So

        dx_j = g_j ρ + Σ_i g_i x_i · ∂ρ/∂x_j = ρ g_j − x_j · ρ³ (Σ_i g_i x_i) / d
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
