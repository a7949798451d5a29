"""Adapters merged: into the weights, or several into a new one, which is judged on its ΔW. A and B alone mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..backend import array_module
from ..nn import Module
from .placement import base_name
from .wrapper import WeightWrapper


def weight_wrappers(model: Module) -> dict[str, list[WeightWrapper]]:
    """name → the wrappers around its weight that can be merged into it, from the outermost to the innermost."""
    found: dict[str, list[WeightWrapper]] = {}
    for path, m in model.named_modules():
        if isinstance(m, WeightWrapper):
            found.setdefault(base_name(path), []).append(m)
    return found


def check_finite(model: Module, adapter_names: Sequence[str]) -> None:
    """Raise ValueError naming the first layer whose weight these adapters would make infinite or NaN. `model` stays."""
    for name, layers in weight_wrappers(model).items():
        weight = layers[0].linear.weight.value
        with np.errstate(over="ignore", invalid="ignore"):
            merged = sum((m.delta_weight(a) for m in layers for a in adapter_names if a in m.configs), start=weight)
        if not array_module(weight).isfinite(merged).all():
            raise ValueError(f"{name}: with {', '.join(adapter_names)} its weight is not finite; nothing was merged")
