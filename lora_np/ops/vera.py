"""VeRA: a bypass of random factors that all layers share, and of which two vectors are trained (arXiv 2310.11454, eq. 2)."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows

# h (N, r), A (r, in), B (out, r), d (r,), b (out,)
VeraCache: TypeAlias = tuple[Array, Array, Array, Array, Array]


def vera_forward(x: Array, A: Array, B: Array, d: Array, b: Array) -> tuple[Array, VeraCache]:
    """The bypass alone, δ = b ∘ ((d ∘ (x Aᵀ)) Bᵀ), which is x ΔWᵀ for ΔW = Λ_b B Λ_d A.

    x (…, in), A (r, in) and B (out, r) frozen, d (r,), b (out,) → δ (…, out). Raises ValueError or TypeError on shapes or
    dtypes that do not fit.
    """
    check_float(x=x, A=A, B=B, d=d, b=b)
    check_shape("A", A, None, None)
    check_shape("B", B, None, A.shape[0])
    check_shape("d", d, A.shape[0])
    check_shape("b", b, B.shape[0])
    check_features("x", x, A.shape[1], "A (r, in)")
    h = rows(x) @ A.T  # (N, in) (in, r) → (N, r)
    delta = (h * d) @ B.T  # (N, r) (r, out) → (N, out)
    delta *= b
    return delta.reshape(*x.shape[:-1], B.shape[0]), (h, A, B, d, b)


def vera_backward(dy: Array, cache: VeraCache, need_dx: bool = True) -> tuple[Array | None, Array, Array]:
    """dx, dd, db for dy (…, out); dx None where it is not needed. A and B have none: they are frozen.

    In the forward pass, with h = x Aᵀ and k = d ∘ h, δ_no = b_o Σ_r k_nr B_or. So

        db_o = Σ_n dy_no Σ_r k_nr B_or = Σ_r (dyᵀ k)_or B_or       the row sums of (dyᵀ k) ∘ B
        dk   = (dy ∘ b) B                                          (N, out) (out, r)
        dd_r = Σ_n dk_nr h_nr
        dx   = (dk ∘ d) A                                          (N, r) (r, in)

    For all of them h, N·r numbers, is enough: neither x nor k Bᵀ is kept.
    """
    h, A, B, d, b = cache
    check_features("dy", dy, B.shape[0], "B (out, r)")
    dy_rows = rows(dy)
    db = array_module(dy).einsum("or,or->o", dy_rows.T @ (h * d), B)
    dk = (dy_rows * b) @ B
    dd = (dk * h).sum(axis=0)
    dx = None
    if need_dx:
        dk *= d
        dx = (dk @ A).reshape(*dy.shape[:-1], A.shape[1])
    return dx, dd, db
