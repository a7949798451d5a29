"""FLOPs of matrix products, sorted by what a training step wants them for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Products:
    """FLOPs of some products of a step: forward, of the gradients that flow on (dx), and of those that train (dW, dA, dB)."""

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
