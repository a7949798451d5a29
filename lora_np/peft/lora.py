"""LoRA as a wrapper: LoraLinear takes a Linear's place, keeps it frozen, and adds the trained bypass (arXiv 2106.09685)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np

from .. import ops
from ..backend import Array, move
from ..nn import EVALUATION, Context, Linear, Module, Parameter
from ..quantization import Quantized4bit
from .mixed import AdapterRows, mixed_backward, mixed_forward

T = TypeVar("T")
AT_THE_END = r"(.*\.)?({})$"  # how a key of rank_pattern or alpha_pattern matches a layer's name


@dataclass(frozen=True)
class LoraConfig:
    """What to adapt and how, with PEFT's names and meanings.

    r: the rank of ΔW, at least 1.
    lora_alpha: α; the bypass is scaled by α/r, or by α/√r with `use_rslora` (Kalajdzievski 2023, arXiv 2312.03732).
    rank_pattern, alpha_pattern: another r or α for some layers, {"down_proj": 16}. A key is a regular expression for
        the end of a layer's name, from a dot on; the first key that matches counts.
    target_modules: a list of names or suffixes, one suffix, a regular expression for the whole name, or "all-linear"
        (every linear layer but lm_head).
    lora_dropout: the probability of dropping an input of the bypass while training; the frozen path never drops.
    init_lora_weights: True, A uniform in ±1/√in (Kaiming with a = √5) and B = 0; "gaussian", A normal with std 1/r and
        B = 0; False, B uniform in ±1/√r too, so that the adapter is not the identity at the start (for tests).
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range or a pattern that is no regular expression, TypeError for an r that is
    not an integer or a use_rslora that is no bool.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Sequence[str] = ("q_proj", "v_proj")
    lora_dropout: float = 0.0
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian"] = True
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model_name_or_path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, dict(getattr(self, name)))  # a copy, that stays as it is
        ranks = {"r": self.r} | {f"rank_pattern[{key!r}]": r for key, r in self.rank_pattern.items()}
        for what, r in ranks.items():
            if not isinstance(r, int | np.integer) or isinstance(r, bool):
                raise TypeError(f"{what} = {r!r}; the rank is a whole number")
            if r < 1:
                raise ValueError(f"{what} = {r}; the rank must be at least 1")
        alphas = {"lora_alpha": self.lora_alpha} | {f"alpha_pattern[{k!r}]": a for k, a in self.alpha_pattern.items()}
        for what, alpha in alphas.items():
            if not 0 < alpha < math.inf:
                raise ValueError(f"{what} = {alpha}; expected a positive number")
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            try:
                re.compile(AT_THE_END.format(key))
            except re.error as error:
                raise ValueError(f"the pattern {key!r} is no valid regular expression: {error}.") from None
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout = {self.lora_dropout}; expected 0 ≤ lora_dropout < 1")
        if not isinstance(self.use_rslora, bool):
            raise TypeError(f"use_rslora = {self.use_rslora!r}; expected True or False")
        if not (isinstance(self.init_lora_weights, bool) or self.init_lora_weights == "gaussian"):
            raise ValueError(f"init_lora_weights = {self.init_lora_weights!r}; expected True, False or 'gaussian'")

    @property
    def scaling(self) -> float:
        """s = α/r, or α/√r with rsLoRA."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def for_layer(self, name: str) -> LoraConfig:
        """The same for the one layer `name`: its own r and α, and no patterns left."""
        r, alpha = first_match(self.rank_pattern, name, self.r), first_match(self.alpha_pattern, name, self.lora_alpha)
        return replace(self, r=r, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})


def storage_dtype(name: Any) -> np.dtype:
    """The dtype to store adapters in: any that NumPy has, or "bfloat16". Raises TypeError for what is no float dtype."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)  # raises TypeError for a name that it does not know
    if dtype.kind != "f":
        raise TypeError(f"adapter_dtype {name!r}; expected 'float16', 'bfloat16', 'float32' or 'float64'")
    return dtype


def first_match(pattern: Mapping[str, T], name: str, default: T) -> T:
    """What `pattern` has for the layer `name`, or `default`. Source: PEFT, `get_pattern_key` in peft/utils/other.py."""
    return next((value for key, value in pattern.items() if re.match(AT_THE_END.format(key), name)), default)


