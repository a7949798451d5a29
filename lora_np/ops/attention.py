"""Causal attention (Vaswani et al. 2017) with grouped key/value heads (Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

import math
from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_mask, check_shape

MASKED = -1e30  # added to a masked score, so that exp gives exactly 0; −∞ would give NaN in complex numbers
BLOCK = 64  # queries per block: their scores fit in the processor's cache, and keys after the block are not multiplied

# q/√d (b, g, h/g, t, d); k and v (b, g, s, d); o like q; for each block: its first query, its last query + 1,
# e (b, g, h/g·rows, seen) and 1/Σ e (b, g, h/g·rows, 1)
AttentionCache: TypeAlias = tuple[Array, Array, Array, Array, list[tuple[int, int, Array, Array]]]


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
    In the forward pass ∂p_i/∂x_j = p_i (δ_ij − p_j), with δ_ij = 1 if i = j and 0 otherwise. So
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


def attention_forward(q: Array, k: Array, v: Array, mask: Array | None = None) -> tuple[Array, AttentionCache]:
    """Compute causal attention, o = softmax(q kᵀ / √d + causal mask) v, for each head.

    Parameters
    ----------
    q : ndarray, shape (b, h, t, d), float32 or float64
        The queries.
    k : ndarray, shape (b, g, s, d)
        The keys, with s ≥ t. The number h must be a multiple of g: h/g query heads share one key/value head.
    v : ndarray, shape (b, g, s, d)
        The values.
    mask : ndarray of bool, shape (b, s), optional
        True for keys that queries may see, False for padding. None means no padding.

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
    allows only 1/2 of the scores.

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
    q = q.reshape(b, g, h // g, t, d) * (1 / math.sqrt(d))  # scale q (t·d numbers), not the scores (t·s numbers)
    o = xp.empty(q.shape, q.dtype)
    blocks = []
    for start in range(0, t, BLOCK):
        stop = min(start + BLOCK, t)
        seen = s - t + stop  # the keys that the last query of the block sees
        shape = b, g, h // g, stop - start
        e = _stack(q[..., start:stop, :]) @ k[:, :, :seen].swapaxes(-1, -2)  # scores (b, g, h/g·rows, seen)
        by_query = e.reshape(*shape, seen)
        by_query[..., s - t + start :] += xp.triu(xp.full((stop - start,) * 2, MASKED, dtype=e.real.dtype), k=1)
        if mask is not None:
            by_query += xp.where(mask[:, :seen], 0, MASKED).astype(e.real.dtype)[:, None, None, None, :]
        e -= e.real.max(axis=-1, keepdims=True)
        xp.exp(e, out=e)
        norm = 1 / e.sum(axis=-1, keepdims=True)  # p = e·norm: scale o (d numbers per row), not e (s numbers per row)
        o[..., start:stop, :] = ((e @ v[:, :, :seen]) * norm).reshape(*shape, d)
        blocks.append((start, stop, e, norm))
    return o.reshape(b, h, t, d), (q, k, v, o, blocks)


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
    In the forward pass o = p v with p = softmax(z), z = q̂ kᵀ and q̂ = q/√d. The steps in reverse order give

        dv = pᵀ do,   dp = do vᵀ,   dz = p ∘ (dp − Σ_s p∘dp),   dk = dzᵀ q̂,   dq = dz k / √d

    Two identities save time. First, Σ_s p∘dp = Σ_d o∘do follows from dp = do vᵀ and o = p v. So a sum over d replaces a
    sum over s. Second, the cache contains e and norm with p = e·norm, so p is not computed. With do' = norm·do,
    the gradients are dv = eᵀ do' and dz = e ∘ (do' vᵀ − Σ_d o∘do').

    For each block of queries, the function computes dq of these queries, and adds to dk and dv of the keys that these
    queries saw.

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
    """Reshape (b, g, n, rows, d) to (b, g, n·rows, d): concatenate the rows of the n heads of each group."""
    b, g, n, rows, d = x.shape
    return x.reshape(b, g, n * rows, d)
