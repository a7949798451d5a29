"""Adapters as objects: an Adapter is one adapter's part in one layer; an AdaptedLinear replaces a Linear and holds them.

    y, cache = adapter.forward(x, base, context)          the adapted layer: the adapter calls the base layer itself
    dx       = adapter.backward(dy, cache, base, need_dx)

A method subclasses Bypass where its adapter adds a term to the output, y + δ(x), OutputAdapter where it maps the output, f(y),
and Adapter where it does something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array, move, to_host
from ..nn import EVALUATION, Cache, Context, Linear, Module, Parameter, Rows
from ..ops.linear import LinearCache
from ..quantization import Quantized4bit, dequantize_4bit

BypassCache: TypeAlias = tuple[Cache, Array | None, Cache]  # the base layer's, the mask of dropout, δ's
OutputCache: TypeAlias = tuple[Cache, Cache]  # the base layer's, f's


class Adapter(Module):
    """One adapter in one layer. Its parameters are attributes with PEFT's names; `config` has its settings for this layer."""

    config: Any  # a subclass says of which class
    depends_on_weight: ClassVar[bool] = False  # True if ΔW depends on W: it cannot be computed after a merge
    mergeable: ClassVar[bool] = False  # whether it is a change ΔW of the weight
    mixable: ClassVar[bool] = False  # whether its rows can share a batch with those of other adapters

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(name, Parameter) of its attributes, in order. Every backward asks for these: no walk through modules."""
        for name, part in vars(self).items():
            if isinstance(part, Parameter):
                yield name, part
            elif isinstance(part, Linear):
                yield from ((f"{name}.{inner}", p) for inner, p in vars(part).items())

    @property
    def frozen(self) -> tuple[str, ...]:
        """The parameters that never train."""
        return ()

    def set_trainable(self, trainable: bool) -> None:
        """Train its parameters, all but the `frozen` ones, or freeze all and drop their gradients."""
        for name, p in self.named_parameters():
            p.trainable = trainable and name not in self.frozen
            if not p.trainable:
                p.grad = None

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, Cache]:
        """x (…, in) → y (…, out) of the adapted layer."""
        raise NotImplementedError

    def backward(self, dy: Array, cache: Cache, base: Linear, need_dx: bool) -> Array | None:
        """dy (…, out) → dx (…, in), or None where nothing below needs it; adds the gradients of what trains."""
        raise NotImplementedError

    def delta_weight(self, base: Linear) -> Array:
        """ΔW (out, in): what the adapter adds to the weight, for adapters that can be merged."""
        raise NotImplementedError

    def __repr__(self) -> str:
        rank = [f"r={self.config.r}"] if "r" in vars(getattr(self, "config", self)) else []
        shapes = [f"{name}={p.value.shape}" for name, p in self.named_parameters()]
        return f"{type(self).__name__}({', '.join(rank + shapes)})"

    def tensors(self) -> dict[str, np.ndarray]:
        """What a file holds of it, on the host: its parameters, by name."""
        return {name: to_host(p.value) for name, p in self.named_parameters()}


class Bypass(Adapter):
    """y + δ(x̃) with x̃ = drop(x): an adapter that adds a term to the output. Only the bypass drops, never the base."""

    @property
    def dropout(self) -> float:
        """The probability of dropping an input of the bypass."""
        return 0.0

    @property
    def learned(self) -> tuple[Parameter, ...]:
        """The parameters in the order of the gradients that `delta_backward` returns."""
        return ()

    def delta_forward(self, x: Array) -> tuple[Array, Cache]:
        """x (…, in) → δ (…, out)."""
        raise NotImplementedError

    def delta_backward(self, dy: Array, cache: Cache, need_dx: bool) -> tuple[Array | None, ...]:
        """dδ (…, out) → dx (…, in) or None, then the gradients of `learned`."""
        raise NotImplementedError

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, BypassCache]:
        """x (…, in) → base(x) + δ(drop(x))."""
        y, base_cache = base.forward(x, context)
        x, mask = ops.dropout_forward(x, self.dropout, context.rng)
        delta, cache = self.delta_forward(x)
        y += delta
        return y, (base_cache, mask, cache)

    def backward(self, dy: Array, cache: BypassCache, base: Linear, need_dx: bool) -> Array | None:
        """In the forward pass y was the sum of both paths, so dy goes whole into each, and their dx add up."""
        base_cache, mask, delta_cache = cache
        dx = base.backward(dy, base_cache, need_dx)
        if not (need_dx or any(p.trainable for p in self.learned)):
            return None
        dx_bypass, *gradients = self.delta_backward(dy, delta_cache, need_dx)
        add_gradients(self.learned, gradients)
        if need_dx:
            assert dx is not None and dx_bypass is not None
            dx += ops.dropout_backward(dx_bypass, mask)
        return dx


class OutputAdapter(Adapter):
    """f(y) with y = base(x): an adapter that maps the output."""

    def output_forward(self, y: Array) -> tuple[Array, Cache]:
        """y (…, out) → f(y) (…, out), a new array."""
        raise NotImplementedError

    def output_backward(self, dz: Array, cache: Cache, need_dy: bool) -> Array | None:
        """dz (…, out) → dy (…, out), or None where it is not needed; adds the gradients of what trains."""
        raise NotImplementedError

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, OutputCache]:
        """x (…, in) → f(base(x))."""
        y, base_cache = base.forward(x, context)
        z, cache = self.output_forward(y)
        return z, (base_cache, cache)

    def backward(self, dz: Array, cache: OutputCache, base: Linear, need_dx: bool) -> Array | None:
        """The chain rule: dz through f, then through the base layer, where anything there or below needs it."""
        base_cache, output_cache = cache
        dy = self.output_backward(dz, output_cache, need_dx or base.trainable)
        return None if dy is None else base.backward(dy, base_cache, need_dx)


class AdapterLinear(Linear):
    """y = x Wᵀ + b as a part of an adapter. What is stored in 16 bits is widened to compute with. Frozen, it keeps no x."""

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, LinearCache]:
        """x (…, in) → y (…, out)."""
        W, b = upcast(x.dtype, self.weight.value), upcast(x.dtype, self.bias.value)
        y, _ = ops.linear_forward(x, W, b)
        return y, (x if self.weight.trainable else None, W, self.bias.trainable)


AdaptedCache: TypeAlias = tuple[Adapter | None, Cache]  # the adapter of the call, and its cache; else the base layer's


class AdaptedLinear(Module):
    """A Linear with adapters: the base layer alone, or with the one adapter that the call names in `Context.adapter`.

    `base_layer` is any module with the interface of Linear. `adapters` maps names to the adapters in this layer. An adapter
    that is a change ΔW of the weight can be merged into it; `merged` has the names of the merged adapters, and the layer
    then costs as much as the base layer alone.
    """

    def __init__(self, base_layer: Linear) -> None:
        self.base_layer = base_layer
        self.adapters: dict[str, Adapter] = {}
        self.base_correction: Bypass | None = None  # PiSSA's part of W, added if a call uses no adapter here
        self.merged: tuple[str, ...] = ()
        self.weight_before_merge: Array | None = (
            None  # W from before the merge, where subtracting would not bring it back
        )

    @property
    def in_features(self) -> int:
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        return self.base_layer.out_features

    @property
    def trainable(self) -> bool:
        """Whether the base layer or an adapter has a trainable parameter."""
        return self.base_layer.trainable or any(adapter.trainable for adapter in self.adapters.values())

    def children(self) -> Iterator[tuple[str, Parameter | Module]]:
        """The base layer, then the adapters' parameters under PEFT's names: lora_A.default, …, lora_B.default, …"""
        yield "base_layer", self.base_layer
        by_kind: dict[str, list[tuple[str, Parameter]]] = {}
        for name, adapter in self.adapters.items():
            for path, p in adapter.named_parameters():
                kind, *rest = path.split(".")
                by_kind.setdefault(path, []).append((".".join([kind, name, *rest]), p))
        for parameters in by_kind.values():
            yield from parameters

    def extra_repr(self) -> str:
        """One line per adapter: its name, kind, rank and shapes."""
        return "\n".join(f"{name}: {adapter!r}" for name, adapter in self.adapters.items())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Itself and its base. The adapters, a thousand perhaps, are not looked through: they hold parameters alone."""
        yield prefix, self
        yield from self.base_layer.named_modules(f"{prefix}.base_layer" if prefix else "base_layer")

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, AdaptedCache]:
        """x (…, in) → y (…, out). Raises RuntimeError for an adapter while another one is merged into the weight."""
        adapter = self.adapter_of(context.adapter)
        if adapter is None:
            y, cache = self.base_layer.forward(x, context)
        else:
            y, cache = adapter.forward(x, self.base_layer, context)
        return y, (adapter, cache)

    def backward(self, dy: Array, cache: AdaptedCache, need_dx: bool = True) -> Array | None:
        """dy (…, out) → dx (…, in), or None where nothing below needs it."""
        adapter, own_cache = cache
        if adapter is None:
            return self.base_layer.backward(dy, own_cache, need_dx)
        return adapter.backward(dy, own_cache, self.base_layer, need_dx)

    def adapter_of(self, called: str | Rows | None) -> Adapter | None:
        """The adapter that a call applies here. Raises RuntimeError where others are merged."""
        if self.merged:
            if isinstance(called, Rows) or (called is not None and called not in self.merged):
                other = "a mixed batch" if isinstance(called, Rows) else repr(called)
                raise RuntimeError(
                    f"adapter {self._merged()} is merged into the weights: unmerge it before using {other}"
                )
            if any(name in self.adapters for name in self.merged):
                return None
        if isinstance(called, Rows):
            return called.adapter_of(self)
        return self.base_correction if called is None else self.adapters.get(called, self.base_correction)

    def delta_weight(self, name: str) -> Array:
        """ΔW (out, in) of an adapter. Raises RuntimeError where it is made of W, and something is merged into W."""
        adapter = self.adapters[name]
        if self.merged and adapter.depends_on_weight:
            raise RuntimeError(
                f"the ΔW of {name!r} depends on W, into which {self._merged()} is merged: unmerge it first"
            )
        return adapter.delta_weight(self.base_layer)

    def check_mergeable(self) -> None:
        """Raise RuntimeError where the base is quantised: a weight of four bits has 16 levels, and ΔW would be rounded away."""
        if isinstance(self.base_layer.weight.value, Quantized4bit):
            raise RuntimeError(
                "the base is quantised, and ΔW would be rounded away in its codes: lora_np.dequantize_model(model) first"
            )

    def merge(self, *names: str) -> None:
        """W ← W + Σ ΔW over these adapters. A second call changes nothing more."""
        if self.merged and set(names) != set(self.merged):
            raise RuntimeError(f"adapter {self._merged()} is merged; unmerge_adapter() before merging {names}")
        if self.merged:
            return
        self.check_mergeable()
        W = self.base_layer.weight.value
        if any(self.adapters[name].depends_on_weight for name in names if name in self.adapters):
            self.weight_before_merge = W.copy()
        if (delta := self.total_delta(names)) is not None:
            W += delta
        self.merged = names

    def unmerge(self) -> None:
        """W ← W − Σ ΔW, back to the base up to rounding, or to the bit where W was kept."""
        W = self.base_layer.weight.value
        if self.weight_before_merge is not None:
            W[...] = self.weight_before_merge
        elif (delta := self.total_delta(self.merged)) is not None:
            W -= delta
        self.merged, self.weight_before_merge = (), None

    def total_delta(self, names: tuple[str, ...]) -> Array | None:
        """Σ ΔW over those of the adapters that are here; None where none is."""
        deltas = (self.adapters[name].delta_weight(self.base_layer) for name in names if name in self.adapters)
        total = next(deltas, None)
        for delta in deltas:
            total += delta
        return total

    def _merged(self) -> str:
        return " and ".join(map(repr, self.merged))


def parameter_like(base: Linear, x: np.ndarray, dtype: np.dtype | None = None) -> Parameter:
    """A host array as a Parameter where the base layer's weight is, in its dtype or in `dtype`."""
    weight = base.weight.value
    like = weight.packed if isinstance(weight, Quantized4bit) else weight
    return Parameter(move(x.astype(dtype or weight.dtype), like))


def dense(weight: Array | Quantized4bit, dtype: DTypeLike) -> Array:
    """W (out, in), dequantised where it is stored in four bits."""
    return dequantize_4bit(weight, dtype) if isinstance(weight, Quantized4bit) else weight


def upcast(dtype: DTypeLike, x: Array) -> Array:
    """The array to compute with: x itself, or a copy in `dtype` where it is stored in 16 bits."""
    return x.astype(dtype) if x.itemsize == 2 else x


def add_gradients(parameters: tuple[Parameter, ...], gradients: Iterable[Array | None]) -> None:
    """Add to each parameter that trains its gradient."""
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.trainable:
            p.add_grad(gradient)
