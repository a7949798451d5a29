"""Interleaved timing: competitors take turns, so other work on the machine slows all of them equally."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def in_turns(
    competitors: Mapping[Any, Callable[[], Any]], rounds: int, warm_up: int = 1, rng: np.random.Generator | None = None
) -> dict[Any, list[Any]]:
    """Call every competitor once per round, and return for each competitor the list of its results.

    In each round, the competitors run in the order of `competitors`. If `rng` is given, each round has a new random
    order. The first `warm_up` rounds are not counted.
    """
    found: dict[Any, list[Any]] = {name: [] for name in competitors}
    for number in range(-warm_up, rounds):
        for name in competitors if rng is None else rng.permutation(list(competitors)):
            measured = competitors[name]()
            if number >= 0:
                found[name].append(measured)
    return found


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """Return the ratio of one competitor's seconds to another competitor's seconds: the median over the rounds."""
    return float(statistics.median(a / b for a, b in zip(seconds, others, strict=True)))
