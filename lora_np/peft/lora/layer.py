"""TODO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ... import ops
from ...backend import Array, move, to_host
from ...costs import Dora, Lora
from ...nn import EVALUATION, Context, Linear, Module, Parameter
from ...quantization import Quantized4bit
from ..wrapper import WeightWrapper
from . import dora, pissa
from .config import LoraConfig
from .mixed import AdapterRows, mixed_backward, mixed_forward

FACTORS = ("lora_A", "lora_B", "lora_magnitude_vector")  # the part of a parameter's name that says what it is


class LoraLinear(WeightWrapper):
    """y = base(x) + s·(drop(x) Aᵀ) Bᵀ for the adapter that the call names; the base alone when it names none.

    `base_layer` is any module with Linear's contract. `lora_A[name]` (r, in) and `lora_B[name]` (out, r) are an
    adapter's trained factors, with DoRA `lora_magnitude_vector[name]` (out,) too, `configs[name]` its settings.
    """

    def __init__(self, base_layer: Linear) -> None:
        super().__init__(base_layer)
        self.lora_A: dict[str, Parameter] = {}
        self.lora_B: dict[str, Parameter] = {}
        self.lora_magnitude_vector: dict[str, Parameter] = {}
        self.start: tuple[np.ndarray, np.ndarray, float] | None = None  # A₀, B₀ and s that PiSSA took out of the base

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Itself and its base: the factors, of a thousand adapters perhaps, hold no module, and are not looked through."""
        yield prefix, self
        yield from self.base_layer.named_modules(f"{prefix}.base_layer" if prefix else "base_layer")

    def add_adapter(self, name: str, config: LoraConfig, rng: np.random.Generator, dtype: Any = None) -> None:
        """Create A and B as `config` says. The numbers are drawn on the host, so a seed means the same on every device."""
        r, fan_in = config.r, self.in_features
        bound = 1 / math.sqrt(fan_in)  # the fan-in of A is `in`, never r
        B, m = np.zeros((self.out_features, r)), None
        if config.init_lora_weights == "pissa":
            W = to_host(self.base_layer.weight.value)
            A, B = pissa.principal_factors(W, r, config.scaling)
            m = np.linalg.norm(W, axis=1)  # of what take_out leaves of W, and s·B A
        elif config.init_lora_weights == "gaussian":
            A = rng.standard_normal((r, fan_in)) / r
        else:
            A = rng.uniform(-bound, bound, (r, fan_in))
        if config.init_lora_weights is False:
            B = rng.uniform(-1 / math.sqrt(r), 1 / math.sqrt(r), B.shape)
        self.put_adapter(name, config, A, B, m, dtype)
        if config.init_lora_weights == "pissa":
            pissa.take_out(self, name)

    def put_adapter(
        self,
        name: str,
        config: LoraConfig,
        A: np.ndarray,
        B: np.ndarray,
        m: np.ndarray | None = None,
        dtype: Any = None,
    ) -> None:
        """Take the host arrays A (r, in) and B (out, r) as an adapter, where the base's weight is, in its dtype or in `dtype`.

        m (out,) is DoRA's, by default the lengths that the rows have. It keeps the base's dtype: in 16 bits each row of W
        would be stretched by its rounding.
        """
        weight = self.base_layer.weight.value
        like = weight.packed if isinstance(weight, Quantized4bit) else weight
        self.lora_A[name] = Parameter(move(A.astype(dtype or weight.dtype), like))
        self.lora_B[name] = Parameter(move(B.astype(dtype or weight.dtype), like))
        self.configs[name] = config
        if config.use_dora:
            lengths = dora.row_norm(self, name, weight.dtype)[0] if m is None else move(m.astype(weight.dtype), like)
            self.lora_magnitude_vector[name] = Parameter(lengths)

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter, if it is here. What PiSSA took out of the base goes back into it."""
        if self.start is not None and name in self.lora_A:
            pissa.put_back(self)
        for kept in (self.lora_A, self.lora_B, self.lora_magnitude_vector, self.configs):
            kept.pop(name, None)

    def set_trainable(self, name: str, trainable: bool) -> None:
        """Let an adapter train, if it is here, all but an A that LoRA-FA freezes; or freeze it and drop its gradients."""
        for parameters in (self.lora_A, self.lora_B, self.lora_magnitude_vector):
            if name in parameters:
                p = parameters[name]
                p.trainable = trainable and not (parameters is self.lora_A and self.configs[name].freeze_A)
                if not p.trainable:
                    p.grad = None

    def tensors(self, name: str) -> tuple[np.ndarray, ...]:
        """What a file holds of an adapter, on the host: A, B and with DoRA m; after PiSSA [A; A₀] and [B, −B₀]."""
        parameters = (self.lora_A, self.lora_B, self.lora_magnitude_vector)
        A, B, *m = (to_host(kept[name].value) for kept in parameters if name in kept)
        return (*pissa.on_the_original(A, B, self.start), *m) if self.start else (A, B, *m)

    def on_paper(self, name: str) -> Lora:
        """As the ledger has it; DoRA's is a LoRA with more."""
        A, B, config = self.lora_A[name], self.lora_B[name], self.configs[name]
        lora = B.trainable, A.value.itemsize == 2, A.value.shape[0], A.trainable, config.lora_dropout > 0
        return Dora(*lora, true_norm=config.dora_norm == "true") if config.use_dora else Lora(*lora)

    def factors(self, name: str, dtype: Any) -> tuple[Array, Array]:
        """A and B to compute with: themselves, or copies in `dtype` where they are stored in 16 bits."""
        stored = self.lora_A[name].value, self.lora_B[name].value
        return tuple(x.astype(dtype) if x.dtype.itemsize == 2 else x for x in stored)

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Any]:
        """x (…, in) → y (…, out). Raises RuntimeError for an adapter while another one is merged into the weight."""
        name = context.adapter
        mixed = isinstance(name, AdapterRows)
        self.check_call(name, mixed)
        y, base_cache = self.base_layer.forward(x, context)
        if mixed:
            return y, (base_cache, name, None, mixed_forward(self, x, y, context))
        here = {name, *self.merged} & self.configs.keys()
        if self.start is not None and not here:  # the base before PiSSA
            delta, start_cache = pissa.taken_out(self, x)
            y += delta
            return y, (base_cache, None, None, start_cache)
        if name not in self.lora_A or self.merged:
            return y, (base_cache, None, None, None)
        config = self.configs[name]
        dropped, mask = ops.dropout_forward(x, config.lora_dropout, context.rng)
        if config.use_dora:
            y, lora_cache = dora.forward(self, name, dropped, mask, y, context)
            return y, (base_cache, name, mask, lora_cache)
        keep_x = self.lora_A[name].trainable  # only dA needs it
        delta, lora_cache = ops.lora_forward(dropped, *self.factors(name, x.dtype), config.scaling, keep_x)
        y += delta
        return y, (base_cache, name, mask, lora_cache)

    def backward(self, dy: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dy (…, out) → dx (…, in), or None where nothing below needs it.

        In the forward pass y was the sum of both paths, so dy goes whole into each, and their dx add up.
        """
        base_cache, name, mask, lora_cache = cache
        if isinstance(name, str) and self.configs[name].use_dora:
            return dora.backward(self, name, dy, mask, base_cache, lora_cache, need_dx)
        dx = self.base_layer.backward(dy, base_cache, need_dx)
        if name is None:
            if need_dx and lora_cache is not None:
                dx += ops.lora_backward(dy, lora_cache)[0]
            return dx
        if isinstance(name, AdapterRows):
            mixed_backward(self, dy, dx, lora_cache)
            return dx
        if not (self.lora_A[name].trainable or self.lora_B[name].trainable or need_dx):
            return None
        dx_bypass, dA, dB = ops.lora_backward(dy, lora_cache, need_dx)
        for parameter, gradient in ((self.lora_A[name], dA), (self.lora_B[name], dB)):
            if parameter.trainable:
                parameter.add_grad(gradient)
        if need_dx:
            dx += ops.dropout_backward(dx_bypass, mask)
        return dx

    def scaled_product(self, name: str) -> Array:
        """s·B A (out, in)."""
        A, B = self.factors(name, self.base_layer.weight.value.dtype)
        return self.configs[name].scaling * (B @ A)

    def delta_weight(self, name: str) -> Array:
        """ΔW (out, in): what the adapter adds to the weight, the only thing about A and B that means anything.

        s·B A, and with DoRA g ∘ (W + s·B A) − W. Raises RuntimeError where that is asked for while something is merged.
        """
        return dora.delta_weight(self, name) if self.configs[name].use_dora else self.scaled_product(name)

    def depends_on_weight(self, name: str) -> bool:
        """DoRA's does: g ∘ (W + s·B A) − W."""
        return self.configs[name].use_dora
