"""LoRA's adapter_config.json: settings that select the same layers, ranks and α in PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...nn import Module
from ..files import portable_targets, to_python
from ..placement import adaptable_layers
from .config import LoraConfig, T, first_match


def portable_selection(config: LoraConfig, model: Module) -> dict[str, Any]:
    """Return the settings that select layers, in a form with which PEFT selects the same layers.

    PEFT does not combine `layers_to_transform` with a string in `target_modules`. If another setting selects layers
    too, a string is therefore replaced by the names of the selected layers.
    """
    excluded = config.exclude_modules and portable_targets(config.exclude_modules, model)
    others = {
        "exclude_modules": excluded,
        "layers_to_transform": [to_python(index) for index in config.blocks] or None,
        "layers_pattern": config.layers_pattern and list(config.layers_pattern),
    }
    if isinstance(config.target_modules, str) and any(others.values()):
        others = dict.fromkeys(others)
    return {"target_modules": portable_targets(config.target_modules, model, config.selects), **others}


def portable_patterns(config: LoraConfig, model: Module) -> dict[str, Any]:
    """Return `rank_pattern` and `alpha_pattern` in a form that gives the same r and α in PEFT."""
    layers = [name for name in adaptable_layers(model) if config.selects(name)]
    return {
        "rank_pattern": portable_pattern(config.rank_pattern, layers, config.r),
        "alpha_pattern": portable_pattern(config.alpha_pattern, layers, config.lora_alpha),
    }


def portable_pattern(pattern: Mapping[str, T], layers: list[str], default: T) -> dict[str, T]:
    """Return `pattern` in a form that can be saved in a file.

    The keys in a file are sorted. If sorting changes the first match of a layer, the returned pattern has one key per
    layer.
    """
    intended = {name: first_match(pattern, name, default) for name in layers}
    kept = {key: to_python(pattern[key]) for key in sorted(pattern)}
    if all(first_match(kept, name, default) == value for name, value in intended.items()):
        return kept
    return {re.escape(name): to_python(value) for name, value in intended.items() if value != default}
