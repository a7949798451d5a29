"""The arguments that one call passes to every layer: random generator, adapter, mask, positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Array

BASE = "__base__"  # PEFT's name for a row without an adapter


class Rows:
    """The adapter of each row of a batch, for a batch with several adapters.

    Parameters
    ----------
    names : sequence of str
        One adapter name per row; "__base__" for a row without an adapter.

    Attributes
    ----------
    names : tuple of str
        The names.
    segments : dict of str to list of int
        The row indices of each adapter, by adapter name.

    Examples
    --------
    >>> from lora_np.nn import Rows
    >>> Rows(["poet", "__base__", "poet"]).segments
    {'poet': [0, 2]}
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.segments: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            if name != BASE:
                self.segments.setdefault(name, []).append(row)

    def adapter_of(self, layer: Any) -> Any:
        """Return the object that applies the adapters of these rows in one layer. Subclasses implement this method.

        Parameters
        ----------
        layer : AdaptedLinear
            The layer.

        Returns
        -------
        adapter
            The object, or None if no row has an adapter in this layer.

        Raises
        ------
        NotImplementedError
            If the class does not implement this method.
        """
        raise NotImplementedError


def check_names(names: Sequence[str], rows: int, known: Sequence[str]) -> list[str]:
    """Check that there is one known adapter name per row, and return the names as a list.

    Parameters
    ----------
    names : sequence of str
        One adapter name per row; "__base__" for a row without an adapter.
    rows : int
        The number of rows of the batch.
    known : sequence of str
        The names of the model's adapters.

    Returns
    -------
    list of str
        The names.

    Raises
    ------
    ValueError
        If `names` is a single string, if the number of names is not `rows`, or if a name is unknown.

    Examples
    --------
    >>> from lora_np.nn import check_names
    >>> check_names(("poet", "__base__"), rows=2, known=["poet", "pirate"])
    ['poet', '__base__']
    """
    if isinstance(names, str) or len(names) != rows:
        found = repr(names) if isinstance(names, str) else f"{len(names)} names"
        raise ValueError(
            f"adapter_names has {found} for a batch of {rows} rows; expected one name per row ({BASE!r} for no adapter)"
        )
    unknown = sorted({str(name) for name in names if name != BASE and name not in known})
    if unknown:
        raise ValueError(f"unknown adapter {', '.join(map(repr, unknown))}; this model has {[*known, BASE]}")
    return list(names)


@dataclass(frozen=True)
class Context:
    """The arguments that one call passes to every layer.

    The model does not store these arguments, so one call does not affect another.

    Parameters
    ----------
    rng : numpy.random.Generator, optional
        The generator of dropout masks. None means evaluation, without dropout.
    adapter : str or Rows, optional
        The name of the adapter that the layers apply, or one name per row. None means the base model alone.
    attention_mask : ndarray of bool, shape (b, s), optional
        True for keys that queries may see, False for padding. None means no padding.
    position_ids : ndarray of int, shape (b, t), optional
        The position of each token in its row. With None, all rows have the same positions, which continue after the
        tokens in the key/value cache.
    gradient_checkpointing : bool
        True if each block keeps only its input, and runs its forward pass again in the backward pass.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.nn import EVALUATION, Context
    >>> EVALUATION.rng is None  # no dropout
    True
    >>> training = Context(rng=np.random.default_rng(0), adapter="default")
    """

    rng: np.random.Generator | None = None
    adapter: str | Rows | None = None
    attention_mask: Array | None = None
    position_ids: Array | None = None
    gradient_checkpointing: bool = False


EVALUATION = Context()
