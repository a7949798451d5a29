"""Puts adapters into linear layers: a layer becomes an AdaptedLinear with its first adapter, and plain again after its last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..nn import Linear, Module, replace_module
from .adapted_linear import AdaptedLinear


def adaptable_layers(model: Module) -> dict[str, Linear]:
    """name → every Linear that an adapter can go into, in the model's order; of an adapted one, the Linear inside."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            found[path.removesuffix(".base_layer")] = module
    return found


def adapted_layers(model: Module, adapter_name: str | None = None) -> dict[str, AdaptedLinear]:
    """name → every layer that has adapters, or this one, in the model's order."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    return {n: layer for n, layer in found.items() if adapter_name is None or adapter_name in layer.adapters}


def adapt(model: Module, names: Iterable[str]) -> Iterator[tuple[str, AdaptedLinear]]:
    """(name, AdaptedLinear) for each name; a Linear that has no adapter yet gets an AdaptedLinear around it."""
    modules = dict(model.named_modules())
    for name in names:
        layer = modules[name]
        if not isinstance(layer, AdaptedLinear):
            assert isinstance(layer, Linear), f"{name} is no linear layer"
            layer = AdaptedLinear(layer)
            replace_module(model, name, layer)
        yield name, layer


def remove(model: Module, adapter_name: str | None = None) -> None:
    """Take one adapter out of every layer, or all; a layer that has none left is the plain Linear again."""
    for name, layer in adapted_layers(model).items():
        if adapter_name is None:
            layer.adapters.clear()
        else:
            layer.adapters.pop(adapter_name, None)
        if not layer.adapters:
            replace_module(model, name, layer.base_layer)