class LoraLinear(Module):
    """y = base(x) + s·(drop(x) Aᵀ) Bᵀ for the adapter that the call names; the base alone when it names none.

    `base_layer` is any module with Linear's contract. `lora_A[name]` (r, in) and `lora_B[name]` (out, r) are an
    adapter's trained factors, `configs[name]` its settings.
    """

    def __init__(self, base_layer: Linear) -> None:
        self.base_layer = base_layer
        self.lora_A: dict[str, Parameter] = {}
        self.lora_B: dict[str, Parameter] = {}
        self.configs: dict[str, LoraConfig] = {}
        self.merged: tuple[str, ...] = ()  # the adapters whose ΔW the base's weight now holds, where they are here

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Itself and its base: the factors, of a thousand adapters perhaps, hold no module, and are not looked through."""
        yield prefix, self
        yield from self.base_layer.named_modules(f"{prefix}.base_layer" if prefix else "base_layer")

    def add_adapter(self, name: str, config: LoraConfig, rng: np.random.Generator, dtype: Any = None) -> None:
        """Create A and B as `config` says. The numbers are drawn on the host, so a seed means the same on every device."""
        r, fan_in = config.r, self.in_features
        bound = 1 / math.sqrt(fan_in)  # the fan-in of A is `in`, never r
        if config.init_lora_weights == "gaussian":
            A = rng.standard_normal((r, fan_in)) / r
        else:
            A = rng.uniform(-bound, bound, (r, fan_in))
        B = np.zeros((self.out_features, r))
        if config.init_lora_weights is False:
            B = rng.uniform(-1 / math.sqrt(r), 1 / math.sqrt(r), B.shape)
        self.put_adapter(name, config, A, B, dtype)

    def put_adapter(self, name: str, config: LoraConfig, A: np.ndarray, B: np.ndarray, dtype: Any = None) -> None:
        """Take the host arrays A (r, in) and B (out, r) as an adapter, where the base's weight is, in its dtype or in `dtype`."""
        weight = self.base_layer.weight.value
        like = weight.packed if isinstance(weight, Quantized4bit) else weight
        self.lora_A[name] = Parameter(move(A.astype(dtype or weight.dtype), like))
        self.lora_B[name] = Parameter(move(B.astype(dtype or weight.dtype), like))
        self.configs[name] = config

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter, if it is here."""
        for kept in (self.lora_A, self.lora_B, self.configs):
            kept.pop(name, None)

    def factors(self, name: str, dtype: Any) -> tuple[Array, Array]:
        """A and B to compute with: themselves, or copies in `dtype` where they are stored in 16 bits."""
        stored = self.lora_A[name].value, self.lora_B[name].value
        return tuple(x.astype(dtype) if x.dtype.itemsize == 2 else x for x in stored)

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Any]:
        """x (…, in) → y (…, out). Raises RuntimeError for an adapter while another one is merged into the weight."""
        name = context.adapter
        mixed = isinstance(name, AdapterRows)
        if self.merged and (mixed or (name is not None and name not in self.merged)):
            named = "a mixed batch" if mixed else repr(name)
            raise RuntimeError(f"adapter {self._merged()} is merged into the weights: unmerge it before using {named}")
        y, base_cache = self.base_layer.forward(x, context)
        if mixed:
            return y, (base_cache, name, None, mixed_forward(self, x, y, context))
        if name not in self.lora_A or self.merged:
            return y, (base_cache, None, None, None)
        config = self.configs[name]
        dropped, mask = ops.dropout_forward(x, config.lora_dropout, context.rng)
        delta, lora_cache = ops.lora_forward(dropped, *self.factors(name, x.dtype), config.scaling)
        y += delta
        return y, (base_cache, name, mask, lora_cache)

    def backward(self, dy: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dy (…, out) → dx (…, in), or None where nothing below needs it.

        In the forward pass y was the sum of both paths, so dy goes whole into each, and their dx add up.
        """
        base_cache, name, mask, lora_cache = cache
        dx = self.base_layer.backward(dy, base_cache, need_dx)
        if name is None:
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

    def delta_weight(self, name: str) -> Array:
        """ΔW = s·B A (out, in): what the adapter adds to the weight, the only thing about A and B that means anything."""
        A, B = self.factors(name, self.base_layer.weight.value.dtype)
        return self.configs[name].scaling * (B @ A)

    def check_mergeable(self) -> None:
        """Raise RuntimeError where the base is quantised: its sixteen values a block cannot take ΔW in."""
        if isinstance(self.base_layer.weight.value, Quantized4bit):
            raise RuntimeError(
                "the base is quantised, and ΔW would be rounded away in its codes: lora_np.dequantize_model(model) first"
            )

    def merge(self, *names: str) -> None:
        """W ← W + Σ ΔW over these adapters, after which the layer costs what the base costs. Twice changes nothing more."""
        if self.merged and set(names) != set(self.merged):
            raise RuntimeError(f"adapter {self._merged()} is merged; unmerge_adapter() before merging {names}")
        if not self.merged:
            self.check_mergeable()
            for name in names:
                if name in self.lora_A:
                    self.base_layer.weight.value += self.delta_weight(name)
            self.merged = names

    def unmerge(self) -> None:
        """W ← W − Σ ΔW, back to the base, up to rounding."""
        for name in reversed(self.merged):
            if name in self.lora_A:
                self.base_layer.weight.value -= self.delta_weight(name)
        self.merged = ()

    def _merged(self) -> str:
        return " and ".join(map(repr, self.merged))
