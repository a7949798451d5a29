"""A task whose intrinsic dimension is known: ten sums, however many weights there are (Li et al. 2018, §2).

    L(θ) = Σ_b (Σ_{i in block b} θᵢ − t_b)²,   D weights in equal blocks, one target for each block

Ten constraints: of the D directions ten matter and D − 10 change nothing. Almost every subspace of ten dimensions therefore
holds a point with L = 0, and almost none of nine does. What is asked for here is all of the performance, L = 0, not 90 % of it:
nine dimensions often come that near.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...training.subspace import Projection, SparseProjection
from ..harness.table import Table
from .intrinsic import smallest

ZERO = 1e-10  # of Σ t²: rounding leaves some 1e-30, one dimension too few leaves 1e-6 and more


def constraints(D: int = 1000, blocks: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """C (blocks, D), 1 where the weight is in the block and 0 elsewhere, and t (blocks,) = 1, 2, …: L(θ) = ‖C θ − t‖².

    Raises ValueError where the blocks would not be equal.
    """
    if D % blocks:
        raise ValueError(f"{D} weights do not divide into {blocks} equal blocks")
    return np.repeat(np.eye(blocks), D // blocks, axis=1), np.arange(1.0, blocks + 1)


def best_loss(projection: Projection, blocks: int = 10) -> float:
    """The smallest L(P z) over all z, as a share of L(0): training to the end, by least squares on M = C P (blocks, d).

    L is quadratic, so nothing is left to a learning rate. Row b of M is Pᵀ c_b, the projection's backward.
    """
    C, t = constraints(projection.D, blocks)
    M = np.stack([projection.backward(row) for row in C])  # (blocks, d)
    z = np.linalg.lstsq(M, t, rcond=None)[0]
    return float(((M @ z - t) ** 2).sum() / (t**2).sum())


def toy(
    kind: type[Any] = SparseProjection, seed: int = 0, D: int = 1000, blocks: int = 10, shown: int | None = None
) -> Table:
    """Rows {d, loss}, the best loss in a random subspace of each d; settings["intrinsic_dimension"], the smallest with loss 0.

    loss is a share of L(0). `shown` dimensions are listed, blocks + 4 by default.
    """
    rows = [{"d": d, "loss": best_loss(kind(D, d, seed), blocks)} for d in range(1, (shown or blocks + 4) + 1)]
    found = smallest(lambda d: best_loss(kind(D, d, seed), blocks) < ZERO, 1, D)
    settings = {"D": D, "blocks": blocks, "seed": seed, "projection": kind.__name__, "intrinsic_dimension": found}
    return Table("intrinsic_toy", "Is the intrinsic dimension of ten sums ten?", "notebook 04", settings, rows)
