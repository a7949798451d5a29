"""Adapters merged: into the weights, or several into a new one, which is judged on its ΔW. A and B alone mean nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import array_module, to_host
from ..nn import Module
from .combination import Combination, Part, combine, product_norm, side_by_side
from .folder import Factors, portable_targets
from .layers import base_name, lora_layers
from .lora import LoraConfig
from .wrapper import WeightWrapper


@dataclass(frozen=True)
class MergeReport:
    """How far a new adapter is from what was asked for: ‖ΔW − Σ wᵢΔWᵢ‖ / ‖Σ wᵢΔWᵢ‖ in the Frobenius norm.

    errors: layer → its own error. error: that of all layers together. ranks: layer → rank.
    """

    combination_type: str
    errors: dict[str, float]
    error: float
    ranks: dict[str, int]

    def __str__(self) -> str:
        worst = max(self.errors, key=lambda name: self.errors[name])
        ranks = " to ".join(str(r) for r in sorted({min(self.ranks.values()), max(self.ranks.values())}))
        return (
            f"{self.combination_type}: {len(self.errors)} layers of rank {ranks}, ΔW off by {self.error:.2g} of "
            f"‖Σ wᵢΔWᵢ‖ (at worst {self.errors[worst]:.2g}, in {worst})"
        )


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


def combine_adapters(
    model: Module,
    configs: Mapping[str, LoraConfig],
    weights: Sequence[tuple[str, float]],
    how: Combination,
    dtype: Any = None,
) -> tuple[LoraConfig, Factors, MergeReport]:
    """The configuration, the factors and the report of Σ w·ΔW over (adapter, w), in each layer over those that it has.

    Computed on the host in float64, stored in the base's dtype or in `dtype`. Raises ValueError naming the layer where ranks
    differ and may not. `model` stays as it is.
    """
    wrapped, layers, factors = lora_layers(model), {}, {}
    for name, layer in wrapped.items():
        parts = [
            Part(
                w, layer.configs[a].scaling, *(to_host(x[a].value).astype(float) for x in (layer.lora_A, layer.lora_B))
            )
            for a, w in weights
            if a in layer.lora_A
        ]
        if parts:
            layers[name] = parts
    rng = np.random.default_rng(how.seed)
    r = how.svd_rank or max(part.A.shape[0] for parts in layers.values() for part in parts)
    for name, parts in layers.items():
        stored = dtype or wrapped[name].base_layer.weight.value.dtype
        try:
            factors[name] = tuple(x.astype(stored) for x in combine(parts, how, r, rng))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    config = config_for(model, [configs[a] for a, _ in weights], {name: len(A) for name, (A, _) in factors.items()})
    return config, factors, judge(layers, factors, how)


def config_for(model: Module, sources: Sequence[LoraConfig], ranks: Mapping[str, int]) -> LoraConfig:
    """α = r in each layer, so s = 1: not rsLoRA, whatever the sources were, for there s would be √r."""
    targets = [portable_targets(config, model) for config in sources]
    if all(isinstance(entries, list) for entries in targets):
        union = list(dict.fromkeys(entry for entries in targets for entry in entries))
    else:
        union = list(ranks)  # an expression has no list to be joined to
    r = max(ranks.values())
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != r}
    base = sources[0].base_model_name_or_path
    return LoraConfig(
        r, r, union, sources[0].lora_dropout, rank_pattern=others, alpha_pattern=others, base_model_name_or_path=base
    )


def judge(layers: Mapping[str, Sequence[Part]], factors: Factors, how: Combination) -> MergeReport:
    """The report on `factors` as they are stored, rounding included."""
    off, wanted = {}, {}
    for name, parts in layers.items():
        A, B = (x.astype(float) for x in factors[name])
        wanted[name] = product_norm(*side_by_side(parts))
        off[name] = product_norm(*side_by_side([*parts, Part(-1.0, 1.0, A, B)]))
    return MergeReport(
        how.combination_type,
        {name: _ratio(off[name], wanted[name]) for name in layers},
        _ratio(math.hypot(*off.values()), math.hypot(*wanted.values())),
        {name: A.shape[0] for name, (A, _) in factors.items()},
    )


def _ratio(error: float, size: float) -> float:
    """error / size, where nothing was asked for 0 if nothing came."""
    return error / size if size else math.inf if error else 0.0
