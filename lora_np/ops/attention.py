"""Causal attention with grouped key/value heads (Vaswani et al. 2017; grouped: Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

import math

from ..backend import Array, array_module
from .checks import check_float, check_mask, check_shape

FORBIDDEN = (
    -1e30
)  # added to a score that must not count: exp gives exactly 0, and unlike −∞ it survives complex arithmetic


def softmax_forward(x: Array) -> tuple[Array, Array]:
    """p_i = exp(x_i − m) / Σ_j exp(x_j − m) over the last axis, with m = max_j x_j.

    x (…, n) → p (…, n). Taking m off changes nothing mathematically and keeps exp from overflowing.
    """
    check_float(x=x)
    p = x - x.real.max(axis=-1, keepdims=True)
    array_module(x).exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    return p, p


def softmax_backward(dp: Array, p: Array) -> Array:
    """dx_j = p_j (dp_j − Σ_i dp_i p_i) for dp (…, n), because ∂p_i/∂x_j = p_i (δ_ij − p_j)."""
    dot = array_module(p).einsum("...i,...i->...", dp, p)[..., None]
    return p * (dp - dot)


def attention_forward(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, tuple]:
    """o = softmax(q kᵀ / √d + causal mask) v for each head, h/g query heads sharing one key/value head.

    q (b, h, t, d), k and v (b, g, s, d) with h a multiple of g and s ≥ t → o (b, h, t, d). Keys beyond t are a past:
    query i sees keys 0 … s − t + i. `mask` (b, s) is True where a key may be seen at all, False where it is padding.
    Raises ValueError on shapes that do not fit.

    The heads of a group are stacked as rows of one product, (h/g · t, d) (d, s), so keys are never repeated in memory
    and the backward's dk and dv come out summed over the group by themselves.
    """
    check_float(q=q, k=k, v=v)
    check_shape("q", q, None, None, None, None)
    b, h, t, d = q.shape
    check_shape("k", k, b, None, None, d)
    g, s = k.shape[1:3]
    check_shape("v", v, b, g, s, d)
    if h % g or s < t:
        raise ValueError(
            f"{h} query heads on {g} key/value heads, {t} queries on {s} keys: need h a multiple of g, s ≥ t"
        )
    xp = array_module(q)
    q = q.reshape(b, g, h // g * t, d) * (1 / math.sqrt(d))  # scale q (t·d numbers) rather than the scores (t·s)
    e = q @ k.swapaxes(-1, -2)  # scores (b, g, h/g·t, s)
    by_query = e.reshape(b, g, h // g, t, s)
    by_query += xp.triu(xp.full((t, s), FORBIDDEN, dtype=e.real.dtype), k=s - t + 1)
    if mask is not None:
        check_mask(mask, b, s)
        by_query += xp.where(mask, 0, FORBIDDEN).astype(e.real.dtype)[:, None, None, None, :]
    e -= e.real.max(axis=-1, keepdims=True)
    xp.exp(e, out=e)
    norm = 1 / e.sum(
        axis=-1, keepdims=True
    )  # p = e·norm; multiplying o by norm instead saves a pass over the t·s numbers
    o = (e @ v) * norm
    return o.reshape(b, h, t, d), (q, k, v, e, norm, o)


def attention_backward(do: Array, cache: tuple) -> tuple[Array, Array, Array]:
    """dq, dk, dv for do (b, h, t, d).

    In the forward pass o = p v with p = softmax(z), z = q̂ kᵀ and q̂ = q/√d, so in reverse

        dv = pᵀ do,   dp = do vᵀ,   dz = p ∘ (dp − Σ_s p∘dp),   dk = dzᵀ q̂,   dq = dz k / √d

    Two savings. Σ_s p∘dp = Σ_d o∘do (insert dp = do vᵀ and o = p v): a sum over d instead of over s. And p = e·norm is
    never formed: with do' = norm·do, dv = eᵀ do' and dz = e ∘ (do' vᵀ − Σ_d o∘do').
    """
    q, k, v, e, norm, o = cache
    shape = do.shape
    check_shape("do", do, q.shape[0], None, None, q.shape[-1])
    do = do.reshape(o.shape) * norm
    dv = e.swapaxes(-1, -2) @ do
    dz = do @ v.swapaxes(-1, -2)
    dz -= array_module(o).einsum("...i,...i->...", o, do)[..., None]
    dz *= e
    dk = dz.swapaxes(-1, -2) @ q
    dq = dz @ k
    dq *= 1 / math.sqrt(shape[-1])
    return dq.reshape(shape), dk, dv
