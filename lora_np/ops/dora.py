"""DoRA: the length and the direction of each row of W are trained separately (arXiv 2402.09353, eq. 5).

    V = W + s·B A,   n_o = ‖V_o‖,   y = (m/n) ∘ (x Vᵀ)        V_o: row o of V, for output o; m_o: its new length

The paper normalises columns. PEFT normalises the rows of W (out, in), which gives one length per output. This library
also normalises rows, so that PEFT and this library can use the same adapter files.

There are two functions: `row_norm_forward` computes n, and `dora_forward` uses n. The true gradient goes back through
both functions. The paper (section 4.3) and PEFT treat n as a constant. With a constant n, the forward pass is the same,
but the gradient goes back through `dora_forward` only. With g = m/n and dW = dyᵀx, row o of ∂L/∂V is

    detached    g_o dW_o
    true        g_o (dW_o − (dW_o·V_o) V_o/n_o²)       without its component along V_o

The true gradient has no component along V_o, because a longer V_o gives the same y. The detached gradient, with n as a
constant, has a component along V_o. This component changes the lengths of V's rows, but longer or shorter rows give the
same y.
"""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows
from .lora import LoraCache, lora_backward, lora_forward

# W (out, in), A (r, in), B (out, r), P (out, r), n (out,), scaling
RowNormCache: TypeAlias = tuple[Array, Array, Array, Array, Array, float]
DoraCache: TypeAlias = tuple[Array, Array, Array, LoraCache]  # z (…, out), m (out,), n (out,), the bypass's cache


def row_norm_forward(W: Array, A: Array, B: Array, scaling: float) -> tuple[Array, RowNormCache]:
    """Compute n_o = ‖W_o + s·B_o A‖, the length of each row of V = W + s·B A, without building V.

    Parameters
    ----------
    W : ndarray, shape (out, in), float32 or float64
        The frozen weight.
    A : ndarray, shape (r, in)
        LoRA's factor A.
    B : ndarray, shape (out, r)
        LoRA's factor B.
    scaling : float
        LoRA's scaling s.

    Returns
    -------
    n : ndarray, shape (out,)
        The lengths.
    cache : RowNormCache
        The second argument of `row_norm_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Notes
    -----
    The square of the length n_o is

        n_o² = ‖W_o‖² + 2s B_o·C_o + s² B_o·(B G)_o        C = W Aᵀ (out, r),   G = A Aᵀ (r, r)
             = ‖W_o‖² + s B_o·(C + P)_o                    P = C + s·B G = V Aᵀ

    The formula is exact except for errors by rounding and cancellation. If ‖V_o‖ ≪ ‖W_o‖, the error of n_o is as
    large as the rounding error of ‖W_o‖²/n_o. If s·B_o A cancels W_o completely, the computed n_o² is only a rounding
    error. If this error is negative, n_o is NaN. For a row V_o of zeros, m_o/n_o is undefined in exact arithmetic too,
    because such a row has no direction.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import row_norm_forward
    >>> rng = np.random.default_rng(0)
    >>> W, A, B = rng.normal(size=(4, 6)), rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    >>> n, cache = row_norm_forward(W, A, B, scaling=2.0)
    >>> np.allclose(n, np.linalg.norm(W + 2.0 * B @ A, axis=1))
    True
    """
    check_float(W=W, A=A, B=B)
    check_shape("W", W, None, None)
    check_shape("A", A, None, W.shape[1])
    check_shape("B", B, W.shape[0], A.shape[0])
    xp = array_module(W)
    C = W @ A.T  # (out, in) (in, r) → (out, r)
    P = B @ (A @ A.T)  # (out, r) (r, r)
    P *= scaling
    P += C
    C += P
    n = xp.sqrt(xp.einsum("oi,oi->o", W, W) + scaling * xp.einsum("or,or->o", B, C))
    return n, (W, A, B, P, n, scaling)


def row_norm_backward(dn: Array, cache: RowNormCache, need_dA: bool = True) -> tuple[Array | None, Array]:
    """Compute the gradients of `row_norm_forward`.

    Parameters
    ----------
    dn : ndarray, shape (out,)
        The gradient of n.
    cache : RowNormCache
        The cache of the forward pass.
    need_dA : bool
        If False, dA is not computed.

    Returns
    -------
    dA : ndarray, shape (r, in), or None
        The gradient of A.
    dB : ndarray, shape (out, r)
        The gradient of B.

    Notes
    -----
    In the forward pass n_o = ‖V_o‖, so ∂n_o/∂V_o = V_o/n_o. With e = dn/n, row o of dV is e_o V_o. V = W + s·B A gives

        dB = s·dV Aᵀ = s·e ∘ (V Aᵀ) = s·e ∘ P,                  with P from the cache;
        dA = s·Bᵀ dV = s·(e ∘ B)ᵀ W + s²·((e ∘ B)ᵀ B) A,        without the (out, in) matrix dV.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import row_norm_backward, row_norm_forward
    >>> rng = np.random.default_rng(0)
    >>> W, A, B = rng.normal(size=(4, 6)), rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    >>> n, cache = row_norm_forward(W, A, B, scaling=2.0)
    >>> dA, dB = row_norm_backward(np.ones(4), cache)
    >>> dA.shape, dB.shape
    ((3, 6), (4, 3))
    """
    W, A, B, P, n, scaling = cache
    check_shape("dn", dn, W.shape[0])
    e = (scaling * (dn / n))[:, None]
    dB = e * P
    if not need_dA:
        return None, dB
    eB = e * B
    dA = eB.T @ W
    dA += scaling * ((eB.T @ B) @ A)
    return dA, dB


