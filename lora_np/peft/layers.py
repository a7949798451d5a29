"""Where adapters go: the linear layers of a model by name, wrapped when the first adapter comes and unwrapped after the last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..nn import Linear, Module, replace_module
from .lora import LoraLinear


def base_name(path: str) -> str:
    """A layer's name in the base: its path in the adapted model, without the steps from wrapper to wrapped."""
    return path.replace(".base_layer", "")


def adaptable_layers(model: Module) -> dict[str, Linear | LoraLinear]:
    """name → every layer that an adapter can go into, whether one is there already or not, in the model's order."""
    found = {}
    for path, m in model.named_modules():
        if isinstance(m, Linear | LoraLinear):
            found.setdefault(base_name(path), m)  # a LoraLinear comes before the Linear inside
    return found


def lora_layers(model: Module) -> dict[str, LoraLinear]:
    """name → every wrapped layer."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def wrap(model: Module, names: Iterable[str]) -> Iterator[tuple[str, LoraLinear]]:
    """(name, its LoraLinear) for each name; a Linear that has none yet gets one in its place, around itself."""
    layers = adaptable_layers(model)
    for name in names:
        layer = layers[name]
        if not isinstance(layer, LoraLinear):
            layer = LoraLinear(layer)
            replace_module(model, name, layer)
        yield name, layer


def unwrap(model: Module, names: Iterable[str]) -> None:
    """Put each named LoraLinear's base layer back in its place."""
    layers = lora_layers(model)
    for name in names:
        replace_module(model, name, layers[name].base_layer)
