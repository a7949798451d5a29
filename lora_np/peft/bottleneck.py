"""Bottleneck adapters: a small network with its own skip connection, after a sublayer (Houlsby et al. 2019, arXiv 1902.00751).

    z = y + W_up σ(W_down y + b_down) + b_up          y (…, d) output of o_proj or down_proj, W_down (m, d), W_up (d, m)

The block's own skip connection then adds the input of the sublayer to z. Because of σ, the adapter cannot be written as
a change ΔW of the weight. The adapter therefore cannot be merged, and every call computes its output. The paper also
trains the block's norms; here the norms stay frozen.
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
    """The configuration of bottleneck adapters. PEFT does not have this method.

    Parameters
    ----------
    task_type : str or None, default None
        None or "CAUSAL_LM".
    inference_mode : bool, default False
        Must be False. To freeze an adapter, call `PeftModel.set_adapter(name, inference_mode=True)`.
    bottleneck_size : int or None, default None
        Width m of the bottleneck. None: m is d / reduction_factor, rounded down, but at least 1. Here d is the width of
        the residual stream.
    reduction_factor : float, default 16
        Ratio d/m of the two widths. The ratio is used only if `bottleneck_size` is None.
    non_linearity : {"gelu", "silu"}, default "gelu"
        Activation function σ. "gelu" is the approximation of GELU with tanh that GPT-2 uses.
    placement : {"houlsby", "pfeiffer"}, default "houlsby"
        "houlsby": one adapter after the attention and one after the MLP of each block. "pfeiffer": only one adapter,
        after the MLP of each block (Pfeiffer et al. 2021, arXiv 2005.00247).
    init_weights : bool or "houlsby", default True
        True: W_down is uniform in ±1/√d and all other parameters are 0, so the output equals the base's output exactly.
        "houlsby": both matrices are normal with standard deviation 0.01, truncated at two standard deviations, and the
        biases are 0. The paper uses this initialisation (section 3.6). False (for tests): all parameters are uniform in
        ±1/√n, where n is the input size of W_down or W_up.
    base_model_name_or_path : str, path or None, default None
        Name of the base model. The name is saved with the adapter and has no other effect.

    Raises
    ------
    ValueError
        If a value is out of range.
    TypeError
        If `bottleneck_size` is not an integer, or if `reduction_factor` is not a number.

    Examples
    --------
    >>> from lora_np import BottleneckConfig
    >>> BottleneckConfig(reduction_factor=16).width(d=768)
    48
    """

    bottleneck_size: int | None = None
    reduction_factor: float = 16
    non_linearity: Literal["gelu", "silu"] = "gelu"
    placement: Literal["houlsby", "pfeiffer"] = "houlsby"
    init_weights: bool | Literal["houlsby"] = True
    base_model_name_or_path: str | os.PathLike[str] | None = None

    def check(self) -> None:
        """Check all fields. Raises ValueError or TypeError; the message names the wrong field."""
        if self.bottleneck_size is not None:
            check_whole("bottleneck_size", self.bottleneck_size, 1)
        check_positive("reduction_factor", self.reduction_factor)
        check_choice("non_linearity", self.non_linearity, *ACTIVATIONS)
        check_choice("placement", self.placement, *PLACES)
        check_choice("init_weights", self.init_weights, True, False, "houlsby")

    @property
    def target_modules(self) -> tuple[str, ...]:
        """The name suffixes of the adapted layers. These layers write to the residual stream."""
        return PLACES[self.placement]

    def width(self, d: int) -> int:
        """Return the width m of the bottleneck.

        Parameters
        ----------
        d : int
            Width of the residual stream.

        Returns
        -------
        int
            Width m, at least 1.
        """
        return int(self.bottleneck_size or max(1, d // self.reduction_factor))


BottleneckCache: TypeAlias = tuple[LinearCache, Cache, LinearCache]  # W_down, σ, W_up


class BottleneckAdapter(OutputAdapter):
    """The bottleneck adapter of one layer: z = y + W_up σ(W_down y + b_down) + b_up."""

    config: BottleneckConfig

    def __init__(self, config: BottleneckConfig, down: AdapterLinear, up: AdapterLinear) -> None:
        self.config = config
        self.bottleneck_down, self.bottleneck_up = down, up

    def output_forward(self, y: Array) -> tuple[Array, BottleneckCache]:
        """Compute z (…, d) for the layer's output y (…, d)."""
        activate, _ = ACTIVATIONS[self.config.non_linearity]
        h, down_cache = self.bottleneck_down.forward(y)  # (…, d) → (…, m)
        a, activation_cache = activate(h)
        z, up_cache = self.bottleneck_up.forward(a)  # (…, m) → (…, d)
        z += y
        return z, (down_cache, activation_cache, up_cache)

    def output_backward(self, dz: Array, cache: BottleneckCache, need_dy: bool) -> Array | None:
        """Return dy (…, d) for dz (…, d), or None if dy is not needed.

        In the forward pass z = y + up(σ(down(y))). Both terms of z receive dz, so dy is dz plus the gradient
        through the bottleneck.
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
    """The cost of y + W_up σ(W_down y + b_down) + b_up on a layer's output, with W_down (m, out) and W_up (out, m)."""

    config: BottleneckConfig = BottleneckConfig()

    name = "adapter"

    def title(self, out: int) -> str:
        return f"{self.config.placement.capitalize()} adapters of size {self.config.width(out)}"

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Return the sizes of the trained arrays: two matrices and two biases."""
        m = self.config.width(out)
        return [m * out, m * out, m, out]

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Return the FLOPs of the two linear layers.

        The gradient of W_down requires the gradient of W_up's input, even if no layer below needs dx.
        """
        m = self.config.width(out)
        up = linear_products(N, out, m, need_dx or self.trained, self.trained)
        return up + linear_products(N, m, out, need_dx, self.trained)

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Return the number of saved floats.

        The saved arrays are y and σ(W_down y) for dW, two (N, m) arrays for σ′, and float32 copies of matrices stored
        in 16 bits.
        """
        m = self.config.width(out)
        return self.trained * N * (out + m) + 2 * N * m + self.half_precision * 2 * m * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Return the peak number of temporary floats.

        The peak is reached at one of two moments. While σ′ is computed, about five (N, m) arrays exist. Later, if dx is
        needed, dy (N, out) and the temporary arrays of the frozen layer exist.
        """
        m = self.config.width(out)
        return max(5 * N * m, need_dx * (N * m + N * out + max(N * m, frozen)))


