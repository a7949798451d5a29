"""A task with a known intrinsic dimension: ten blocks of weights must have given sums (Li et al. 2018, §2).

    L(θ) = Σ_b (Σ_{i in block b} θᵢ − t_b)²,   D weights in equal blocks, one target per block

There are ten constraints, so only ten of the D directions change the loss. Almost every random subspace of ten
dimensions therefore contains a point with L = 0, but almost no subspace of nine dimensions contains such a point. The
goal here is L = 0 instead of 90 % of the performance, because nine dimensions often reach 90 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...training.subspace import Projection, SparseProjection
from ..harness.table import Table
from .intrinsic import smallest

ZERO = 1e-10  # times Σ t²: rounding leaves about 1e-30; with one dimension less the loss is 1e-6 or more


def constraints(D: int = 1000, blocks: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return C, of shape (blocks, D), and t = 1, 2, …, of shape (blocks,), for the loss L(θ) = ‖C θ − t‖².

    C[b, i] is 1 if weight i is in block b, and 0 otherwise. Raises ValueError if D is not a multiple of `blocks`.
    """
    if D % blocks:
        raise ValueError(f"D={D} weights cannot form {blocks} equal blocks; use a multiple of {blocks}")
    return np.repeat(np.eye(blocks), D // blocks, axis=1), np.arange(1.0, blocks + 1)


def best_loss(projection: Projection, blocks: int = 10) -> float:
    """Return the smallest value of L(P z), divided by L(0).

    Least squares with the matrix M = C P, of shape (blocks, d), finds the best z. L is quadratic, so no learning rate
    is needed. Row b of M is Pᵀ c_b, where c_b is row b of C. The backward function of the projection computes Pᵀ c_b.
    """
    C, t = constraints(projection.D, blocks)
    M = np.stack([projection.backward(row) for row in C])  # (blocks, d)
    z = np.linalg.lstsq(M, t, rcond=None)[0]
    return float(((M @ z - t) ** 2).sum() / (t**2).sum())


def toy(
    kind: type[Any] = SparseProjection, seed: int = 0, D: int = 1000, blocks: int = 10, shown: int | None = None
) -> Table:
    """Measure the best loss in a random subspace of d dimensions for several d, and the smallest d with loss 0.

    The columns are `d`, from 1 to `shown` (default: blocks + 4), and `loss`, which is divided by L(0). The
    smallest d with loss 0 is stored in the table's settings as "intrinsic_dimension".
    """
    rows = [{"d": d, "loss": best_loss(kind(D, d, seed), blocks)} for d in range(1, (shown or blocks + 4) + 1)]
    found = smallest(lambda d: best_loss(kind(D, d, seed), blocks) < ZERO, 1, D)
    settings = {"D": D, "blocks": blocks, "seed": seed, "projection": kind.__name__, "intrinsic_dimension": found}
    return Table("intrinsic_toy", "Is the intrinsic dimension of ten sums ten?", "notebook 04", settings, rows)
