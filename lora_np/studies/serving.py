"""What do many adapters on one base cost?"""

from __future__ import annotations

import numpy as np

WORKLOADS = ("identical", "distinct", "uniform", "zipf 1.5", "skewed")


def workload(kind: str, rows: int, adapters: int, seed: int = 0) -> list[int]:
    """The adapter, 0 … adapters − 1, of each row of a batch, as Punica (Chen et al. 2023) names the ways to draw them.

    identical: all rows one. distinct: each row another, as far as there are so many. uniform: any, all alike. zipf 1.5:
    the k-th with probability ∝ k^−1.5. skewed: half of the rows one, the others any. Raises ValueError for another kind.
    """
    rng, p = np.random.default_rng(seed), np.arange(1, adapters + 1) ** -1.5
    any_of_them = rng.integers(0, adapters, rows)
    drawn = {
        "identical": np.zeros(rows, int),
        "distinct": np.arange(rows) % adapters,
        "uniform": any_of_them,
        "zipf 1.5": rng.choice(adapters, rows, p=p / p.sum()),
        "skewed": np.where(rng.permutation(rows) < rows / 2, 0, any_of_them),
    }
    if kind not in drawn:
        raise ValueError(f"workload {kind!r}; there are {', '.join(drawn)}")
    return drawn[kind].tolist()
