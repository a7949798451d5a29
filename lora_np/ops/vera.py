"""VeRA: all layers share two random frozen factors, and each layer trains two vectors (arXiv 2310.11454, eq. 2)."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows

# h (N, r), A (r, in), B (out, r), d (r,), b (out,)
VeraCache: TypeAlias = tuple[Array, Array, Array, Array, Array]


def vera_forward(x: Array, A: Array, B: Array, d: Array, b: Array) -> tuple[Array, VeraCache]:
    """Compute the output of the VeRA bypass alone, δ = b ∘ ((d ∘ (x Aᵀ)) Bᵀ).

    Parameters
    ----------
    x : ndarray, shape (…, in), float32 or float64
        The input of the layer.
    A : ndarray, shape (r, in)
        The first shared factor, frozen.
    B : ndarray, shape (out, r)
        The second shared factor, frozen.
    d : ndarray, shape (r,)
        The trained vector that scales the r features of x Aᵀ.
    b : ndarray, shape (out,)
        The trained vector that scales the outputs.

    Returns
    -------
    delta : ndarray, shape (…, out)
        The term x ΔWᵀ that is added to the output of the frozen layer. Here ΔW = Λ_b B Λ_d A, with diagonal matrices
        Λ_b of b and Λ_d of d.
    cache : VeraCache
        The second argument of `vera_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import vera_forward
    >>> rng = np.random.default_rng(0)
    >>> x, A, B = rng.normal(size=(5, 6)), rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    >>> d, b = rng.normal(size=3), rng.normal(size=4)
    >>> delta, cache = vera_forward(x, A, B, d, b)
    >>> np.allclose(delta, x @ (np.diag(b) @ B @ np.diag(d) @ A).T)
    True
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
    """Compute the gradients of `vera_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, out)
        The gradient of δ.
    cache : VeraCache
        The cache of the forward pass.
    need_dx : bool
        If False, dx is not computed.

    Returns
    -------
    dx : ndarray, shape (…, in), or None
        The gradient of x through the bypass.
    dd : ndarray, shape (r,)
        The gradient of d.
    db : ndarray, shape (out,)
        The gradient of b.

    Notes
    -----
    A and B are frozen and have no gradients. In the forward pass δ_no = b_o Σ_r k_nr B_or, with h = x Aᵀ and k = d ∘ h.
    The gradients are

        db_o = Σ_n dy_no Σ_r k_nr B_or = Σ_r (dyᵀ k)_or B_or,      the row sums of (dyᵀ k) ∘ B;
        dk   = (dy ∘ b) B,                                         shapes (N, out) (out, r);
        dd_r = Σ_n dk_nr h_nr;
        dx   = (dk ∘ d) A,                                         shapes (N, r) (r, in).

    The cache keeps the N·r numbers of h, but neither x nor k Bᵀ.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import vera_backward, vera_forward
    >>> x, A, B = np.ones((5, 6)), np.ones((3, 6)), np.ones((4, 3))
    >>> delta, cache = vera_forward(x, A, B, np.full(3, 0.1), np.zeros(4))  # b = 0, as at the start
    >>> dx, dd, db = vera_backward(np.ones((5, 4)), cache)
    >>> bool((dd == 0).all()), bool((db == 0).any())
    (True, False)
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
