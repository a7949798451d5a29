"""Causal attention with grouped key/value heads (Vaswani et al. 2017; grouped: Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

import math
from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_mask, check_shape

FORBIDDEN = -1e30  # added to a score that must not count: exp gives exactly 0, and −∞ would not survive complex numbers
BLOCK = (
    64  # queries at a time: their scores stay in the processor's cache, and the keys after them are never multiplied
)

# q/√d (b, g, h/g, t, d); k, v (b, g, s, d); o as q; of each block its first query, the one after its last, e (b, g, h/g·rows, seen)
# and 1/Σ e (b, g, h/g·rows, 1)
AttentionCache: TypeAlias = tuple[Array, Array, Array, Array, list[tuple[int, int, Array, Array]]]


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


def attention_forward(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, AttentionCache]:
    """o = softmax(q kᵀ / √d + causal mask) v for each head, h/g query heads sharing one key/value head.

    q (b, h, t, d), k and v (b, g, s, d) with h a multiple of g and s ≥ t → o (b, h, t, d). Keys beyond t are a past:
    query i sees keys 0 … s − t + i. `mask` (b, s) is True where a key may be seen at all, False where it is padding.
    Raises ValueError on shapes that do not fit.

    The heads of a group are stacked as rows of one product, (h/g · t, d) (d, s), so keys are never repeated in memory
    and the backward's dk and dv come out summed over the group by themselves. The queries go through in blocks, each
    over the keys that its last query sees: with t = 256 that is 5/8 of the t × t scores, where 1/2 counts.
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
    if mask is not None:
        check_mask(mask, b, s)
    xp = array_module(q)
    q = q.reshape(b, g, h // g, t, d) * (1 / math.sqrt(d))  # scale q (t·d numbers) rather than the scores (t·s)
    o = xp.empty(q.shape, q.dtype)
    blocks = []
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        seen = s - t + stop  # the keys that the last query of the block sees
        shape = b, g, h // g, stop - start
        e = _stack(q[..., start:stop, :]) @ k[:, :, :seen].swapaxes(-1, -2)  # scores (b, g, h/g·rows, seen)
        by_query = e.reshape(*shape, seen)
        by_query[..., s - t + start :] += xp.triu(xp.full((stop - start,) * 2, FORBIDDEN, dtype=e.real.dtype), k=1)
        if mask is not None:
            by_query += xp.where(mask[:, :seen], 0, FORBIDDEN).astype(e.real.dtype)[:, None, None, None, :]
        e -= e.real.max(axis=-1, keepdims=True)
        xp.exp(e, out=e)
        norm = 1 / e.sum(axis=-1, keepdims=True)  # p = e·norm; on o it costs d numbers a row, on p it would cost s
        o[..., start:stop, :] = ((e @ v[:, :, :seen]) * norm).reshape(*shape, d)
        blocks.append((start, stop, e, norm))
    return o.reshape(b, h, t, d), (q, k, v, o, blocks)


def attention_backward(do: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """dq, dk, dv for do (b, h, t, d).

    In the forward pass o = p v with p = softmax(z), z = q̂ kᵀ and q̂ = q/√d, so in reverse

        dv = pᵀ do,   dp = do vᵀ,   dz = p ∘ (dp − Σ_s p∘dp),   dk = dzᵀ q̂,   dq = dz k / √d

    Two savings. Σ_s p∘dp = Σ_d o∘do (insert dp = do vᵀ and o = p v): a sum over d instead of over s. And p = e·norm is
    never formed: with do' = norm·do, dv = eᵀ do' and dz = e ∘ (do' vᵀ − Σ_d o∘do').

    Each block of queries gives the whole dq of its own, and a share of dk and dv for the keys that it saw.
    """
    q, k, v, o, blocks = cache
    b, g, n, t, d = q.shape
    check_shape("do", do, b, g * n, t, d)
    xp = array_module(q)
    do = do.reshape(q.shape)
    dq, dk, dv = xp.empty(q.shape, q.dtype), xp.zeros(k.shape, k.dtype), xp.zeros(v.shape, v.dtype)
    for start, stop, e, norm in blocks:
        seen = e.shape[-1]
        do_block = _stack(do[..., start:stop, :]) * norm
        dv[:, :, :seen] += e.swapaxes(-1, -2) @ do_block
        dz = do_block @ v[:, :, :seen].swapaxes(-1, -2)
        dz -= xp.einsum("...i,...i->...", _stack(o[..., start:stop, :]), do_block)[..., None]
        dz *= e
        dk[:, :, :seen] += dz.swapaxes(-1, -2) @ _stack(q[..., start:stop, :])
        dq[..., start:stop, :] = (dz @ k[:, :, :seen]).reshape(b, g, n, stop - start, d)
    dq *= 1 / math.sqrt(d)
    return dq.reshape(b, g * n, t, d), dk, dv


def _stack(x: Array) -> Array:
    """(b, g, n, rows, d) → (b, g, n·rows, d): the heads of a group under one another."""
    b, g, n, rows, d = x.shape
    return x.reshape(b, g, n * rows, d)
