"""Softmax cross-entropy over tokens: the mean negative log-likelihood, in nats a token."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_ids, check_shape

IGNORE_INDEX = -100  # a target that does not count, as in PyTorch and Hugging Face

# the logits' shape; exp z (n, v), none once a backward has used its memory; Σ exp z (n,); targets (n,); share (n,); overwrite
CrossEntropyCache: TypeAlias = tuple[tuple[int, ...], list[Array], Array, Array, Array, bool]


def cross_entropy_forward(
    logits: Array, targets: Array, ignore_index: int = IGNORE_INDEX, overwrite: bool = False
) -> tuple[Array, CrossEntropyCache]:
    """L = mean over the N counted tokens of (log Σ_j exp z_j − z_target).

    logits (…, v), targets (…) integers in [0, v) or `ignore_index` → L, a scalar in nats a token. The log-sum-exp takes
    the largest logit out first, so it neither overflows nor loses a dominant class. Raises ValueError where a target is
    out of range or none counts.

    With `overwrite` the caller gives the logits away: exp z and then the gradient are built in their memory, which at a
    vocabulary of 49,152 is the largest that a step asks for. The cache is then good for one backward.
    """
    check_float(logits=logits)
    check_shape("targets", targets, *logits.shape[:-1])
    check_ids("targets", targets, logits.shape[-1], ignore=ignore_index)
    xp = array_module(logits)
    z = logits.reshape(-1, logits.shape[-1])  # (n, v)
    targets = targets.reshape(-1)
    counts = targets != ignore_index  # (n,)
    e = xp.subtract(z, z.real.max(axis=-1, keepdims=True), out=z if overwrite else None)
    safe = xp.where(counts, targets, 0)  # any valid column; its loss is not counted
    z_target = xp.take_along_axis(e, safe[:, None], axis=-1)[:, 0]
    xp.exp(e, out=e)
    total = e.sum(axis=-1)
    share = (counts / counts.sum()).astype(z.real.dtype)  # (n,): 1/N for a counted token, 0 for an ignored one
    loss = ((xp.log(total) - z_target) * share).sum()
    return loss, (logits.shape, [e], total, safe, share, overwrite)


def cross_entropy_backward(dloss: float | Array, cache: CrossEntropyCache) -> Array:
    """dlogits (…, v) for the scalar dloss (1 where the loss is the end of the line).

    For a counted token ∂L/∂z_j = (softmax(z)_j − [j = target]) / N: what the model said, minus what it should have
    said. An ignored token gets 0. Raises RuntimeError for a cache whose memory an earlier backward has used.
    """
    shape, kept, total, safe, share, overwrite = cache
    if not kept:
        raise RuntimeError("this loss was computed in the logits' own memory, for one backward: run the forward again")
    e = kept.pop() if overwrite else kept[0]
    xp = array_module(e)
    weight = share * dloss
    dz = xp.multiply(e, (weight / total)[:, None], out=e if overwrite else None)
    dz[xp.arange(safe.shape[0]), safe] -= weight
    return dz.reshape(shape)
