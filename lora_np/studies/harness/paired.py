"""Two groups of runs compared: seed by seed, for a seed draws the same order of the text on both sides, and on their way.

With three seeds one sign in all of them is weak evidence (a fair coin gives it one time in four), and mixed signs are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Rows = Iterable[Mapping[str, Any]]


def of_both(rows: Rows, others: Rows, key: str = "final") -> tuple[list[float], list[float]]:
    """`key` in `rows` and in `others`, seed by seed, of each seed that both have."""
    one, other = ({row["seed"]: row[key] for row in each} for each in (rows, others))
    seeds = sorted(one.keys() & other.keys())
    return [one[seed] for seed in seeds], [other[seed] for seed in seeds]


def paired_differences(rows: Rows, others: Rows, key: str = "final") -> list[float]:
    """How much higher `key` is in `rows` than in `others`, of each seed that both have."""
    return [one - other for one, other in zip(*of_both(rows, others, key), strict=True)]


def verdict(rows: Rows, others: Rows, key: str = "final", more: str = "higher", less: str = "lower") -> str:
    """Whether `key` is higher in `rows` with every seed, or lower, or neither, and by how much."""
    return differs(paired_differences(rows, others, key), more, less)


def differs(differences: Sequence[float], more: str = "higher", less: str = "lower") -> str:
    """ "lower with every seed, by 0.003 to 0.011", or what the differences of the seeds are where their signs differ."""
    low, high = min(differences), max(differences)
    if low == high == 0:
        return "the same with every seed"
    if low <= 0 <= high:
        return f"differently by seed, {low:+.4f} to {high:+.4f}".replace("-", "−")
    word, (least, most) = more if low > 0 else less, sorted((abs(low), abs(high)))
    if len(differences) == 1:
        return f"{word} with the one seed, by {_size(least)}"
    return f"{word} with every seed, by {_size(least)} to {_size(most)}"


def _size(x: float) -> str:
    """Four decimals, or two digits of what has none there."""
    return f"{x:.4f}" if x >= 5e-5 else f"{x:.1e}"


def forgotten_when(learned: np.ndarray, forgotten: np.ndarray, reached: float) -> float | None:
    """What a path, evaluation by evaluation, had forgotten when it had first learned `reached`; None where it never did."""
    if reached > learned.max():
        return None
    return float(np.interp(reached, np.maximum.accumulate(learned), forgotten))
