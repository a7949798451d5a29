"""PiSSA: the bypass starts as the principal part of W, and the base keeps the rest (Meng et al. 2024, arXiv 2404.02948).

    W = U Σ Vᵀ,   s·B₀A₀ = U_r Σ_r V_rᵀ,   base: W − s·B₀A₀, with the singular values σ_{r+1}, …

The sum of base and bypass is W, so the output is unchanged at the start. The trained bypass contains the large singular
values of W. The frozen base, which is quantised in QPiSSA, contains the small singular values. PiSSA changes the base.
Saving therefore converts the adapter to a LoRA of rank 2r for the original base: ΔW = s·(B A − B₀A₀) = s·[B, −B₀][A;
A₀]. Both lora_np and PEFT can load this LoRA. Suppose that the base changed again after PiSSA, for example because
`quantize_model` rounded the base. Then the original base with this LoRA would give other outputs than this model, so
saving raises an error. Saving also raises an error after `dequantize_model`, because `dequantize_model` does not undo
the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ... import ops
from ...backend import Array, array_module, move, to_host
from ...nn import Linear
from ...ops.lora import LoraCache
from ...quantization import Quantized4bit
from ..adapted_linear import AdaptedLinear
from ..adapter import Bypass
from .config import LoraConfig
from .layer import LoraAdapter

TOLERANCE = 1e-5  # above the rounding errors of merging in float32 (1e-7), below the rounding to 16 bits (2e-4)


class PissaCorrection(Bypass):
    """A bypass s·(x A₀ᵀ) B₀ᵀ, where s·B₀A₀ is the part of W that PiSSA subtracted from the base.

    A call that does not use the adapter adds the output of this bypass. The arrays A₀ (r, in) and B₀ (out, r) are in
    host memory. To detect later changes of the base, the bypass also keeps R v (out,), the product of the changed base
    R (out, in) and a random vector v (in,). A change of R by ΔR changes the product by ΔR v, and ΔR v is nonzero for
    almost every v.
    """

    def __init__(self, adapter: LoraAdapter, R: Array) -> None:
        self.A, self.B = (to_host(p.value).copy() for p in adapter.learned)
        self.scaling = adapter.config.scaling
        self.product = product_with_random_vector(R)

    def fits(self, R: Array) -> bool:
        """Return True if R is still the base that PiSSA computed.

        Rounding errors that are small relative to W = R + s·B₀A₀ are ignored.
        """
        removed = product_with_random_vector(self.scaling * (self.B.astype("float64") @ self.A.astype("float64")))
        change = product_with_random_vector(R) - self.product
        return bool(np.linalg.norm(change) <= TOLERANCE * np.linalg.norm(self.product + removed))

    def delta_forward(self, x: Array) -> tuple[Array, LoraCache]:
        """Compute δ (…, out) for x (…, in)."""
        A, B = (move(X, x).astype(x.dtype) for X in (self.A, self.B))
        return ops.lora_forward(x, A, B, self.scaling, keep_x=False)

    def delta_backward(self, dy: Array, cache: LoraCache, need_dx: bool) -> tuple[Array | None, ...]:
        """Return dx for dδ (…, out); A₀ and B₀ are not trained."""
        return ops.lora_backward(dy, cache)[:1]

    def restore_base(self, base: Linear) -> None:
        """Restore the original base, up to rounding errors: W ← W + s·B₀A₀."""
        W = base.weight.value
        W += move(self.scaling * (self.B.astype(W.dtype) @ self.A.astype(W.dtype)), W)

    def convert_to_lora(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the tensors of rank 2r for the original base: [A; A₀] and [B, −B₀].

        The product of the two tensors is B A − B₀A₀.
        """
        A, B = tensors["lora_A.weight"], tensors["lora_B.weight"]
        joined = np.concatenate([A, self.A]), np.concatenate([B, -self.B], axis=1)
        return {**tensors, **dict(zip(("lora_A.weight", "lora_B.weight"), joined, strict=True))}


def product_with_random_vector(W: Array) -> np.ndarray:
    """Return W v (out,) for W (out, in), in host memory. The vector v is random, but the same in every call."""
    dtype = np.dtype("float32") if W.itemsize == 2 else W.dtype
    v = np.random.default_rng(0).standard_normal(W.shape[1:]).astype(dtype)
    return to_host(W.astype(dtype, copy=False) @ move(v, W))


def principal_factors(W: np.ndarray, r: int, scaling: float) -> tuple[np.ndarray, np.ndarray]:
    """Return A₀ = √(Σ_r/s) V_rᵀ (r, in) and B₀ = U_r √(Σ_r/s) (out, r) for W (out, in).

    The computation uses float64, as in PEFT.
    """
    U, sigma, Vt = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    root = np.sqrt(sigma[:r] / scaling)
    return root[:, None] * Vt[:r], U[:, :r] * root


def check_layer(name: str, base: Linear, r: int) -> None:
    """Raise ValueError if PiSSA cannot split the weight of this layer."""
    W, most = base.weight.value, min(base.out_features, base.in_features)
    if isinstance(W, Quantized4bit):
        raise ValueError(
            f"{name} is quantised, but PiSSA needs the singular values of W; call get_peft_model first, then quantize_model"
        )
    if r > most:
        raise ValueError(f"{name} has {most} singular values; PiSSA with r = {r} needs at least r")
    if not array_module(W).isfinite(W).all():
        raise ValueError(f"{name} has a weight that is not finite; PiSSA needs the singular values of W")


def subtract_from_base(layer: AdaptedLinear, adapter: LoraAdapter) -> None:
    """Subtract the product of a new adapter from the weight of its layer: W ← W − s·B A.

    A and B are the factors after rounding to the storage dtype.
    """
    W = layer.base_layer.weight.value
    W -= adapter.scaled_product(W.dtype)
    layer.base_correction = PissaCorrection(adapter, W)


def check_base(name: str, layer: AdaptedLinear) -> None:
    """Raise RuntimeError if the base changed after PiSSA, for example because the base was quantised.

    After such a change, the original base cannot be restored, and no adapter for the original base gives the same
    outputs as the model.
    """
    if not isinstance(layer.base_correction, PissaCorrection):
        return
    if isinstance(layer.base_layer.weight.value, Quantized4bit) or not layer.base_correction.fits(
        layer.frozen_weight()
    ):
        raise RuntimeError(
            f"{name}: the base changed after PiSSA (for example, quantize_model or a conversion to 16 bits rounded the base). "
            "The original base cannot be restored, and no adapter on it gives the outputs of this model. Save the whole "
            "model: save_model(dequantize_model(peft_model).merge_and_unload(), folder)"
        )


def converted_config(config: LoraConfig) -> LoraConfig:
    """Return the configuration of rank 2r with the same scaling.

    The new α is 2α, because 2α/(2r) = α/r. With rsLoRA, the new α is √2·α, because √2·α/√(2r) = α/√r.
    """
    factor = math.sqrt(2) if config.use_rslora else 2
    return replace(
        config,
        r=2 * config.r,
        lora_alpha=factor * config.lora_alpha,
        rank_pattern={key: 2 * r for key, r in config.rank_pattern.items()},
        alpha_pattern={key: factor * alpha for key, alpha in config.alpha_pattern.items()},
        init_lora_weights=True,
    )
