"""Data parallelism on the CPU cores of one machine: each thread computes some rows of a batch with a replica of the model.

The threads of BLAS speed up only large matrix products. Without replicas, all other operations would run on one core:
softmax, norms, activations and the thin products with A and B. These other operations take about half the time of a
LoRA step. With replicas, all operations run in parallel, because NumPy releases Python's global lock inside its loops.
Parallel calls are safe: a call returns a cache and stores no state in the layer, and each replica has its own
gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import Any

import numpy as np

from ..backend import Array, to_host
from ..nn import Trainable
from ..ops import IGNORE_INDEX
from ..optional import extra
from .rows import RowsOfMasks, pieces, tokens_at_once

ONE_AT_A_TIME = Lock()  # one call at a time may change settings of the whole process
# Seconds that a thread waits for Python's global lock. With Python's 5e-3, a step of two workers on "tiny" takes 4 % longer.
SWITCH_INTERVAL = 1e-4


def loss_and_gradients(
    model: Trainable,
    tokens: Array,
    targets: Array,
    rng: np.random.Generator | None = None,
    workers: int = 1,
    dloss: float = 1.0,
) -> Array:
    """Compute the loss L of a batch, and add dloss · ∂L/∂θ to the gradient of each trainable parameter.

    `tokens` and `targets` (b, t) are as in `Transformer.loss`. The rows and the BLAS threads are divided among the
    workers. Each worker computes its rows in pieces, which need less memory (rows.py). L is the mean over the N
    counted tokens of the batch. With N_k counted tokens in piece k,

        L = Σ_k (N_k/N) L_k,

    and the gradients are summed with the same weights N_k/N, in the order of the rows. Up to rounding, the result
    equals the result of one worker and one piece. This is also true with dropout, because each piece uses its own rows
    of the dropout masks of the whole batch. For a fixed number of workers, the result is exactly reproducible. Each
    worker has its own gradients. The gradients of an adapter need little memory. In full fine-tuning, the gradients of
    each worker need as much memory as all weights. Raises ValueError in the same cases as `loss`.
    """
    at_once = tokens_at_once(model)
    if workers == 1 and (at_once is None or tokens.size <= at_once):  # one piece: nothing to divide
        loss, cached = model.loss(tokens, targets, rng=rng)
        model.backward(cached, dloss)
        return loss
    counted = to_host((targets != IGNORE_INDEX).sum(-1))  # (b,)
    total = int(counted.sum())
    if not total:
        model.loss(tokens, targets)  # raises the error
    # pieces without counted tokens are left out, and workers without pieces
    divided = pieces(len(tokens), tokens.shape[1], workers, at_once)
    shards = [[rows for rows in shard if counted[rows].any()] for shard in divided]
    shards = [shard for shard in shards if shard]
    replicas = [model] if len(shards) == 1 else [model.replica() for _ in shards]

    def run(k: int) -> Array:
        losses = []
        for rows in shards[k]:
            share = int(counted[rows].sum()) / total
            masks = rng if rng is None or rows == slice(0, len(counted)) else RowsOfMasks(rng, rows, counted)
            loss, cached = replicas[k].loss(tokens[rows], targets[rows], rng=masks)
            replicas[k].backward(cached, dloss * share)
            del cached  # before the next forward pass, which needs the memory
            losses.append(loss * share)
        return sum(losses[1:], losses[0])

    if len(shards) == 1:
        return run(0)
    each = max(1, workers // len(shards))  # BLAS threads per shard: above 1 if the batch has fewer rows than workers
    with ONE_AT_A_TIME, _process_settings(each), ThreadPoolExecutor(len(shards)) as pool:
        losses = list(pool.map(run, range(len(shards))))
    for (_, p), *twins in zip(*(each.named_parameters() for each in [model, *replicas]), strict=True):
        for _, twin in twins:
            if twin.grad is not None:
                p.add_grad(twin.grad)
    return sum(losses[1:], losses[0])


@contextmanager
def _process_settings(blas_threads: int) -> Iterator[None]:
    """Limit the threads of BLAS, and let a thread that waits for Python's global lock get it after `SWITCH_INTERVAL`."""
    before = sys.getswitchinterval()
    with _blas().limit(limits=blas_threads, user_api="blas"):
        try:
            sys.setswitchinterval(min(before, SWITCH_INTERVAL))
            yield
        finally:
            sys.setswitchinterval(before)


@cache
def _blas() -> Any:
    """Return the controller of BLAS threads. The controller is cached, because the search for the libraries is slow."""
    with extra("studies", "training with workers > 1"):
        from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
