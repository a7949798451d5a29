"""DoRA: the length of each row of W, and its direction, trained apart (Liu et al. 2024, arXiv 2402.09353, eq. 5).

    V = W + s·B A,   n_o = ‖V_o‖,   y = (m/n) ∘ (x Vᵀ)        row o of V makes output o, and m_o is the length it gets

(The paper says columns; PEFT, whose files these are, takes the rows of W (out, in), a length for each output.)

Two functions that meet in n. The true gradient goes back through both. The paper (section 4.3) and PEFT take n for a constant:
the same function, and the gradient of the first alone. With g = m/n and dW = dyᵀx, the row o of ∂L/∂V is

    detached    g_o dW_o
    true        g_o (dW_o − (dW_o·V_o) V_o/n_o²)       without its part along V_o: turning a row is all that V can do

so the detached gradient also stretches V's rows, which changes nothing in y.
"""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_features, check_float, check_shape
from .linear import rows
from .lora import LoraCache, lora_backward, lora_forward

# W (out, in), A (r, in), B (out, r), P (out, r), n (out,), scaling
RowNormCache: TypeAlias = tuple[Array, Array, Array, Array, Array, float]
DoraCache: TypeAlias = tuple[Array, Array, Array, LoraCache]  # z (…, out), m (out,), n (out,), the bypass's


def row_norm_forward(W: Array, A: Array, B: Array, scaling: float) -> tuple[Array, RowNormCache]:
    """n_o = ‖W_o + s·B_o A‖, the length of each row of V = W + s·B A.

    W (out, in) frozen, A (r, in), B (out, r) → n (out,). V is never built:

        n_o² = ‖W_o‖² + 2s B_o·C_o + s² B_o·(B G)_o        C = W Aᵀ (out, r),   G = A Aᵀ (r, r)
             = ‖W_o‖² + s B_o·(C + P)_o                    P = C + s·B G = V Aᵀ

    Exact but for what cancels: where ‖V_o‖ ≪ ‖W_o‖, n_o is off by a rounding error of ‖W_o‖²/n_o. Where s·B_o A takes all of
    W_o away, what is left of n_o² is that error, which may be negative, and n_o NaN: V_o has no direction there, and m_o/n_o no
    value. Raises ValueError or TypeError on shapes or dtypes that do not fit.
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
    """dA, dB for dn (out,); dA None where it is not needed.

    In the forward pass n_o = ‖V_o‖, so ∂n_o/∂V_o = V_o/n_o: with e = dn/n, dV = e ∘ V, a row at a time. And V = W + s·B A, so

        dB = s·dV Aᵀ = s·e ∘ (V Aᵀ) = s·e ∘ P                   (out, r), which the forward has
        dA = s·Bᵀ dV = s·(e ∘ B)ᵀ W + s²·((e ∘ B)ᵀ B) A         (r, out) (out, in), and two products of r × r numbers
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
    """y = (m/n) ∘ (u + s·(x Aᵀ) Bᵀ), the adapted layer over the frozen product u = x Wᵀ.

    x (…, in), u (…, out), A (r, in), B (out, r), m and n (out,) → y (…, out). `keep_x` as in `lora_forward`. Raises ValueError
    or TypeError on shapes or dtypes that do not fit.
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
    """dx, du, dA, dB, dm, dn for dy (…, out). dx is that of the bypass alone; the frozen path's follows from du.

    In the forward pass y_no = g_o z_no with g = m/n and z = u + s·(x Aᵀ) Bᵀ. So with dg_o = Σ_n dy_no z_no

        dz = g ∘ dy            du = dz, and dz is the dy of the bypass
        dm = dg/n
        dn = −dg·m/n² = −dm·g
    """
    z, m, n, lora_cache = cache
    check_shape("dy", dy, *z.shape)
    g = m / n
    du = dy * g
    dx, dA, dB = lora_backward(du, lora_cache, need_dx)
    dm = array_module(dy).einsum("no,no->o", rows(dy), rows(z))
    dm /= n
    return dx, du, dA, dB, dm, -dm * g
