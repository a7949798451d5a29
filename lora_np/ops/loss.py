"""Softmax cross-entropy over tokens: the mean negative log-likelihood, in nats per token."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_ids, check_shape
from .parts import parts

IGNORE_INDEX = -100  # the target of a place that is not counted, as in PyTorch and Hugging Face

# shape of the logits; [exp z (n, v)], an empty list after a backward that overwrote it; Σ exp z (n,); targets (n,);
# share (n,); overwrite
CrossEntropyCache: TypeAlias = tuple[tuple[int, ...], list[Array], Array, Array, Array, bool]


def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = IGNORE_INDEX, overwrite: bool = False
) -> tuple[Array, CrossEntropyCache]:
    """Compute the cross-entropy, the mean over the N counted tokens of (log Σ_j exp z_j − z_target).

    Parameters
    ----------
    logits : ndarray, shape (…, v), float32 or float64
        The logits z.
    targets : ndarray, shape (…), integers in [0, v) or `ignore_index`
        The correct token at each position.
    ignore_index : int
        Positions with this target are not counted in the loss.
    overwrite : bool
        If True, the array `logits` is overwritten, first with exp z and later with the gradient. Then no second array
        of the size of `logits` is needed; `logits` is the largest array of a training step. The cache can then be used
        for one backward pass only.

    Returns
    -------
    loss : ndarray, shape ()
        The loss, in nats per token.
    cache : CrossEntropyCache
        The second argument of `cross_entropy_backward`.

    Raises
    ------
    ValueError
        If the shapes do not match, if a target is out of range, or if no target is counted. The values of targets are
        checked only in NumPy arrays, not in CuPy arrays.
    TypeError
        If the logits are not floats or the targets are not integers.

    Notes
    -----
    The largest logit is subtracted from all logits before exp. So exp does not overflow, and the largest terms keep
    their precision.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import cross_entropy_forward
    >>> loss, cache = cross_entropy_forward(np.zeros((2, 5, 256)), np.zeros((2, 5), int))
    >>> float(loss), float(np.log(256))  # equal logits: a uniform guess over 256 tokens
    (5.545177444479562, 5.545177444479562)
    """
    check_float(logits=logits)
    check_shape("targets", targets, *logits.shape[:-1])
    check_ids("targets", targets, logits.shape[-1], ignore=ignore_index)
    z = logits.reshape(-1, logits.shape[-1])  # (n, v)
    safe, share = shares(targets.reshape(-1), ignore_index, z)
    loss, e, total = _negative_log_likelihood(z, safe, share, z if overwrite else None)
    return loss, (logits.shape, [e], total, safe, share, overwrite)


def shares(targets: Array, ignore_index: int, z: Array) -> tuple[Array, Array]:
    """Replace ignored targets by 0, and compute the share of each token in the mean. Return both arrays (n,).

    The share has the precision of the logits z.
    """
    counts = targets != ignore_index  # (n,)
    safe = array_module(z).where(counts, targets, 0)  # any valid column; its loss is not counted
    return safe, (counts / counts.sum()).astype(z.real.dtype)  # 1/N for a counted token, 0 for an ignored one


def _negative_log_likelihood(z: Array, safe: Array, share: Array, out: Array | None) -> tuple[Array, Array, Array]:
    """Return Σ_n share_n·(log Σ_j exp z_nj − z_target), exp z (n, v) and Σ exp z (n,). `out` may be z."""
    xp = array_module(z)
    e = xp.subtract(z, z.real.max(axis=-1, keepdims=True), out=out)
    z_target = xp.take_along_axis(e, safe[:, None], axis=-1)[:, 0]
    xp.exp(e, out=e)
    total = e.sum(axis=-1)
    return ((xp.log(total) - z_target) * share).sum(), e, total


def cross_entropy_in_place(z: Array, safe: Array, share: Array, gradient: bool) -> Array:
    """Return Σ_n share_n·(log Σ_j exp z_nj − z_target), and overwrite the logits z (n, v).

    If `gradient` is True, z contains dz afterwards. `safe` and `share` (n,) come from `shares`. The function finishes a
    few rows before it begins the next rows, so that these rows stay in the processor's cache.
    """
    losses = []
    for rows in parts(z, arrays=1):
        loss, e, total = _negative_log_likelihood(z[rows], safe[rows], share[rows], z[rows])
        losses.append(loss)
        if gradient:
            cross_entropy_backward(1.0, (e.shape, [e], total, safe[rows], share[rows], True))
    return sum(losses[1:], losses[0])


def cross_entropy_backward(dloss: float | Array, cache: CrossEntropyCache) -> Array:
    """Compute the gradient of `cross_entropy_forward`.

    Parameters
    ----------
    dloss : float or ndarray, shape ()
        The gradient of the loss; 1 if the loss is the final result.
    cache : CrossEntropyCache
        The cache of the forward pass.

    Returns
    -------
    dlogits : ndarray, shape (…, v)
        The gradient of the logits; 0 at positions that are not counted.

    Raises
    ------
    RuntimeError
        If `cross_entropy_forward` was called with `overwrite=True` and an earlier backward pass has already used the
        cache.

    Notes
    -----
    In the forward pass L = mean (log Σ_j exp z_j − z_target). For a counted token
    ∂L/∂z_j = (softmax(z)_j − [j = target]) / N. Here [j = target] is 1 if token j is the target, and 0 otherwise.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import cross_entropy_backward, cross_entropy_forward
    >>> loss, cache = cross_entropy_forward(np.zeros((1, 4)), np.array([2]))
    >>> cross_entropy_backward(1.0, cache)
    array([[ 0.25,  0.25, -0.75,  0.25]])
    """
    shape, kept, total, safe, share, overwrite = cache
    if not kept:
        raise RuntimeError("with overwrite=True, a cache allows only one backward pass; run the forward pass again")
    e = kept.pop() if overwrite else kept[0]
    xp = array_module(e)
    weight = share * dloss
    dz = xp.multiply(e, (weight / total)[:, None], out=e if overwrite else None)
    dz[xp.arange(safe.shape[0]), safe] -= weight
    return dz.reshape(shape)
