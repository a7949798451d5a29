"""LoRA's adapter_config.json: settings that select the same layers, ranks and α in PEFT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...nn import Module
from ...nn.targets import is_target
from ..files import to_python
from ..placement import adaptable_layers
from .config import LoraConfig, T, first_match

# Initialisations of PEFT that draw only A and B. Others (pissa, olora, …) also change the base.
BASE_UNCHANGED = ("eva", "orthogonal")


def portable_patterns(config: LoraConfig, model: Module) -> dict[str, Any]:
    """Return `rank_pattern` and `alpha_pattern` in a form that gives the same r and α in PEFT."""
    layers = [name for name in adaptable_layers(model) if is_target(name, config.target_modules)]
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


def readable_init(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with a value of `init_lora_weights` that LoraConfig accepts.

    Raises ValueError if the factors belong to a base that PiSSA changed.
    """
    init = settings.get("init_lora_weights")
    if init == "pissa":
        raise ValueError(
            "init_lora_weights is 'pissa': this adapter fits only the base that PiSSA changed, and not the original "
            "base. Save it again in PEFT with save_pretrained(path_initial_model_for_weight_conversion=…)"
        )
    return {**settings, **({"init_lora_weights": True} if init in BASE_UNCHANGED else {})}
