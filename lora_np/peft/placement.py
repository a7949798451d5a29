"""Inserts adapters into linear layers and removes them: a Linear with adapters is wrapped in an AdaptedLinear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..nn import Linear, Module, replace_module
from .adapted_linear import AdaptedLinear


def adaptable_layers(model: Module) -> dict[str, Linear]:
    """Return all linear layers by name, in the model's order; for an adapted layer, the Linear inside it."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            found[path.removesuffix(".base_layer")] = module
    return found


def adapted_layers(model: Module, adapter_name: str | None = None) -> dict[str, AdaptedLinear]:
    """Return the layers with adapters, or with the adapter `adapter_name`, by name, in the model's order."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    return {n: layer for n, layer in found.items() if adapter_name is None or adapter_name in layer.adapters}


def adapt(model: Module, names: Iterable[str]) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield (name, AdaptedLinear) for each name; a Linear without adapters is wrapped first."""
    modules = dict(model.named_modules())
    for name in names:
        layer = modules[name]
        if not isinstance(layer, AdaptedLinear):
            assert isinstance(layer, Linear), f"{name} is not a linear layer"
            layer = AdaptedLinear(layer)
            replace_module(model, name, layer)
        yield name, layer


def remove(model: Module, adapter_name: str | None = None) -> None:
    """Remove one adapter, or all adapters, from every layer.

    A layer without adapters becomes its Linear again.
    """
    for name, layer in adapted_layers(model).items():
        if adapter_name is None:
            layer.adapters.clear()
        else:
            layer.adapters.pop(adapter_name, None)
        if not layer.adapters:
            replace_module(model, name, layer.base_layer)
