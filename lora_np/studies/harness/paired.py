"""Compare two groups of runs seed by seed. Runs with the same seed train on the text in the same order.

Three seeds with differences of the same sign are weak evidence, because three throws of a fair coin all show the same
side in one of four cases. Differences with mixed signs are no evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Rows = Iterable[Mapping[str, Any]]


def of_both(rows: Rows, others: Rows, key: str = "final") -> tuple[list[float], list[float]]:
    """Return the values of `key` in `rows` and in `others`, for the seeds that both groups have, sorted by seed."""
    one, other = ({row["seed"]: row[key] for row in each} for each in (rows, others))
    seeds = sorted(one.keys() & other.keys())
    return [one[seed] for seed in seeds], [other[seed] for seed in seeds]


def paired_differences(rows: Rows, others: Rows, key: str = "final") -> list[float]:
    """Return the value of `key` in `rows` minus the value in `others`, for each seed that both groups have."""
    return [one - other for one, other in zip(*of_both(rows, others, key), strict=True)]


def verdict(
    what: str, other: str, rows: Rows, others: Rows, key: str = "final", more: str = "higher", less: str = "lower"
) -> str:
    """Write a sentence that compares `key` in `rows` (named `what`) with `key` in `others` (named `other`)."""
    return differs(what, other, paired_differences(rows, others, key), more, less)


def differs(what: str, other: str, differences: Sequence[float], more: str = "higher", less: str = "lower") -> str:
    """Write the differences `what` minus `other`, one per seed, as one sentence.

    Examples
    --------
    >>> differs("DoRA's loss", "LoRA's loss", [-0.011, -0.003])
    "With every seed, DoRA's loss is lower than LoRA's loss, by 0.0030 to 0.0110."
    >>> differs("the loss of A", "the loss of B", [-0.01, 0.02])
    'Over the seeds, the loss of A minus the loss of B is −0.0100 to +0.0200, so neither is clearly lower.'
    """
    low, high = min(differences), max(differences)
    if low == high == 0:
        return f"With every seed, {what} equals {other}."
    if low <= 0 <= high:
        size = f"{low:+.4f} to {high:+.4f}".replace("-", "−")
        return f"Over the seeds, {what} minus {other} is {size}, so neither is clearly lower."
    word, (least, most) = more if low > 0 else less, sorted((abs(low), abs(high)))
    if len(differences) == 1:
        return f"With the one seed, {what} is {word} than {other}, by {_size(least)}."
    return f"With every seed, {what} is {word} than {other}, by {_size(least)} to {_size(most)}."


def _size(x: float) -> str:
    """Write a size with four decimals, or with two significant digits if four decimals would show 0.0000."""
    return f"{x:.4f}" if x >= 5e-5 else f"{x:.1e}"


def forgotten_when(learned: np.ndarray, forgotten: np.ndarray, reached: float) -> float | None:
    """Return how much a run had forgotten when it had first learned `reached`, or None if it never learned as much.

    `learned` and `forgotten` each have one number per evaluation of the run.
    """
    if reached > learned.max():
        return None
    return float(np.interp(reached, np.maximum.accumulate(learned), forgotten))
