"""Data parallelism on the cores of one machine: each thread takes some rows of a batch through a replica of the model.

BLAS's own threads share out the large products only; softmax, norms, activations and the thin products with A and B, about
half of a LoRA step, would wait for one core. NumPy lets go of Python's lock inside its loops, so here everything runs side by
side. That works because a layer keeps nothing of a call: caches are returned, and each replica has its own gradients.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..nn import Trainable
from ..ops import IGNORE_INDEX

BLAS_IS_OURS = Lock()  # its number of threads is the whole process's, and must be set back


def loss_and_gradients(
    model: Trainable,
    tokens: Array,
    targets: Array,
    rng: np.random.Generator | None = None,
    workers: int = 1,
    dloss: float = 1.0,
) -> Array:
    """L of a batch, and dloss · ∂L/∂θ added to the gradient of each trainable parameter: `loss` and `backward` in one call.

    tokens and targets (b, t) as `Transformer.loss` takes them. With `workers` > 1 the rows are split into as many shards,
    a thread each, and BLAS's threads are shared out among them. L is a mean over the batch's N counted tokens, so with N_k
    of them in shard k

        L = Σ_k (N_k/N) L_k,   and every gradient likewise, summed in the order of the shards.

    Without dropout the result is that of one worker up to rounding; with it each shard draws masks of its own. With as many
    workers it is the same to the bit each time. Each shard holds gradients of its own until all are done: nothing to an
    adapter, but as many copies of all weights in full fine-tuning. Raises ValueError as `loss` does.
    """
    shards = []
    if workers > 1:
        pieces = zip(*(array_module(rows).array_split(rows, workers) for rows in (tokens, targets)), strict=True)
        counted = [(x, y, int((y != IGNORE_INDEX).sum())) for x, y in pieces]
        shards = [shard for shard in counted if shard[2]]  # in some, nothing may count
    if len(shards) < 2:
        loss, cached = model.loss(tokens, targets, rng=rng)
        model.backward(cached, dloss)
        return loss
    total = sum(n for _, _, n in shards)
    replicas = [model.replica() for _ in shards]
    rngs = [None] * len(shards) if rng is None else rng.spawn(len(shards))

    def run(k: int) -> Array:
        x, y, n = shards[k]
        loss, cached = replicas[k].loss(x, y, rng=rngs[k])
        replicas[k].backward(cached, dloss * n / total)
        return loss * (n / total)

    each = max(1, workers // len(shards))  # more than one where the batch has fewer rows than there are workers
    with BLAS_IS_OURS, _blas().limit(limits=each, user_api="blas"), ThreadPoolExecutor(len(shards)) as pool:
        losses = list(pool.map(run, range(len(shards))))
    for (_, p), *twins in zip(*(each.named_parameters() for each in [model, *replicas]), strict=True):
        for _, twin in twins:
            if twin.grad is not None:
                p.add_grad(twin.grad)
    return sum(losses[1:], losses[0])


@cache
def _blas() -> Any:
    """What sets BLAS's number of threads while this process runs: finding the libraries takes longer than setting it."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
