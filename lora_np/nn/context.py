"""What one call carries through every layer: an argument, never state of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array

BASE = "__base__"  # PEFT's name for a row without an adapter


class Rows:
    """The adapter that each row of a batch uses, for a mixed batch.

    names: one for each row, "__base__" for the base alone. segments: adapter → the numbers of its rows.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.segments: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            if name != BASE:
                self.segments.setdefault(name, []).append(row)

    def adapter_of(self, layer: Any) -> Any:
        """What computes these rows' adapters in one layer; None where no row has one there."""
        raise NotImplementedError


@dataclass(frozen=True)
class Context:
    """What one call carries through every layer: an argument, so that no call leaves anything behind in the model.

    rng: draws dropout masks; None means evaluation, without dropout.
    adapter: the name of the adapter that wrappers apply, or one for each row; None means the base model alone.
    attention_mask: (b, s), False where a key is padding; None where there is none.
    position_ids: (b, t), each token's place in its own row; None: they follow the past, in all rows alike.
    """

    rng: np.random.Generator | None = None
    adapter: str | Rows | None = None
    attention_mask: Array | None = None
    position_ids: Array | None = None


EVALUATION = Context()
