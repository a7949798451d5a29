"""Two groups of runs with the same seeds, compared seed by seed: a seed draws the same order of the text on both sides.

With three seeds one sign in all of them is weak evidence (a fair coin gives it one time in four), and mixed signs are none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Rows = Iterable[Mapping[str, Any]]


def paired(rows: Rows, others: Rows, key: str = "final") -> list[float]:
    """How much higher `key` is in `rows` than in `others`, of each seed that both have."""
    one, other = ({row["seed"]: row[key] for row in each} for each in (rows, others))
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def verdict(rows: Rows, others: Rows, key: str = "final", more: str = "higher", less: str = "lower") -> str:
    """Whether `key` is lower in `rows` with every seed, and by how much."""
    return differs(paired(rows, others, key), more, less)


def differs(differences: Sequence[float], more: str = "higher", less: str = "lower") -> str:
    """ "lower with every seed, by 0.003 to 0.011", or what the differences of the seeds are where their signs differ."""
    low, high = min(differences), max(differences)
    if low <= 0 <= high:
        return f"differently by seed, {low:+.4f} to {high:+.4f}".replace("-", "−")
    return f"{more if low > 0 else less} with every seed, by {min(abs(low), abs(high)):.4f} to {max(abs(low), abs(high)):.4f}"
