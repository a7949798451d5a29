"""The classes that describe the cost of a method: the arrays and matrix products that an adapter adds to a training step.
Each method's file defines its own cost; the package `costs` adds it to the cost of the model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Products:
    """FLOPs of some matrix products: the forward, the gradients for the layers below (dx), those of trained parameters (dW,
    dA, dB)."""

    forward: int = 0
    dx: int = 0
    dW: int = 0

    @property
    def total(self) -> int:
        return self.forward + self.dx + self.dW

    def __add__(self, other: Products) -> Products:
        return Products(self.forward + other.forward, self.dx + other.dx, self.dW + other.dW)


def linear_products(N: int, out: int, in_: int, need_dx: bool, need_dW: bool) -> Products:
    """N rows through W (out, in): x Wᵀ, and dy W and dyᵀ x where they are needed: 2·N·out·in each."""
    one = 2 * N * out * in_
    return Products(one, one * need_dx, one * need_dW)


@dataclass(frozen=True)
class AdapterCost:
    """What an adapter adds to a linear layer. out, in_: the layer's sizes; N: tokens; need_dx: whether something below trains.

    trained: whether it gets gradients. widened: whether it is stored in 16 bits, and copied to float32 for each product.
    """

    trained: bool = True
    half_precision: bool = False

    frozen_description: ClassVar[str] = ""  # what `frozen` counts

    @property
    def keeps_x(self) -> bool:
        """Whether the backward needs the x that the layer itself was given."""
        return False

    @property
    def name(self) -> str:
        """What a table calls the adapter."""
        return type(self).__name__.removesuffix("Cost")

    def title(self, out: int) -> str:
        """The same with its size."""
        return self.name

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """The size of each array that trains."""
        raise NotImplementedError

    def gradients(self, out: int, in_: int) -> int:
        """How many numbers get a gradient."""
        return self.trained * sum(self.trained_sizes(out, in_))

    def largest_array(self, out: int, in_: int) -> int:
        """The size of the largest trained array, which the optimizer updates at once."""
        return self.trained * max(self.trained_sizes(out, in_))

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """How many numbers the method adds and never trains, in layers of these (out, in) together."""
        return 0

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """All matrix products besides those with W."""
        return Products()

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Floats that the forward keeps, x itself apart."""
        raise NotImplementedError

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """Floats beside y and what is kept, until y has all of its terms."""
        return 0

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """The most floats beside dy in its backward, of which the path through W alone holds `frozen`."""
        return frozen


@dataclass(frozen=True)
class PrefixCost:
    """v virtual tokens before `layers` layers of `kv` features a key; `hidden`: the width m of its MLP, 0 for none."""

    v: int
    layers: int
    kv: int
    hidden: int = 0
    trained: bool = True
    half_precision: bool = False  # stored in 16 bits, and copied to float32 for each product

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
    def largest_array(self) -> int:
        """The numbers of its largest trained array."""
        mlp = max(self.v * self.kv, self.hidden * self.kv, self.width * self.hidden)
        return self.trained * (mlp if self.hidden else self.v * self.width)

    @property
    def products(self) -> Products:
        """The MLP's, once a step; without one there are none."""
        lower = linear_products(self.v, self.hidden, self.kv, self.trained, self.trained)
        return lower + linear_products(self.v, self.width, self.hidden, self.trained, self.trained)

    @property
    def saved_for_backward(self) -> int:
        """The MLP's tanh (v, m); of 16 bits E and both matrices in float32."""
        m = self.hidden
        return self.v * m + self.half_precision * (m > 0) * (self.v * self.kv + m * (self.kv + self.width))

    def cache_capacity(self, seq: int) -> int:
        """How many keys a layer has room for: a cache grows at least twofold (transformer/cache.py)."""
        return max(2 * self.v, self.v + seq)
