"""LoRA in one layer: a trained bypass to a frozen Linear (arXiv 2106.09685), and the cost of the bypass.

    y = x Wᵀ + s·(x̃ Aᵀ) Bᵀ,   ΔW = s·B A        A (r, in), B (out, r), x̃ = drop(x) while training

The gradients of A and B are derived in ops/lora.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from ... import ops
from ...backend import Array
from ...nn import Linear, Parameter
from ...ops.lora import LoraCache
from ..adapter import Bypass, parameter_like, upcast
from ..cost import AdapterCost, Products
from .config import LoraConfig


class LoraAdapter(Bypass):
    """The LoRA adapter of one layer: A (r, in) and B (out, r)."""

    config: LoraConfig
    mergeable = True
    mixable = True

    def __init__(self, config: LoraConfig, A: Parameter, B: Parameter) -> None:
        self.config = config
        self.lora_A, self.lora_B = A, B

    @classmethod
    def build(
        cls, config: LoraConfig, base: Linear, factors: Collection[np.ndarray], dtype: np.dtype | None = None
    ) -> LoraAdapter:
        """Return an adapter with the given arrays A (r, in) and B (out, r) (in host memory).

        The parameters of the adapter are on the base's device and have `dtype`, by default the base's dtype.
        """
        return cls(config, *(parameter_like(base, x, dtype) for x in factors))

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the parameters that are never trained: A in LoRA-FA."""
        return ("lora_A",) if self.config.freeze_A else ()

    @property
    def learned(self) -> tuple[Parameter, ...]:
        """A and B, in the order in which `delta_backward` returns their gradients."""
        return self.lora_A, self.lora_B

    @property
    def dropout(self) -> float:
        """The dropout probability of the bypass's input."""
        return self.config.lora_dropout

    def factors(self, dtype: DTypeLike) -> tuple[Array, Array]:
        """Return A and B, upcast to `dtype` if they are stored in 16 bits."""
        return upcast(dtype, self.lora_A.value), upcast(dtype, self.lora_B.value)

    def delta_forward(self, x: Array) -> tuple[Array, LoraCache]:
        """Compute s·(x Aᵀ) Bᵀ (…, out) for x (…, in).

        The cache contains x only if A is trained, because only dA needs x.
        """
        return ops.lora_forward(x, *self.factors(x.dtype), self.config.scaling, self.lora_A.trainable)

    def delta_backward(self, dy: Array, cache: LoraCache, need_dx: bool) -> tuple[Array | None, ...]:
        """Return dx, dA and dB for dδ (…, out)."""
        return ops.lora_backward(dy, cache, need_dx)

    def scaled_product(self, dtype: DTypeLike) -> Array:
        """Return s·B A (out, in)."""
        A, B = self.factors(dtype)
        return self.config.scaling * (B @ A)

    def delta_weight(self, base: Linear) -> Array:
        """Return ΔW = s·B A (out, in). The output depends only on the product ΔW, not on A and B separately."""
        return self.scaled_product(base.weight.value.dtype)


def draw_factors(config: LoraConfig, base: Linear, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return random A (r, in) and B (out, r), as `init_lora_weights` specifies, in host memory."""
    r, fan_in = config.r, base.in_features  # the fan-in of A is `in`, never r
    bound = 1 / math.sqrt(fan_in)
    if config.init_lora_weights == "gaussian":
        A = rng.standard_normal((r, fan_in)) / r
    else:
        A = rng.uniform(-bound, bound, (r, fan_in))
    B = np.zeros((base.out_features, r))
    if config.init_lora_weights is False:
        B = rng.uniform(-1 / math.sqrt(r), 1 / math.sqrt(r), B.shape)
    return A, B


@dataclass(frozen=True)
class LoraCost(AdapterCost):
    """The cost of y + s·(x Aᵀ) Bᵀ. The backward pass needs x and h = s·x Aᵀ."""

    r: int = 8
    A_trained: bool = True  # False in LoRA-FA, which saves no x for dA
    dropout: bool = False  # True: the bypass saves x ∘ mask instead of x

    frozen_description = "A"

    @property
    def name(self) -> str:
        return "LoRA" if self.A_trained else "LoRA-FA"

    def title(self, out: int) -> str:
        return f"{self.name} of rank {self.r}"

    @property
    def keeps_x(self) -> bool:
        return self.A_trained and not self.dropout

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Return the sizes of B and A. If A is frozen, the size of A is 0."""
        return [self.r * out, self.r * in_ * self.A_trained]

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """Return the number of elements of LoRA-FA's frozen A."""
        return (not self.A_trained) * self.r * sum(in_ for _, in_ in shapes)

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Return the FLOPs: 2·N·r·in for each product with A and 2·N·r·out for each product with B.

        Both dA and dx need dh = dy B.

        If A is frozen, dA is not computed. If dx is needed, dB is computed even if B is frozen.
        """
        with_A, with_B, dA = 2 * N * self.r * in_, 2 * N * self.r * out, self.A_trained
        if not (self.trained or need_dx):
            return Products(with_A + with_B)
        return Products(with_A + with_B, with_B * (dA or need_dx) + with_A * need_dx, with_A * dA + with_B)

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Return the number of saved floats.

        The saved arrays are h (N, r), the dropout mask, x ∘ mask (for dA), and float32 copies of A and B stored in 16
        bits.
        """
        dropped = self.dropout * (1 + self.A_trained) * N * in_
        return N * self.r + dropped + self.half_precision * self.r * (in_ + out)

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """Return the number of temporary floats: the output of the bypass, before this output is added to y."""
        return N * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Return the peak number of temporary floats.

        If dx is needed, the temporary arrays are the dx of the base layer, the dx of the bypass and, with dropout, dx ∘
        mask. Otherwise, dh is the only temporary array.
        """
        return max(frozen, (2 + self.dropout) * N * in_) if need_dx else N * self.r
