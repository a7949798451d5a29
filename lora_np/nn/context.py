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


def check_names(names: Sequence[str], rows: int, known: Sequence[str]) -> list[str]:
    """`adapter_names` as a list, one a row. Raises ValueError for another number of them or a name that is not there."""
    if isinstance(names, str) or len(names) != rows:
        found = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise ValueError(
            f"adapter_names: {found} for a batch of {rows} rows; expected one a row, {BASE!r} for the base"
        )
    unknown = sorted({str(name) for name in names if name != BASE and name not in known})
    if unknown:
        raise ValueError(f"there is no adapter {', '.join(map(repr, unknown))}; this model has {[*known, BASE]}")
    return list(names)


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
