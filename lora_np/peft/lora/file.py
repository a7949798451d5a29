"""LoRA's adapter_config.json, as PEFT has it, so that PEFT means the same layers, ranks and α by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...nn import Module
from ...nn.targets import is_target
from ..files import to_python
from ..placement import adaptable_layers
from .config import LoraConfig, T, first_match

# PEFT takes these ways to draw A and B for True once they are trained; the others (pissa, olora, …) changed the base too.
BASE_UNCHANGED = ("eva", "orthogonal")


def portable_patterns(config: LoraConfig, model: Module) -> dict[str, Any]:
    """`rank_pattern` and `alpha_pattern` in a form that means the same in PEFT."""
    layers = [name for name in adaptable_layers(model) if is_target(name, config.target_modules)]
    return {
        "rank_pattern": portable_pattern(config.rank_pattern, layers, config.r),
        "alpha_pattern": portable_pattern(config.alpha_pattern, layers, config.lora_alpha),
    }


def portable_pattern(pattern: Mapping[str, T], layers: list[str], default: T) -> dict[str, T]:
    """`pattern` for a file, which sorts the keys: if sorting changes which key matches a layer, one key per layer."""
    meant = {name: first_match(pattern, name, default) for name in layers}
    kept = {key: to_python(pattern[key]) for key in sorted(pattern)}
    if all(first_match(kept, name, default) == value for name, value in meant.items()):
        return kept
    return {re.escape(name): to_python(value) for name, value in meant.items() if value != default}


def readable_init(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with an `init_lora_weights` that LoraConfig knows. Raises ValueError for factors of another base."""
    init = settings.get("init_lora_weights")
    if init == "pissa":
        raise ValueError(
            "init_lora_weights is 'pissa': these factors belong to what PiSSA left of the base, and not to the base; PEFT "
            "writes them for the base where save_pretrained is given path_initial_model_for_weight_conversion"
        )
    return {**settings, **({"init_lora_weights": True} if init in BASE_UNCHANGED else {})}
