"""LoRA's adapter_config.json, as PEFT has it, so that PEFT means the same layers, ranks and α by it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from ...backend import to_host
from ...nn import Module
from ...nn.targets import is_target
from ...quantization import Quantized4bit, dequantize_4bit, quantize_4bit
from ..files import PREFIX, plain
from ..placement import adaptable_layers
from .config import LoraConfig, first_match

T = TypeVar("T")

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
    """`pattern` so that it survives a file, whose keys are sorted: where the order of two keys decided, one key per layer."""
    meant = {name: first_match(pattern, name, default) for name in layers}
    kept = {key: plain(pattern[key]) for key in sorted(pattern)}
    if all(first_match(kept, name, default) == value for name, value in meant.items()):
        return kept
    return {re.escape(name): plain(value) for name, value in meant.items() if value != default}


def readable_init(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with an `init_lora_weights` that LoraConfig knows. Raises ValueError for factors of another base."""
    init = settings.get("init_lora_weights")
    if init == "pissa":
        raise ValueError(
            "init_lora_weights is 'pissa': these factors belong to what PiSSA left of the base, and not to the base; PEFT "
            "writes them for the base where save_pretrained is given path_initial_model_for_weight_conversion"
        )
    return {**settings, **({"init_lora_weights": True} if init in BASE_UNCHANGED else {})}


def is_of_the_base(key: str, array: np.ndarray, model: Module) -> bool:
    """Whether an array is a weight of the base. PEFT saves the head's beside an adapter for the head, though it is frozen.

    Raises ValueError where its numbers are not this base's: the adapter was then trained on another one.
    """
    name = key.removeprefix(PREFIX).replace(".base_layer", "")
    base = {n.replace(".base_layer", ""): p.value for n, p in model.named_parameters() if ".lora_" not in n}
    if name not in base:
        return False
    value = base[name]
    fits = value.shape == array.shape
    if fits and isinstance(value, Quantized4bit):  # of 16 bits another copy may have another code here and there
        stored, given = (
            to_host(dequantize_4bit(x, np.float32))
            for x in (value, quantize_4bit(array, value.block_size, value.quant_type))
        )
        fits = bool(np.linalg.norm(given - stored) <= 0.02 * np.linalg.norm(stored))
    elif fits:
        fits = bool((to_host(value).astype(array.dtype) == array).all())
    if not fits:
        raise ValueError(f"{key} is not the weight that this base has there: the adapter was made for another base")
    return True
