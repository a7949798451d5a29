"""What a prefix of v virtual tokens costs in a training step: v more keys and values a layer, which each query sees.

    numbers      v·2L·kv, the keys and values of L layers with kv = kv_heads·head_dim features each; with an MLP of width m
                 over v·kv numbers instead, m·kv + m + 2L·kv·m + 2L·kv of its own
    scores       v more for each query and head
    kept         v more rows in every layer's keys and values, for each sequence, and the scores

Its gradient comes through the attention of each layer, down to the lowest one, so dx is needed wherever a layer is below.
"""

from __future__ import annotations

from dataclasses import dataclass

from .products import Products, linear_products


@dataclass(frozen=True)
class Prefix:
    """v virtual tokens before `layers` layers of `kv` features a key; `hidden`: the width m of its MLP, 0 for none."""

    v: int
    layers: int
    kv: int
    hidden: int = 0
    trained: bool = True
    widened: bool = False  # stored in 16 bits, and copied to float32 for each product

    @property
    def width(self) -> int:
        """2L·kv: the numbers of one virtual token."""
        return 2 * self.layers * self.kv

    @property
    def gradients(self) -> int:
        """How many numbers are trained."""
        m = self.hidden
        mlp = self.v * self.kv + m * (self.kv + 1) + self.width * (m + 1)
        return self.trained * (mlp if m else self.v * self.width)

    @property
    def largest(self) -> int:
        """The numbers of its largest trained array."""
        mlp = max(self.v * self.kv, self.hidden * self.kv, self.width * self.hidden)
        return self.trained * (mlp if self.hidden else self.v * self.width)

    @property
    def products(self) -> Products:
        """The MLP's, once a step; without one there are none."""
        lower = linear_products(self.v, self.hidden, self.kv, self.trained, self.trained)
        return lower + linear_products(self.v, self.width, self.hidden, self.trained, self.trained)

    @property
    def kept(self) -> int:
        """The MLP's tanh (v, m); of 16 bits E and both matrices in float32."""
        m = self.hidden
        return self.v * m + self.widened * (m > 0) * (self.v * self.kv + m * (self.kv + self.width))

    def room(self, seq: int) -> int:
        """How many keys a layer has room for: a cache grows at least twofold (kv_cache.py)."""
        return max(2 * self.v, self.v + seq)
