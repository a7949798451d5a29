"""DoRA in a LoraLinear: the layer's side of `ops.dora`, which has the equations (Liu et al. 2024, arXiv 2402.09353).

While training with dropout, PEFT drops the inputs of all that DoRA adds to the base, and so does this:

    y = x Wᵀ + bias + (DoRA(x̃) − x̃ Wᵀ)        x̃ = drop(x); without dropout y = DoRA(x) + bias

A DoRA layer keeps z, N·out numbers, beside what a LoRA layer keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ... import ops
from ...backend import Array
from ...nn import Context, Linear, Module
from ...quantization import Quantized4bit, dequantize_4bit

if TYPE_CHECKING:
    from .config import LoraConfig
    from .layer import LoraLinear


def dense(weight: Array | Quantized4bit, dtype: Any) -> Array:
    """W (out, in), dequantised where it is stored in four bits."""
    return dequantize_4bit(weight, dtype) if isinstance(weight, Quantized4bit) else weight


def check_rows(layers: Mapping[str, Module], config: LoraConfig) -> None:
    """Raise ValueError naming a layer that DoRA cannot begin at: m/n is 0/0 where a row of W is all zeros."""
    for name, layer in layers.items() if config.use_dora else ():
        weight = getattr(layer, "base_layer", layer).weight.value
        if not dense(weight, weight.dtype).any(axis=1).all():
            raise ValueError(f"{name} has a row of zeros, which has a length, 0, but no direction for DoRA to train")


def row_norm(layer: LoraLinear, name: str, dtype: Any) -> tuple[Array, tuple]:
    """n (out,), the lengths of the rows of W + s·B A, and the cache of `ops.row_norm_backward`."""
    W = dense(layer.base_layer.weight.value, dtype)
    return ops.row_norm_forward(W, *layer.factors(name, dtype), layer.configs[name].scaling)


def forward(
    layer: LoraLinear, name: str, x: Array, mask: Array | None, y: Array, context: Context
) -> tuple[Array, tuple]:
    """(y, cache) of the whole layer, from the dropped x (…, in) and the base's y (…, out) of the one that was not.

    At the start m = n and B = 0, and y is the base's to the bit.
    """
    config, base = layer.configs[name], layer.base_layer
    u, base_cache = (y, None) if mask is None else base.forward(x, context)
    has_bias = hasattr(base, "bias")
    if has_bias:
        u = u - base.bias.value
    n, norm_cache = row_norm(layer, name, x.dtype)
    if config.dora_norm == "detached":
        norm_cache = None
    elif isinstance(base.weight.value, Quantized4bit):
        norm_cache = (None, *norm_cache[1:])  # W dequantised is not kept: one such matrix at a time
    m = layer.lora_magnitude_vector[name].value
    A, B = layer.factors(name, x.dtype)
    adapted, dora_cache = ops.dora_forward(x, u, A, B, m, n, config.scaling, layer.lora_A[name].trainable)
    if has_bias or mask is not None:  # else y is u, and two passes over N·out numbers are saved
        adapted -= u
        adapted += y
    return adapted, (base_cache, norm_cache, dora_cache)


def backward(
    layer: LoraLinear, name: str, dy: Array, mask: Array | None, base_cache: Any, cache: tuple, need_dx: bool
) -> Array | None:
    """dy (…, out) → dx (…, in) or None; adds dA, dB and dm. With `dora_norm="true"` n passes its gradient on, else not.

    In the forward pass y = base(x) − u + DoRA(x̃, u) with u = base(x̃) − bias. Without dropout x̃ is x: the first two are the
    bias, and du is all that reaches the base. With it dy goes to base(x), and du − dy to base(x̃). Raises RuntimeError
    where the base trains.
    """
    if layer.base_layer.trainable:
        raise RuntimeError("the norm in DoRA depends on W, and its dW is not derived here: freeze the base")
    base, dropped_cache, norm_cache, dora_cache = layer.base_layer, *cache
    dx, du, dA, dB, dm, dn = ops.dora_backward(dy, dora_cache, need_dx)
    A, B = layer.lora_A[name], layer.lora_B[name]
    if norm_cache is not None and (A.trainable or B.trainable):
        dA_norm, dB_norm = norm_backward(base, dn, norm_cache, need_dA=dA is not None)
        dB += dB_norm
        if dA is not None:
            dA += dA_norm
    for parameter, gradient in ((A, dA), (B, dB), (layer.lora_magnitude_vector[name], dm)):
        if parameter.trainable:
            parameter.add_grad(gradient)
    if not need_dx:
        return None
    if mask is None:
        dx += base.backward(du, base_cache)
        return dx
    du -= dy
    dx += base.backward(du, dropped_cache)
    dx = ops.dropout_backward(dx, mask)
    dx += base.backward(dy, base_cache)
    return dx


def norm_backward(base: Linear, dn: Array, cache: tuple, need_dA: bool) -> tuple[Array | None, Array]:
    """dA and dB of the lengths n, for dn (out,). W is dequantised for dA alone, and gone before dx wants it again."""
    W = dense(base.weight.value, dn.dtype) if need_dA else base.weight.value  # of which only the shape is asked then
    return ops.row_norm_backward(dn, (W, *cache[1:]), need_dA)


def row_factor(layer: LoraLinear, name: str) -> Array:
    """g = m/n (out, 1)."""
    m = layer.lora_magnitude_vector[name].value
    return (m / row_norm(layer, name, m.dtype)[0])[:, None]


def delta_weight(layer: LoraLinear, name: str) -> Array:
    """ΔW = g ∘ (W + s·B A) − W. Raises RuntimeError while something is merged into W."""
    if layer.merged:
        merged = " and ".join(map(repr, layer.merged))
        raise RuntimeError(f"the ΔW of DoRA depends on W, into which {merged} is merged: unmerge it first")
    weight = layer.base_layer.weight.value
    W = dense(weight, weight.dtype)
    return row_factor(layer, name) * (W + layer.scaled_product(name)) - W
