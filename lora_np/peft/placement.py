"""Inserts adapters into linear layers and removes them: a Linear with adapters is wrapped in an AdaptedLinear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..nn import Linear, Module, replace_module
from .adapted_linear import AdaptedLinear


def adaptable_layers(model: Module) -> dict[str, Linear]:
    """Return a dictionary of all linear layers by name, in the model's order.

    For an AdaptedLinear, the dictionary contains the Linear inside the AdaptedLinear.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            found[path.removesuffix(".base_layer")] = module
    return found


def adapted_layers(model: Module, adapter_name: str | None = None) -> dict[str, AdaptedLinear]:
    """Return a dictionary of the layers with adapters by name, in the model's order.

    If `adapter_name` is given, only layers with this adapter are returned.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    return {n: layer for n, layer in found.items() if adapter_name is None or adapter_name in layer.adapters}


def adapt(model: Module, names: Iterable[str]) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the name and the AdaptedLinear of each named layer. A Linear without adapters is wrapped first."""
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

    A layer that has no adapter left becomes a Linear again.
    """
    for name, layer in adapted_layers(model).items():
        if adapter_name is None:
            layer.adapters.clear()
        else:
            layer.adapters.pop(adapter_name, None)
        if not layer.adapters:
            replace_module(model, name, layer.base_layer)
