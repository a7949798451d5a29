"""The key/value cache: what generation keeps of the tokens read so far, so that each new token is computed alone.

A token's keys and values depend on the tokens before it, never on those after: once computed, they stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .backend import Array, array_module

if TYPE_CHECKING:
    from .transformer import TransformerConfig


class LayerCache:
    """The keys and values that one layer has computed for the tokens read so far, (b, g, s, d) each, in room that doubles."""

    def __init__(self) -> None:
        self.room: tuple[Array, Array] | None = None
        self.length = 0

    def extend(self, k: Array, v: Array) -> tuple[Array, Array]:
        """Append k and v (b, g, t, d); returns all keys and all values, as views (b, g, s, d)."""
        b, g, t, d = k.shape
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


class KeyValueCache:
    """What generation keeps of the tokens read so far: a LayerCache a layer. An argument of `forward`, which extends it."""

    def __init__(self, config: TransformerConfig) -> None:
        self.layers = [LayerCache() for _ in range(config.num_hidden_layers)]

    def __len__(self) -> int:
        """How many tokens have been read."""
        return self.layers[0].length

    @property
    def batch_size(self) -> int:
        """How many rows it holds; 0 before the first call."""
        room = self.layers[0].room
        return 0 if room is None else room[0].shape[0]
