"""Sides that take turns, so that what else the machine does hits all alike; and how many times as long one takes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def in_turns(
    sides: Mapping[Any, Callable[[], Any]], rounds: int, warm_up: int = 1, rng: np.random.Generator | None = None
) -> dict[Any, list[Any]]:
    """side → what it returned in each round. Every side runs once a round: in their order, or by `rng` in a new random one.

    The rounds of `warm_up` come first, and are left out.
    """
    found: dict[Any, list[Any]] = {side: [] for side in sides}
    for number in range(-warm_up, rounds):
        for side in sides if rng is None else rng.permutation(list(sides)):
            measured = sides[side]()
            if number >= 0:
                found[side].append(measured)
    return found


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long: the median of the rounds' own ratios."""
    return float(statistics.median(a / b for a, b in zip(seconds, others, strict=True)))
