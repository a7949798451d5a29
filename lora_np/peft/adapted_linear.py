"""AdaptedLinear: the layer that replaces a Linear and holds its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import TypeAlias

from ..backend import Array, move
from ..nn import EVALUATION, Cache, Context, Linear, Module, Parameter, Rows
from ..quantization import Quantized4bit
from .adapter import Adapter, Bypass

AdaptedCache: TypeAlias = tuple[
    Adapter | None, Cache
]  # the call's adapter and its cache; without an adapter, None and the base layer's cache


class AdaptedLinear(Module):
    """A linear layer with adapters. A call applies the adapter that `Context.adapter` names. If `Context.adapter` is
    None, the call applies no adapter.

    `adapters` maps names to the adapters of this layer. An adapter can be merged into the weight if the adapter can be
    written as a change ΔW of the weight. `merged` contains the names of the merged adapters. A call of a merged layer
    costs as much as a call of the base layer.

    Parameters
    ----------
    base_layer : Linear
        The frozen Linear, or another module with the same interface.

    Examples
    --------
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2, init_lora_weights=False))
    >>> layer = peft_model.lora_layers()[0]
    >>> list(layer.adapters), layer.delta_weight("default").shape
    (['default'], (128, 128))
    """

    def __init__(self, base_layer: Linear) -> None:
        self.base_layer = base_layer
        self.adapters: dict[str, Adapter] = {}
        self.base_correction: Bypass | None = None  # the part of W that PiSSA removed; calls without the adapter add it
        self.merged: tuple[str, ...] = ()
        self.tied = False  # True if the embedding and the head share the weight; a merge then uses a copy
        self.base_before_merge: Linear | None = None  # the layer with the shared weight, while an adapter is merged
        self.weight_before_merge: Array | None = None  # copy of W, for adapters whose ΔW depends on W

    @property
    def weight(self) -> Parameter:
        """The weight of the base layer."""
        return self.base_layer.weight

    @property
    def in_features(self) -> int:
        """The size of the layer's input."""
        return self.base_layer.in_features

    @property
    def out_features(self) -> int:
        """The size of the layer's output."""
        return self.base_layer.out_features

    @property
    def trainable(self) -> bool:
        """True if the base layer or an adapter has a trainable parameter."""
        return self.base_layer.trainable or any(adapter.trainable for adapter in self.adapters.values())

    def children(self) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield the base layer and then the parameters of the adapters, with PEFT's names.

        The parameters of the adapter "default" have the names lora_A.default, lora_B.default, ….

        Yields
        ------
        (str, Parameter or Module)
            Name and child.
        """
        yield "base_layer", self.base_layer
        by_kind: dict[str, list[tuple[str, Parameter]]] = {}
        for name, adapter in self.adapters.items():
            for path, p in adapter.named_parameters():
                kind, *rest = path.split(".")
                by_kind.setdefault(path, []).append((".".join([kind, name, *rest]), p))
        for parameters in by_kind.values():
            yield from parameters

    def extra_repr(self) -> str:
        """Return a description of the adapters.

        Returns
        -------
        str
            One line per adapter: its name, class, rank and shapes.
        """
        return "\n".join(f"{name}: {adapter!r}" for name, adapter in self.adapters.items())

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this layer and the modules of its base layer.

        Adapters and their modules are not yielded.

        Parameters
        ----------
        prefix : str
            Name of this layer.

        Yields
        ------
        (str, Module)
            Full name and module.
        """
        yield prefix, self
        yield from self.base_layer.named_modules(f"{prefix}.base_layer" if prefix else "base_layer")

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, AdaptedCache]:
        """Compute the layer's output with the adapter of the call.

        Parameters
        ----------
        x : ndarray, shape (…, in)
            Input.
        context : Context
            `context.adapter` is the name of an adapter, an AdapterRows for a mixed batch, or None for no adapter.

        Returns
        -------
        y : ndarray, shape (…, out)
            Output.
        cache : tuple
            Values that `backward` needs.

        Raises
        ------
        RuntimeError
            If adapters are merged into the weight and the adapter of the call is not one of them.
        """
        adapter = self.adapter_of(context.adapter)
        if adapter is None:
            y, cache = self.base_layer.forward(x, context)
        else:
            y, cache = adapter.forward(x, self.base_layer, context)
        return y, (adapter, cache)

    def backward(self, dy: Array, cache: AdaptedCache, need_dx: bool = True) -> Array | None:
        """Compute dx, and add the gradients of the trained parameters to their `grad`.

        Parameters
        ----------
        dy : ndarray, shape (…, out)
            Gradient of the output.
        cache : tuple
            From `forward`.
        need_dx : bool
            True if a layer below needs dx.

        Returns
        -------
        ndarray, shape (…, in), or None
            The gradient dx, or None if dx is not needed.
        """
        adapter, own_cache = cache
        if adapter is None:
            return self.base_layer.backward(dy, own_cache, need_dx)
        return adapter.backward(dy, own_cache, self.base_layer, need_dx)

    def adapter_of(self, called: str | Rows | None) -> Adapter | None:
        """Return the adapter that a call applies in this layer.

        Parameters
        ----------
        called : str, Rows or None
            Value of `Context.adapter` in the call.

        Returns
        -------
        Adapter or None
            The adapter, or None if the call applies only the base layer. A merged adapter is part of the base layer, so
            the result is then None.

        Raises
        ------
        RuntimeError
            If adapters are merged into the weight, and the call is a mixed batch or uses another adapter.
        """
        if self.merged:
            if isinstance(called, Rows) or (called is not None and called not in self.merged):
                other = "a mixed batch" if isinstance(called, Rows) else repr(called)
                raise RuntimeError(
                    f"the weights contain the merged {self._merged()}; call unmerge_adapter() before using {other}"
                )
            if any(name in self.adapters for name in self.merged):
                return None
        if isinstance(called, Rows):
            return called.adapter_of(self)
        return self.base_correction if called is None else self.adapters.get(called, self.base_correction)

    def delta_weight(self, name: str) -> Array:
        """Compute the ΔW of an adapter.

        Parameters
        ----------
        name : str
            Name of the adapter.

        Returns
        -------
        ndarray, shape (out, in)
            ΔW.

        Raises
        ------
        RuntimeError
            If ΔW depends on W and an adapter is merged into W.
        """
        adapter = self.adapters[name]
        if self.merged and adapter.depends_on_weight:
            raise RuntimeError(
                f"the ΔW of {name!r} depends on W, but W contains the merged {self._merged()}; call unmerge_adapter() first"
            )
        return adapter.delta_weight(self.base_layer)

    def check_mergeable(self) -> None:
        """Raise RuntimeError if the base layer is quantised.

        A four-bit weight has only 16 levels, so rounding W + ΔW to these levels would remove ΔW.
        """
        if isinstance(self.base_layer.weight.value, Quantized4bit):
            raise RuntimeError(
                "the base is quantised, and rounding to four bits would remove ΔW; call lora_np.dequantize_model(model) first"
            )

    def merge(self, *names: str) -> None:
        """Add the ΔW of adapters to the weight: W ← W + Σ ΔW.

        A second merge of the same adapters has no effect.

        Parameters
        ----------
        *names : str
            Names of adapters. Names that this layer does not have are ignored.

        Raises
        ------
        RuntimeError
            If other adapters are already merged, or if the base layer is quantised.
        """
        if self.merged and set(names) != set(self.merged):
            raise RuntimeError(
                f"the weights contain the merged {self._merged()}; call unmerge_adapter() before merging {_joined(names)}"
            )
        if self.merged:
            return
        self.check_mergeable()
        if self.tied and any(name in self.adapters for name in names):
            self.base_before_merge, self.base_layer = self.base_layer, copy(self.base_layer)
            self.base_layer.weight = Parameter(self.base_before_merge.weight.value.copy(), trainable=False)
        W = self.base_layer.weight.value
        if any(self.adapters[name].depends_on_weight for name in names if name in self.adapters):
            self.weight_before_merge = W.copy()
        if (delta := self.total_delta(names)) is not None:
            W += delta
        self.merged = names

    def unmerge(self) -> None:
        """Restore the weight: W ← W − Σ ΔW, up to rounding errors.

        If ΔW depends on W, `merge` kept a copy of W, and W is restored exactly from this copy. If the embedding and the
        head share W, `merge` changed a copy of W, so W itself is unchanged.
        """
        W = self.base_layer.weight.value
        if self.base_before_merge is not None:
            shared = self.base_before_merge.weight  # the model may have been moved or converted since the merge
            shared.value = move(shared.value, W).astype(W.dtype, copy=False)
            self.base_layer = self.base_before_merge
        elif self.weight_before_merge is not None:
            W[...] = self.frozen_weight()
        elif (delta := self.total_delta(self.merged)) is not None:
            W -= delta
        self.merged, self.weight_before_merge, self.base_before_merge = (), None, None

    def frozen_weight(self) -> Array:
        """Return the weight without merged adapters. A quantised weight has no merged adapters.

        Returns
        -------
        ndarray, shape (out, in)
            W itself if no adapter is merged. Otherwise W without the merged adapters, up to rounding errors.
        """
        W = self.base_layer.weight.value
        if self.weight_before_merge is not None:
            return move(self.weight_before_merge, W).astype(W.dtype, copy=False)
        return W if (delta := self.total_delta(self.merged)) is None else W - delta

    def total_delta(self, names: tuple[str, ...]) -> Array | None:
        """Return the sum of the ΔW of several adapters.

        Parameters
        ----------
        names : tuple of str
            Names of adapters. Names that this layer does not have are ignored.

        Returns
        -------
        ndarray, shape (out, in), or None
            Σ ΔW, or None if this layer has none of the named adapters.
        """
        deltas = (self.adapters[name].delta_weight(self.base_layer) for name in names if name in self.adapters)
        total = next(deltas, None)
        for delta in deltas:
            total += delta
        return total

    def _merged(self) -> str:
        return ("adapter " if len(self.merged) == 1 else "adapters ") + _joined(self.merged)


def _joined(names: Sequence[str]) -> str:
    """Join names: "'a', 'b' and 'c'"."""
    *first, last = map(repr, names)
    return f"{', '.join(first)} and {last}" if first else last