def dora_forward(
    x: Array, u: Array, A: Array, B: Array, m: Array, n: Array, scaling: float, keep_x: bool = True
) -> tuple[Array, DoraCache]:
    """Compute the output of a DoRA layer, y = (m/n) ∘ (u + s·(x Aᵀ) Bᵀ), from the frozen layer's output u = x Wᵀ.

    Parameters
    ----------
    x : ndarray, shape (…, in), float32 or float64
        The input of the layer.
    u : ndarray, shape (…, out)
        The output of the frozen layer, x Wᵀ.
    A : ndarray, shape (r, in)
        LoRA's factor A.
    B : ndarray, shape (out, r)
        LoRA's factor B.
    m : ndarray, shape (out,)
        The trained lengths of the rows of the weight.
    n : ndarray, shape (out,)
        The current lengths of the rows of W + s·B A, from `row_norm_forward`.
    scaling : float
        LoRA's scaling s.
    keep_x : bool
        Use `keep_x=False` if A is frozen; see `lora_forward`.

    Returns
    -------
    y : ndarray, shape (…, out)
        The output of the adapted layer.
    cache : DoraCache
        The second argument of `dora_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import dora_forward, row_norm_forward
    >>> rng = np.random.default_rng(0)
    >>> x, W, A = rng.normal(size=(5, 6)), rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    >>> B = np.zeros((4, 3))  # as at the start: m = n, and the layer computes x Wᵀ
    >>> n, _ = row_norm_forward(W, A, B, scaling=2.0)
    >>> y, cache = dora_forward(x, x @ W.T, A, B, n, n, scaling=2.0)
    >>> np.allclose(y, x @ W.T)
    True
    """
    check_float(x=x, u=u, m=m, n=n)
    z, lora_cache = lora_forward(x, A, B, scaling, keep_x)
    check_features("u", u, B.shape[0], "B (out, r)")
    check_shape("m", m, B.shape[0])
    check_shape("n", n, B.shape[0])
    z += u
    return (m / n) * z, (z, m, n, lora_cache)


def dora_backward(
    dy: Array, cache: DoraCache, need_dx: bool = True
) -> tuple[Array | None, Array, Array | None, Array, Array, Array]:
    """Compute the gradients of `dora_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, out)
        The gradient of the output.
    cache : DoraCache
        The cache of the forward pass.
    need_dx : bool
        If False, dx is not computed.

    Returns
    -------
    dx : ndarray, shape (…, in), or None
        The gradient of x through the bypass alone. The caller must add du W, the gradient of x through the frozen
        layer.
    du : ndarray, shape (…, out)
        The gradient of u.
    dA : ndarray, shape (r, in), or None
        The gradient of A, with n as a constant. None if `dora_forward` was called with `keep_x=False`.
    dB : ndarray, shape (out, r)
        The gradient of B, with n as a constant.
    dm : ndarray, shape (out,)
        The gradient of m.
    dn : ndarray, shape (out,)
        The gradient of n, which is the first argument of `row_norm_backward`.

    Notes
    -----
    In the forward pass y_no = g_o z_no with g = m/n and z = u + s·(x Aᵀ) Bᵀ. Let dg_o = Σ_n dy_no z_no. Then

        dz = g ∘ dy,   du = dz,   dm = dg/n,   dn = −dg·m/n² = −dm·g

    The bypass's output also has the gradient dz, and `lora_backward` gives dx, dA and dB.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import dora_backward, dora_forward
    >>> rng = np.random.default_rng(0)
    >>> x, u = rng.normal(size=(5, 6)), rng.normal(size=(5, 4))
    >>> y, cache = dora_forward(x, u, np.ones((3, 6)), np.ones((4, 3)), np.ones(4), np.ones(4), scaling=2.0)
    >>> [gradient.shape for gradient in dora_backward(np.ones((5, 4)), cache)]
    [(5, 6), (5, 4), (3, 6), (4, 3), (4,), (4,)]
    """
    z, m, n, lora_cache = cache
    check_shape("dy", dy, *z.shape)
    g = m / n
    du = dy * g
    dx, dA, dB = lora_backward(du, lora_cache, need_dx)
    dm = array_module(dy).einsum("no,no->o", rows(dy), rows(z))
    dm /= n
    return dx, du, dA, dB, dm, -dm * g