WIDTH = f"width of the bottleneck (default: the model's width / {BottleneckConfig.reduction_factor})"
OPTIONS = {
    "bottleneck_size": Option(None, WIDTH, "M", int),
    "non_linearity": Option(BottleneckConfig.non_linearity, "activation function (default {})", choices=ACTIVATIONS),
}


class BottleneckMethod(LayerMethod):
    """Bottleneck adapters: a BottleneckAdapter in the layers that write to the residual stream."""

    config_type = BottleneckConfig
    peft_type = "BOTTLENECK"
    in_peft = False
    recorded_fields = ("bottleneck_size", "non_linearity", "placement")
    fixed_settings = COMMON_SETTINGS
    choices: ClassVar[Mapping[str, Choice]] = {
        "houlsby": Choice(3e-3, BottleneckConfig, OPTIONS, {"placement": "houlsby"}),
        "pfeiffer": Choice(3e-3, BottleneckConfig, OPTIONS, {"placement": "pfeiffer"}),
    }
    example = BottleneckConfig(bottleneck_size=5, reduction_factor=16.0, init_weights=False)

    def targets(self, config: BottleneckConfig, names: list[str], strict: bool = True) -> list[str]:
        """Return the names of the targeted layers.

        The suffixes cover several model families, so a suffix that matches no layer is not an error.
        """
        return super().targets(config, names, strict=False)

    def draw(
        self, config: BottleneckConfig, base: Linear, rng: np.random.Generator, dtype: np.dtype | None
    ) -> BottleneckAdapter:
        """Return a new adapter with random parameters, as `init_weights` specifies."""
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
        """Return the shapes of W_down (m, d), b_down (m,), W_up (d, m) and b_up (d,)."""
        m = config.width(out)
        down = {"bottleneck_down.weight": (m, out), "bottleneck_down.bias": (m,)}
        return {**down, "bottleneck_up.weight": (out, m), "bottleneck_up.bias": (out,)}

    def build(
        self, config: BottleneckConfig, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None
    ) -> BottleneckAdapter:
        """Return an adapter with the tensors W_down, b_down, W_up and b_up."""
        down_W, down_b, up_W, up_b = (parameter_like(base, x, dtype).value for x in tensors)
        return BottleneckAdapter(config, AdapterLinear(down_W, down_b), AdapterLinear(up_W, up_b))

    def cost(self, config: BottleneckConfig, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Return the cost of one layer's adapter."""
        return BottleneckCost(trained, half_precision, config)

    def settings(self, config: BottleneckConfig, model: Transformer) -> dict[str, Any]:
        """Return the settings for the file, with the width m of the bottleneck in this model."""
        return super().settings(config, model) | {"bottleneck_size": config.width(model.config.hidden_size)}


def truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return standard normal random numbers in [−2, 2]. Numbers outside [−2, 2] are drawn again."""
    x = rng.standard_normal(shape)
    while (outside := np.abs(x) > 2).any():
        x[outside] = rng.standard_normal(int(outside.sum()))
    return x
