"""PiSSA: a bypass that starts as the principal part of W, over a base that keeps the rest (Meng et al. 2024, arXiv 2404.02948).

    W = U Σ Vᵀ,   s·B₀A₀ = U_r Σ_r V_rᵀ,   base: W − s·B₀A₀, whose singular values are the tail σ_{r+1}, …

The sum is W, so at the start the model answers as before; but what trains is where W is large, and what is frozen (or
quantised: QPiSSA) is small. The base changes. So a saved adapter is written as the LoRA of rank 2r that it is on the
base as it was, ΔW = s·(B A − B₀A₀) = s·[B, −B₀][A; A₀], and loads there, here and in PEFT. Over a quantised rest, which is
rounded, that would be another model, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ... import ops
from ...backend import Array, array_module, move, to_host
from ...nn import Module
from ...quantization import Quantized4bit

if TYPE_CHECKING:
    from .config import LoraConfig
    from .layer import LoraLinear


def principal_factors(W: np.ndarray, r: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """A₀ (r, in) = √(Σ_r/s) V_rᵀ and B₀ (out, r) = U_r √(Σ_r/s) of W (out, in), in float64: equally long, as in PEFT."""
    U, sigma, Vt = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    root = np.sqrt(sigma[:r] / scaling)
    return root[:, None] * Vt[:r], U[:, :r] * root


def check_pissa(layers: Mapping[str, Module], config: LoraConfig, others: bool) -> None:
    """Raise ValueError naming the layer that PiSSA cannot take apart, RuntimeError where others stand on the same base."""
    if config.init_lora_weights != "pissa":
        return
    if others:
        raise RuntimeError("PiSSA changes the base, and there are adapters on it: start from a model without adapters")
    for name, layer in layers.items():
        if isinstance(layer.weight.value, Quantized4bit):
            raise ValueError(
                f"{name} is quantised, and PiSSA needs its singular values: get_peft_model first, then quantize_model"
            )
        r, most = config.for_layer(name).r, min(layer.out_features, layer.in_features)
        if r > most:
            raise ValueError(f"{name} has {most} singular values; PiSSA with r = {r} needs as many as its rank")
        if not array_module(layer.weight.value).isfinite(layer.weight.value).all():
            raise ValueError(f"{name} has a weight that is not finite, so it has no singular values for PiSSA")


def take_out(layer: LoraLinear, name: str) -> None:
    """W ← W − s·B A of an adapter that is at its start, as its factors are stored: rounding included."""
    layer.base_layer.weight.value -= layer.scaled_product(name)
    A, B = (to_host(factors[name].value).copy() for factors in (layer.lora_A, layer.lora_B))
    layer.start = A, B, layer.configs[name].scaling


def check_unrounded(name: str, layer: LoraLinear) -> None:
    """Raise RuntimeError where what PiSSA left of the base was quantised: no adapter on the base as it was is this model."""
    if layer.start is not None and isinstance(layer.linear.weight.value, Quantized4bit):
        raise RuntimeError(
            f"{name}: quantize_model rounded what PiSSA left of the base, and a saved adapter is for the base as it was; "
            "save what was trained as a model: save_model(dequantize_model(peft_model).merge_and_unload(), folder)"
        )


def taken_out(layer: LoraLinear, x: Array) -> tuple[Array, tuple]:
    """s·(x A₀ᵀ) B₀ᵀ, which the base lacks where a call does not name the adapter, and its cache for dx."""
    A, B, scaling = layer.start
    return ops.lora_forward(x, *(move(factor, x).astype(x.dtype) for factor in (A, B)), scaling, keep_x=False)


def put_back(layer: LoraLinear) -> None:
    """W ← W + s·B₀A₀, the base as it was, up to rounding."""
    W = layer.base_layer.weight.value
    A, B, scaling = layer.start
    W += move(scaling * (B.astype(W.dtype) @ A.astype(W.dtype)), W)
    layer.start = None


def on_the_original(
    A: np.ndarray, B: np.ndarray, start: tuple[np.ndarray, np.ndarray, float]
) -> tuple[np.ndarray, np.ndarray]:
    """[A; A₀] (2r, in) and [B, −B₀] (out, 2r), whose product is B A − B₀A₀."""
    return np.concatenate([A, start[0]]), np.concatenate([B, -start[1]], axis=1)


def config_on_the_original(config: LoraConfig) -> LoraConfig:
    """The configuration of rank 2r, with α so that s stays: α/r = 2α/2r, and with rsLoRA α/√r = √2α/√2r."""
    factor = math.sqrt(2) if config.use_rslora else 2
    return replace(
        config,
        r=2 * config.r,
        lora_alpha=factor * config.lora_alpha,
        rank_pattern={key: 2 * r for key, r in config.rank_pattern.items()},
        alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()},
        init_lora_weights=True,
    )
