"""Attention of one new token per row, as in generation: no causal mask, no blocks and no cache for a backward pass."""

from __future__ import annotations

import math

from ..backend import Array, array_module
from .attention import MASKED
from .checks import check_float, check_mask, check_shape


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
        The keys, including the key of the last token.
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

    Raises
    ------
    ValueError
        If the shapes do not fit together, if there is more than one query per row, or if h is not a multiple of g.
    TypeError
        If the arrays have different dtypes or no float dtype, or if the mask is not boolean.

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
    check_float(q=q, k=k, v=v)
    check_shape("q", q, None, None, 1, None)
    (b, h, _, d), xp = q.shape, array_module(q)
    check_shape("k", k, b, None, None, d)
    check_shape("v", v, *k.shape)
    g, s, _ = k.shape[1:]
    if h % g:
        raise ValueError(
            f"got {h} query heads and {g} key/value heads; the number of query heads must be a multiple of {g}"
        )
    if mask is not None:
        check_mask(mask, b, s)
    if window is not None:
        if mask is None:
            k, v = k[:, :, -window:], v[:, :, -window:]
        else:
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
