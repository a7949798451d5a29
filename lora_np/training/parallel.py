"""Data parallelism on the CPU cores of one machine: each thread computes some rows of a batch with a replica of the model.

The threads of BLAS speed up only large matrix products. Without replicas, all other operations would run on one core:
softmax, norms, activations and the thin products with A and B. These other operations take about half the time of a
LoRA step. With replicas, all operations run in parallel, because NumPy releases Python's global lock inside its loops.
Parallel calls are safe: a call stores no state in the layer but returns a cache, and each replica has its own
gradients.
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
from ..optional import extra

BLAS_LOCK = Lock()  # one call at a time may change the number of BLAS threads, a setting of the whole process


def loss_and_gradients(
    model: Trainable,
    tokens: Array,
    targets: Array,
    rng: np.random.Generator | None = None,
    workers: int = 1,
    dloss: float = 1.0,
) -> Array:
    """Compute the loss L of a batch, and add dloss · ∂L/∂θ to the gradient of each trainable parameter.

    `tokens` and `targets` (b, t) are as in `Transformer.loss`. With `workers` > 1 the rows are split into one shard per
    worker, and the BLAS threads are divided among the shards. L is the mean over the N counted tokens of the batch. With N_k
    counted tokens in shard k,

        L = Σ_k (N_k/N) L_k,

    and the gradients are summed with the same weights N_k/N, in the order of the shards. Without dropout, the result
    equals the result of one worker up to rounding. With dropout, each shard draws its own masks. For a fixed number of
    workers, the result is exactly reproducible. Each shard has its own gradients. The gradients of an adapter need
    little memory. In full fine-tuning, the gradients of each worker need as much memory as all weights. Raises
    ValueError in the same cases as `loss`.
    """
    shards = []
    if workers > 1:
        pieces = zip(*(array_module(rows).array_split(rows, workers) for rows in (tokens, targets)), strict=True)
        counted = [(x, y, int((y != IGNORE_INDEX).sum())) for x, y in pieces]
        shards = [shard for shard in counted if shard[2]]  # leave out shards without counted tokens
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

    each = max(1, workers // len(shards))  # BLAS threads per shard: above 1 if the batch has fewer rows than workers
    with BLAS_LOCK, _blas().limit(limits=each, user_api="blas"), ThreadPoolExecutor(len(shards)) as pool:
        losses = list(pool.map(run, range(len(shards))))
    for (_, p), *twins in zip(*(each.named_parameters() for each in [model, *replicas]), strict=True):
        for _, twin in twins:
            if twin.grad is not None:
                p.add_grad(twin.grad)
    return sum(losses[1:], losses[0])


@cache
def _blas() -> Any:
    """Return the controller of BLAS threads. The controller is cached, because the search for the libraries is slow."""
    with extra("studies", "training with workers > 1"):
        from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
