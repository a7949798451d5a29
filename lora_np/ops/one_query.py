"""Attention of one new token per row, as in generation: no causal mask, no blocks and no cache for a backward pass."""

from __future__ import annotations

import math

from ..backend import Array, array_module
from .attention import MASKED


def attention_step(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Array:
    """Compute the attention of one query per row and head, o = softmax(q kᵀ / √d) v.

    The result equals the result of `attention_forward` for t = 1. For each key/value head, one product computes the scores
    of all h/g query heads.

    Parameters
    ----------
    q : ndarray, shape (b, h, 1, d), float32 or float64
        The queries of the last token.
    k : ndarray, shape (b, g, s, d)
        The keys, the last token's key included.
    v : ndarray, shape (b, g, s, d)
        The values.
    mask : ndarray of bool, shape (b, s), optional
        As in `attention_forward`.
    scale, window, softcap : optional
        As in `attention_forward`.

    Returns
    -------
    o : ndarray, shape (b, h, 1, d)
        The output of each head.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import attention_forward, attention_step
    >>> rng = np.random.default_rng(0)
    >>> q, k, v = rng.normal(size=(1, 4, 1, 8)), rng.normal(size=(1, 2, 5, 8)), rng.normal(size=(1, 2, 5, 8))
    >>> o, cache = attention_forward(q, k, v)
    >>> np.allclose(attention_step(q, k, v), o)
    True
    """
    (b, h, _, d), g, xp = q.shape, k.shape[1], array_module(q)
    if window is not None and mask is None:
        k, v = k[:, :, -window:], v[:, :, -window:]
    elif window is not None:
        assert mask is not None
        position = mask.cumsum(axis=1)  # padding is not counted
        mask = mask & (position > position[:, -1:] - window)
    q = q.reshape(b, g, h // g, d) * (1 / math.sqrt(d) if scale is None else scale)
    e = q @ k.swapaxes(-1, -2)  # scores (b, g, h/g, s)
    if softcap is not None:
        e /= softcap
        xp.tanh(e, out=e)
        e *= softcap
    if mask is not None:
        e += xp.where(mask, 0, MASKED).astype(e.real.dtype)[:, None, None]
    e -= e.real.max(axis=-1, keepdims=True)
    xp.exp(e, out=e)
    o = e @ v  # (b, g, h/g, d)
    o /= e.sum(axis=-1, keepdims=True)
    return o.reshape(b, h, 1, d)
