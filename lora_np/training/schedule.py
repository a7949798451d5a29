"""Learning-rate schedules: functions that return the factor of the learning rate for each step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class WarmupCosine:
    """A learning-rate schedule: a linear warm-up to 1, then a half cosine down to `floor`.

    The learning rate of each step is multiplied by the factor `schedule(step)`. At step 0, the factor is 1/warmup, or 1
    without a warm-up. At the last step, `steps − 1`, the factor is slightly above `floor`.

    Parameters
    ----------
    steps : int
        Number of steps of the run.
    warmup : int
        Number of warm-up steps.
    floor : float
        The smallest factor, 0 to 1.

    Raises
    ------
    ValueError
        If `warmup` is larger than `steps`, or if `floor` is out of range.

    Examples
    --------
    >>> from lora_np import WarmupCosine
    >>> schedule = WarmupCosine(steps=100, warmup=10, floor=0.1)
    >>> [round(schedule(step), 2) for step in (0, 9, 55, 99)]
    [0.1, 1.0, 0.55, 0.1]
    """

    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.steps or not 0 <= self.floor <= 1:
            raise ValueError(
                f"warmup = {self.warmup}, steps = {self.steps}, floor = {self.floor}; expected 0 ≤ warmup ≤ steps and 0 ≤ floor ≤ 1"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int) -> float:
    """Return 1 at every step. This is the schedule of a constant learning rate."""
    return 1.0
