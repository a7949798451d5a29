"""Where adapters go: the linear layers of a model by name, wrapped when the first adapter comes and unwrapped after the last.

Where wrappers of two methods meet, LoraLinear is the inner one, beside the weight that it merges into. A layer goes by its name
in the base, however often it is wrapped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from ..backend import Array
from ..nn import EVALUATION, Context, Linear, Module, replace_module
from ..ops import linear_forward
from .lora.layer import LoraLinear

W = TypeVar("W", bound=Module)


def base_name(path: str) -> str:
    """A layer's name in the base: its path in the adapted model, without the steps from wrapper to wrapped."""
    return path.replace(".base_layer", "")


class AdapterLinear(Linear):
    """y = x Wᵀ + b, as part of an adapter: no other adapter goes into it, and it is never quantised.

    What is stored in 16 bits is widened to compute with. Frozen, it keeps no x.
    """

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Any]:
        """x (…, in) → y (…, out)."""
        W, b = (p.value.astype(x.dtype) if p.value.itemsize == 2 else p.value for p in (self.weight, self.bias))
        y, _ = linear_forward(x, W, b)
        return y, (x if self.weight.trainable else None, W, self.bias.trainable)


def adaptable_layers(model: Module) -> dict[str, Linear | LoraLinear]:
    """name → every layer that an adapter can go into, whether one is there already or not, in the model's order."""
    found = {}
    for path, m in model.named_modules():
        if isinstance(m, Linear | LoraLinear) and not isinstance(m, AdapterLinear):
            found.setdefault(base_name(path), m)  # a LoraLinear comes before the Linear inside
    return found


def wrapped_by(model: Module, kind: type[W]) -> dict[str, tuple[str, W]]:
    """name → (path, wrapper) of every layer that a wrapper of this kind is around."""
    return {base_name(path): (path, m) for path, m in model.named_modules() if isinstance(m, kind)}


def lora_layers(model: Module) -> dict[str, LoraLinear]:
    """name → every layer wrapped by LoRA."""
    return {name: layer for name, (_, layer) in wrapped_by(model, LoraLinear).items()}


def wrap(model: Module, names: Iterable[str], kind: type[Any] = LoraLinear) -> Iterator[tuple[str, Any]]:
    """(name, its wrapper of this kind) for each name; a layer that has none yet gets one, around all that is there.

    But LoraLinear goes around the Linear itself, whose weight it may be merged into.
    """
    modules, layers, there = dict(model.named_modules()), adaptable_layers(model), wrapped_by(model, kind)
    paths = {id(m): path for path, m in modules.items()}
    for name in names:
        if name not in there:
            path = paths[id(layers[name])] if kind is LoraLinear else name
            there[name] = path, kind(modules[path])
            replace_module(model, *there[name])
        yield name, there[name][1]


def unwrap(model: Module, names: Iterable[str], kind: type[Module] = LoraLinear) -> None:
    """Put the base layer of each named wrapper back in its place."""
    layers = wrapped_by(model, kind)
    for name in names:
        path, layer = layers[name]
        replace_module(model, path, layer.base_layer)
