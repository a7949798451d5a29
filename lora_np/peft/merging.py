"""Adapters merged into the weights that they stand beside: W ← W + Σ ΔW, and back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..backend import array_module
from ..nn import Module
from .adapter import AdaptedLinear
from .placement import adapted_layers


def merge(model: Module, names: Iterable[str], safe: bool = False) -> None:
    """Merge these adapters in every layer. Raises before anything has changed: RuntimeError where the base is quantised,
    ValueError, if `safe`, where a weight would not be finite."""
    names, every = tuple(names), adapted_layers(model)
    layers = {name: layer for name, layer in every.items() if any(a.mergeable for a in layer.adapters.values())}
    for layer in layers.values():
        layer.check_mergeable()
    for name, layer in layers.items() if safe else ():
        check_finite(name, layer, names)
    for layer in layers.values():
        layer.merge(*names)


def check_finite(name: str, layer: AdaptedLinear, adapter_names: tuple[str, ...]) -> None:
    """Raise ValueError naming the layer if these adapters would make a number of its weight infinite or NaN."""
    W = layer.base_layer.weight.value
    with np.errstate(over="ignore", invalid="ignore"):
        delta = layer.total_delta(adapter_names)
        finite = array_module(W).isfinite(W if delta is None else W + delta).all()
    if not finite:
        raise ValueError(f"{name}: with {', '.join(adapter_names)} its weight is not finite; nothing was merged")
