"""The key/value cache: what generation keeps of the tokens read so far, so that each new token is computed alone.

A token's keys and values depend on the tokens before it, never on those after: once computed, they stay as they are.

A past need not come from tokens. Prefix tuning begins it with keys and values that are trained, and their gradient comes out by
the door that they went in by.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..backend import Array, array_module
from .config import TransformerConfig


class LayerCache:
    """The keys and values that one layer has computed for the tokens read so far, (b, g, s, d) each, in room that doubles."""

    def __init__(self) -> None:
        self.room: tuple[Array, Array] | None = None
        self.length = 0
        self.given = 0  # how many, from the first on, were given and are trained
        self.grad: tuple[Array, Array] | None = None  # of those, summed over the rows: (g, given, d) each

    @property
    def trainable(self) -> bool:
        """Whether a backward owes this past a gradient."""
        return self.given > 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append k and v (b, g, t, d); returns all keys and all values, as views (b, g, s, d)."""
        b, g, t, d = k.shape
        if self.room is not None and self.room[0].dtype != k.dtype:
            raise TypeError(
                f"keys of {k.dtype} after a past of {self.room[0].dtype}: of one dtype, nothing is converted"
            )
        end = self.length + t
        if self.room is None or self.room[0].shape[2] < end:
            xp, capacity = array_module(k), max(2 * self.length, end)
            grown = xp.empty((b, g, capacity, d), k.dtype), xp.empty((b, g, capacity, d), v.dtype)
            for old, new in zip(self.room or (), grown, strict=False):
                new[:, :, : self.length] = old[:, :, : self.length]
            self.room = grown
        for new, room in zip((k, v), self.room, strict=True):
            room[:, :, self.length : end] = new
        self.length = end
        return self.room[0][:, :, :end], self.room[1][:, :, :end]

    def add_grad(self, dk: Array, dv: Array) -> None:
        """Take in dk and dv (b, g, s, d) of all keys and values; every row saw the same given ones, so theirs add up."""
        dk, dv = (x[:, :, : self.given].sum(axis=0) for x in (dk, dv))
        self.grad = (dk, dv) if self.grad is None else (self.grad[0] + dk, self.grad[1] + dv)


class KeyValueCache:
    """What generation keeps of the tokens read so far: a LayerCache a layer. An argument of `forward`, which extends it."""

    begun: tuple[str, Any] | None = None  # the name and the encoder of the prefix that it begins with

    def __init__(self, config: TransformerConfig) -> None:
        self.layers: Sequence[LayerCache] = [LayerCache() for _ in range(config.num_hidden_layers)]

    def __repr__(self) -> str:
        return f"KeyValueCache({len(self.layers)} layers, {self.batch_size} rows of {len(self)} tokens)"

    def __len__(self) -> int:
        """How many tokens have been read."""
        return self.layers[0].length

    @property
    def batch_size(self) -> int:
        """How many rows it holds; 0 before the first call."""
        room = self.layers[0].room
        return 0 if room is None else room[0].shape[0]

    @property
    def trainable(self) -> bool:
        """Whether a backward owes this past a gradient."""
        return self.layers[0].trainable

    def begin(self, prefix: Array, rows: int, trainable: bool = False, begun: tuple[str, Any] | None = None) -> None:
        """Let each of `rows` rows begin with prefix (v, 2L, g, d): layer i's keys are prefix[:, 2i], its values prefix[:, 2i + 1].

        Its gradient is then there after a backward if it is `trainable`; whose it is, `begun` says. Raises ValueError where
        tokens have been read.
        """
        if len(self):
            raise ValueError(f"a prefix stands before all tokens, and {len(self)} have been read")
        self.begun = begun
        for i, layer in enumerate(self.layers):
            k, v = (prefix[:, j].swapaxes(0, 1) for j in (2 * i, 2 * i + 1))  # (v, g, d) → (g, v, d)
            layer.extend(*(array_module(x).broadcast_to(x, (rows, *x.shape)) for x in (k, v)))
            layer.given = layer.length if trainable else 0

    def take_grad(self) -> Array:
        """The gradient of `begin`'s prefix, (v, 2L, g, d), by all backwards since it was last taken."""
        both = [x for layer in self.layers for x in layer.grad]  # type: ignore[union-attr]  # a backward reaches all layers
        for layer in self.layers:
            layer.grad = None
        return array_module(both[0]).stack(both).transpose(2, 0, 1, 3)  # (2L, g, v, d) → (v, 2L, g, d)
