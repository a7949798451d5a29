"""Bottleneck adapters: a small network with its own skip connection, after a sublayer (Houlsby et al. 2019, arXiv 1902.00751).

    z = y + W_up σ(W_down y + b_down) + b_up          y (…, d) what the sublayer wrote, W_down (m, d), W_up (d, m)

before the block's own skip connection. y is the output of o_proj or down_proj. Because of σ, the adapter is not a change ΔW
of the weight: it cannot be merged, and every call computes it. The block's norms, which the paper trains too, stay frozen.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from .. import ops
from ..backend import Array
from ..nn import Cache, Linear
from ..ops.linear import LinearCache
from ..transformer import Transformer
from .adapter import AdapterLinear, OutputAdapter, parameter_like
from .choices import Choice, Option
from .config import PeftConfig, check_choice, check_positive, check_whole
from .cost import AdapterCost, Products, linear_products
from .files import COMMON_SETTINGS
from .method import LayerMethod

ACTIVATIONS = {
    "gelu": (ops.gelu_forward, ops.gelu_backward),
    "silu": (ops.silu_forward, ops.silu_backward),
}
AFTER_ATTENTION, AFTER_MLP = (
    ("self_attn.o_proj", "attn.c_proj", "attn.o_proj"),
    ("mlp.down_proj", "mlp.c_proj"),
)  # Llama's, GPT's
PLACES = {"houlsby": AFTER_ATTENTION + AFTER_MLP, "pfeiffer": AFTER_MLP}


@dataclass(frozen=True, kw_only=True)
class BottleneckConfig(PeftConfig):
    """How narrow, where, and from where to start.

    bottleneck_size: m. None takes d / reduction_factor, rounded down, and at least 1.
    reduction_factor: d/m, where no bottleneck_size is given.
    non_linearity: σ, "gelu" (GPT-2's, by tanh) or "silu".
    placement: "houlsby", after the attention and after the MLP of each block; "pfeiffer", after the MLP alone (Pfeiffer et
        al. 2021, arXiv 2005.00247).
    init_weights: True, W_down uniform in ±1/√d and the rest 0, so that the model starts as the base to the bit, and W_up has a
        gradient of ordinary size; "houlsby", both matrices normal with std 0.01, cut off at two of them, and the biases 0, as
        in the paper (section 3.6): only near the base; False, all of it uniform in ±1/√in (for tests).
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range, TypeError for a size that is not whole or a factor that is no number.
    """

    bottleneck_size: int | None = None
    reduction_factor: float = 16
    non_linearity: Literal["gelu", "silu"] = "gelu"
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    init_weights: bool | Literal["houlsby"] = True
    base_model_name_or_path: str | os.PathLike[str] | None = None

    def check(self) -> None:
        """Raise ValueError or TypeError for a field out of range, naming it."""
        if self.bottleneck_size is not None:
            check_whole("bottleneck_size", self.bottleneck_size, 1)
        check_positive("reduction_factor", self.reduction_factor)
        check_choice("non_linearity", self.non_linearity, *ACTIVATIONS)
        check_choice("placement", self.placement, *PLACES)
        check_choice("init_weights", self.init_weights, True, False, "houlsby")

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The layers that write to the residual stream, by the ends of their names."""
        return PLACES[self.placement]

    def width(self, d: int) -> int:
        """m for a residual stream of width d."""
        return int(self.bottleneck_size or max(1, d // self.reduction_factor))


BottleneckCache: TypeAlias = tuple[LinearCache, Cache, LinearCache]  # of W_down, of σ, of W_up


class BottleneckAdapter(OutputAdapter):
    """z = y + W_up σ(W_down y + b_down) + b_up, with W_down (m, d) and W_up (d, m)."""

    config: BottleneckConfig

    def __init__(self, config: BottleneckConfig, down: AdapterLinear, up: AdapterLinear) -> None:
        self.config = config
        self.bottleneck_down, self.bottleneck_up = down, up

    def output_forward(self, y: Array) -> tuple[Array, BottleneckCache]:
        """y (…, d) → z (…, d)."""
        activate, _ = ACTIVATIONS[self.config.non_linearity]
        h, down_cache = self.bottleneck_down.forward(y)  # (…, d) → (…, m)
        a, activation_cache = activate(h)
        z, up_cache = self.bottleneck_up.forward(a)  # (…, m) → (…, d)
        z += y
        return z, (down_cache, activation_cache, up_cache)

    def output_backward(self, dz: Array, cache: BottleneckCache, need_dy: bool) -> Array | None:
        """dz (…, d) → dy (…, d), or None where it is not needed.

        In the forward pass z = y + up(σ(down(y))): dz goes whole into both terms, so dy is dz plus what comes back through
        the bottleneck.
        """
        down_cache, activation_cache, up_cache = cache
        down, up = self.bottleneck_down, self.bottleneck_up
        da = up.backward(dz, up_cache, need_dx=need_dy or down.trainable)
        if da is None:
            return None
        _, slope = ACTIVATIONS[self.config.non_linearity]
        dy = down.backward(slope(da, activation_cache), down_cache, need_dx=need_dy)
        if need_dy:
            dy += dz
        return dy


@dataclass(frozen=True)
class BottleneckCost(AdapterCost):
    """The cost of y + W_up σ(W_down y + b_down) + b_up, with W_down (m, out) and W_up (out, m), on the layer's output."""

    config: BottleneckConfig = BottleneckConfig()

    name = "adapter"

    def title(self, out: int) -> str:
        return f"{self.config.placement.capitalize()} adapters of size {self.config.width(out)}"

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Both matrices and both biases."""
        m = self.config.width(out)
        return [m * out, m * out, m, out]

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Two linear layers: dW of the lower one needs what flows through the upper one, dx or no dx."""
        m = self.config.width(out)
        up = linear_products(N, out, m, need_dx or self.trained, self.trained)
        return up + linear_products(N, m, out, need_dx, self.trained)

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """y and σ(W_down y) for the two dW, W_down y and one more for σ′ (N, m each); of 16 bits both matrices in float32."""
        m = self.config.width(out)
        return self.trained * N * (out + m) + 2 * N * m + self.half_precision * 2 * m * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """What σ's derivative is made of, some five of (N, m); then dy beside the frozen path's dx."""
        m = self.config.width(out)
        return max(5 * N * m, need_dx * (N * m + N * out + max(N * m, frozen)))


WIDTH = f"width of the bottleneck (default: the model's width / {BottleneckConfig.reduction_factor})"
OPTIONS = {
    "bottleneck_size": Option(None, WIDTH, "M", int),
    "non_linearity": Option(BottleneckConfig.non_linearity, "activation function (default {})", choices=ACTIVATIONS),
}


class BottleneckMethod(LayerMethod):
    """A BottleneckAdapter in the layers that write to the residual stream."""

    config_type = BottleneckConfig
    peft_type = "BOTTLENECK"  # ours: PEFT has no such method, and no file of it
    recorded_fields = ("bottleneck_size", "non_linearity", "placement")
    fixed_settings = COMMON_SETTINGS
    choices: ClassVar[Mapping[str, Choice]] = {
        "houlsby": Choice(3e-3, BottleneckConfig, OPTIONS, {"placement": "houlsby"}),
        "pfeiffer": Choice(3e-3, BottleneckConfig, OPTIONS, {"placement": "pfeiffer"}),
    }
    example = BottleneckConfig(bottleneck_size=5, reduction_factor=16.0, init_weights=False)

    def targets(self, config: BottleneckConfig, names: list[str], strict: bool = True) -> list[str]:
        """A model has the names of one family."""
        return super().targets(config, names, strict=False)

    def draw(
        self, config: BottleneckConfig, base: Linear, rng: np.random.Generator, dtype: np.dtype | None
    ) -> BottleneckAdapter:
        """Drawn as `init_weights` says."""
        d, tensors = base.out_features, []
        m = config.width(d)
        for side, (out, in_) in (("down", (m, d)), ("up", (d, m))):
            bound, W, b = 1 / math.sqrt(in_), np.zeros((out, in_)), np.zeros(out)
            if config.init_weights == "houlsby":
                W = 0.01 * truncated_normal(rng, (out, in_))
            elif not config.init_weights or side == "down":
                W = rng.uniform(-bound, bound, (out, in_))
            if config.init_weights is False:
                b = rng.uniform(-bound, bound, out)
            tensors += [W, b]
        return self.build(config, base, tensors, dtype)

    def shapes(self, config: BottleneckConfig, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """W_down (m, d), b_down (m,), W_up (d, m), b_up (d,)."""
        m = config.width(out)
        down = {"bottleneck_down.weight": (m, out), "bottleneck_down.bias": (m,)}
        return {**down, "bottleneck_up.weight": (out, m), "bottleneck_up.bias": (out,)}

    def build(
        self, config: BottleneckConfig, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None
    ) -> BottleneckAdapter:
        """From W_down, b_down, W_up, b_up."""
        down_W, down_b, up_W, up_b = (parameter_like(base, x, dtype).value for x in tensors)
        return BottleneckAdapter(config, AdapterLinear(down_W, down_b), AdapterLinear(up_W, up_b))

    def cost(self, config: BottleneckConfig, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Of one place."""
        return BottleneckCost(trained, half_precision, config)

    def settings(self, config: BottleneckConfig, model: Transformer) -> dict[str, Any]:
        """With the size that it has in this model."""
        return super().settings(config, model) | {"bottleneck_size": config.width(model.config.hidden_size)}


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers between −2 and 2: what falls outside is drawn again."""
    x = rng.standard_normal(shape)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    return x
