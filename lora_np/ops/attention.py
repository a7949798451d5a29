"""Causal attention (Vaswani et al. 2017) with grouped key/value heads (Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_mask, check_shape
from .softcap import tanh_slope

MASKED = -1e30  # added to a masked score, so that exp gives exactly 0; −∞ would give NaN in complex numbers
BLOCK = 64  # queries per block: their scores fit in the processor's cache, and keys after the block are not multiplied

# One block: its queries and its keys as slices, scale·q (b, g, h/g·rows, d), e (b, g, keys, h/g·rows), 1/Σ e
# (b, g, h/g·rows, 1), and with a soft cap tanh of the scores (b, g, keys, h/g·rows)
Block: TypeAlias = tuple[slice, slice, Array, Array, Array, Array | None]
# k and v (b, g, s, d); o (b, h, t, d); scale; the blocks
AttentionCache: TypeAlias = tuple[Array, Array, Array, float, list[Block]]


def softmax_forward(x: Array) -> tuple[Array, Array]:
    """Compute the softmax of the last axis, p_i = exp(x_i − m) / Σ_j exp(x_j − m) with m = max_j x_j.

    Parameters
    ----------
    x : ndarray, shape (…, n), float32 or float64
        The scores.

    Returns
    -------
    p : ndarray, shape (…, n)
        The probabilities: positive, with sum 1.
    cache : ndarray, shape (…, n)
        The array p, which is the second argument of `softmax_backward`.

    Raises
    ------
    TypeError
        If x is not a float array.

    Notes
    -----
    Subtracting m prevents an overflow of exp and does not change p.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import softmax_forward
    >>> p, cache = softmax_forward(np.array([1000.0, 1000.0]))
    >>> p
    array([0.5, 0.5])
    """
    check_float(x=x)
    p = x - x.real.max(axis=-1, keepdims=True)
    array_module(x).exp(p, out=p)
    p /= p.sum(axis=-1, keepdims=True)
    return p, p


def softmax_backward(dp: Array, p: Array) -> Array:
    """Compute the gradient of `softmax_forward`.

    Parameters
    ----------
    dp : ndarray, shape (…, n)
        The gradient of p.
    p : ndarray, shape (…, n)
        The probabilities, which are the cache of the forward pass.

    Returns
    -------
    dx : ndarray, shape (…, n)
        The gradient of x.

    Notes
    -----
    The derivatives of the forward pass are ∂p_i/∂x_j = p_i (δ_ij − p_j), with δ_ij = 1 if i = j and 0 otherwise. So
    dx_j = Σ_i dp_i p_i (δ_ij − p_j) = p_j (dp_j − Σ_i dp_i p_i).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import softmax_backward
    >>> softmax_backward(np.array([1.0, 0.0]), np.array([0.5, 0.5]))
    array([ 0.25, -0.25])
    """
    dot = array_module(p).einsum("...i,...i->...", dp, p)[..., None]
    return p * (dp - dot)


def attention_forward(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> tuple[Array, AttentionCache]:
    """Compute causal attention, o = softmax(q kᵀ / √d + causal mask) v, for each head.

    Parameters
    ----------
    q : ndarray, shape (b, h, t, d), float32 or float64
        The queries.
    k : ndarray, shape (b, g, s, d)
        The keys, with s ≥ t. The number h must be a multiple of g, because h/g query heads share one key/value head.
    v : ndarray, shape (b, g, s, d)
        The values.
    mask : ndarray of bool, shape (b, s), optional
        True for keys that queries may see, False for padding. None means no padding.
    scale : float, optional
        The factor of the scores q kᵀ. None means 1/√d.
    window : int, optional
        A query sees only the last `window` tokens, including its own (a sliding window, arXiv 2310.06825). Padding is
        not counted. None means no window.
    softcap : float, optional
        The soft cap c: the score z becomes c·tanh(z/c), which is between −c and c. None means no cap.

    Returns
    -------
    o : ndarray, shape (b, h, t, d)
        The output of each head.
    cache : AttentionCache
        The second argument of `attention_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype, or if the mask is not boolean.

    Notes
    -----
    The first s − t keys come from earlier calls (a key/value cache). Query i sees the keys 0 … s − t + i.

    For each key/value head, one product of an (h/g · t, d) matrix and a (d, s) matrix computes the scores of all h/g
    query heads. So the keys are not copied for each query head. In the backward pass, the matrix products also sum dk
    and dv over these query heads. The queries are processed in blocks. Each block is multiplied only with the keys that
    the last query of the block sees. With s = t = 256, 5/8 of the t × t scores are computed, although the causal mask
    allows only 1/2 of the scores. The scores are stored with one column per query. The maximum and the sum over the
    keys then read whole rows. With one row per query, they would take three times as long.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import attention_forward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(1, 4, 5, 8)), rng.normal(size=(1, 2, 5, 8)), rng.normal(size=(1, 2, 5, 8))
    >>> o, cache = attention_forward(q, k, v)
    >>> o.shape, np.allclose(o[0, 0, 0], v[0, 0, 0])  # the first token sees itself only
    ((1, 4, 5, 8), True)
    """
    check_float(q=q, k=k, v=v)
    check_shape("q", q, None, None, None, None)
    b, h, t, d = q.shape
    check_shape("k", k, b, None, None, d)
    g, s = k.shape[1:3]
    check_shape("v", v, b, g, s, d)
    if h % g or s < t:
        raise ValueError(
            f"got {h} query heads, {g} key/value heads, {t} queries and {s} keys; the number of query heads must be a "
            "multiple of the key/value heads, and there must be at least as many keys as queries"
        )
    if mask is not None:
        check_mask(mask, b, s)
    xp = array_module(q)
    scale = 1 / math.sqrt(d) if scale is None else scale
    o = _empty_like(q)
    q, o_groups = q.reshape(b, g, h // g, t, d), o.reshape(b, g, h // g, t, d)
    blocks: list[Block] = []
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        rows = stop - start
        first = 0 if window is None or mask is not None else max(0, s - t + start + 1 - window)
        queries, keys = slice(start, stop), slice(first, s - t + stop)  # the last query of the block sees these keys
        q_block = _stack(q[..., queries, :]) * scale  # scale q (t·d numbers), not the scores (t·s numbers)
        e = k[:, :, keys] @ q_block.swapaxes(-1, -2)  # the scores zᵀ (b, g, keys, h/g·rows), one column per query
        tanh = None
        if softcap is not None:
            e /= softcap
            tanh = xp.tanh(e, out=e)
            e = tanh * softcap
        by_query = e.reshape(b, g, -1, h // g, rows)
        by_query[:, :, -rows:] += xp.tril(xp.full((rows, rows), MASKED, dtype=e.real.dtype), k=-1)[:, None]
        if mask is not None:
            by_query += xp.where(mask[:, keys], 0, MASKED).astype(e.real.dtype)[:, None, :, None, None]
        if window is not None:
            by_query += _outside_window(xp, window, s - t + start, keys, rows, mask).astype(e.real.dtype)
        e -= e.real.max(axis=-2, keepdims=True)
        xp.exp(e, out=e)
        norm = 1 / e.sum(axis=-2)[..., None]  # p = e·norm: scale o (d numbers per query), not e (s numbers per query)
        o_groups[..., queries, :] = ((e.swapaxes(-1, -2) @ v[:, :, keys]) * norm).reshape(b, g, h // g, rows, d)
        blocks.append((queries, keys, q_block, e, norm, tanh))
    return o, (k, v, o, scale, blocks)


def _outside_window(xp: Any, window: int, start: int, keys: slice, rows: int, mask: Array | None) -> Array:
    """Return MASKED where a key is outside the window of a query, else 0.

    The shape is (b or 1, 1, keys, 1, rows), for `rows` queries.

    `start` is the position of the first query among all keys. With a mask, padding tokens are not counted in the
    positions.
    """
    position = xp.arange(keys.stop)[None] if mask is None else mask.cumsum(axis=1)
    distance = position[:, None, start : start + rows] - position[:, keys, None]
    return xp.where(distance >= window, MASKED, 0)[:, None, :, None]


def attention_backward(do: Array, cache: AttentionCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of `attention_forward`.

    Parameters
    ----------
    do : ndarray, shape (b, h, t, d)
        The gradient of o.
    cache : AttentionCache
        The cache of the forward pass.

    Returns
    -------
    dq : ndarray, shape (b, h, t, d)
        The gradient of q.
    dk : ndarray, shape (b, g, s, d)
        The gradient of k.
    dv : ndarray, shape (b, g, s, d)
        The gradient of v.

    Notes
    -----
    In the forward pass o = p v with p = softmax(z), z = q̂ kᵀ and q̂ = scale·q. The steps in reverse order give

        dv = pᵀ do,   dp = do vᵀ,   dz = p ∘ (dp − Σ_s p∘dp),   dk = dzᵀ q̂,   dq = scale · dz k

    With a soft cap, p = softmax(c·τ) with τ = tanh(z/c). The derivative of c·τ with respect to z is 1 − τ², so dz is also
    multiplied by 1 − τ².

    Two identities save time. First, Σ_s p∘dp = Σ_d o∘do follows from dp = do vᵀ and o = p v. So a sum over d replaces a
    sum over s. Second, the cache contains e, the exponentials of the scores, and norm = 1/Σ e. Because p = e·norm, p is
    not computed. With do' = norm·do, the gradients are dv = eᵀ do' and dz = e ∘ (do' vᵀ − Σ_d o∘do'). The arrays e and
    dz have one column per query.

    For each block of queries, the function computes dq of these queries. It also adds the block's part to dk and dv of
    the keys that these queries saw.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import attention_backward, attention_forward
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(1, 4, 5, 8)), rng.normal(size=(1, 2, 5, 8)), rng.normal(size=(1, 2, 5, 8))
    >>> o, cache = attention_forward(q, k, v)
    >>> [gradient.shape for gradient in attention_backward(np.ones_like(o), cache)]
    [(1, 4, 5, 8), (1, 2, 5, 8), (1, 2, 5, 8)]
    """
    k, v, o, scale, blocks = cache
    b, h, t, d = o.shape
    g = k.shape[1]
    check_shape("do", do, b, h, t, d)
    dq, dk, dv = _empty_like(o), _empty_like(k), _empty_like(v)
    dk[...] = dv[...] = 0
    o, do, dq_groups = (x.reshape(b, g, h // g, t, d) for x in (o, do, dq))
    o_do = array_module(o).einsum("...i,...i->...", o, do)  # Σ_d o∘do of each query
    for queries, keys, q_block, e, norm, tanh in blocks:
        do_block = _stack(do[..., queries, :]) * norm
        dv[:, :, keys] += e @ do_block
        dz = v[:, :, keys] @ do_block.swapaxes(-1, -2)  # like e: one column per query
        dz -= (o_do[..., queries].reshape(norm.shape) * norm).swapaxes(-1, -2)
        dz *= e
        if tanh is not None:
            dz *= tanh_slope(tanh)
        dk[:, :, keys] += dz @ q_block
        dq_groups[..., queries, :] = (dz.swapaxes(-1, -2) @ k[:, :, keys]).reshape(b, g, h // g, -1, d)
    dq *= scale
    return dq, dk, dv


def _empty_like(x: Array) -> Array:
    """Return an uninitialised array of the shape of x (b, n, t, d), stored as (b, t, n, d), so that joining the heads
    needs no copy."""
    b, n, t, d = x.shape
    return array_module(x).empty((b, t, n, d), x.dtype).transpose(0, 2, 1, 3)


def _stack(x: Array) -> Array:
    """Reshape (b, g, n, rows, d) to (b, g, n·rows, d): concatenate the rows of the n heads of each group."""
    b, g, n, rows, d = x.shape
    return x.reshape(b, g, n * rows, d)
