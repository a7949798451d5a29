"""A LoRA adapter on disk, under PEFT's names: its configuration, and its factors by layer."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from ...backend import to_host
from ...nn import Module
from ...nn.targets import available, is_target
from ...quantization import Quantized4bit, dequantize_4bit, quantize_4bit
from ..files import KIND, PREFIX, WRITTEN_OFF, T, check_targets, plain, portable_targets, refuse_others, some
from ..placement import adaptable_layers
from .config import LoraConfig, first_match

Factors = dict[str, tuple[np.ndarray, ...]]  # layer → A (r, in), B (out, r), with DoRA m (out,), on the host
TENSORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")  # what it calls them, in the order of Factors
# Without these the factors mean something else.
DECISIVE = ("target_modules", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora")
OWN = (
    "freeze_A",
    "dora_norm",
)  # of no account to the numbers, and nothing that PEFT has: kept beside the weights alone

# PEFT takes these ways to draw A and B for True once they are trained; the others (pissa, olora, …) changed the base too.
BASE_UNCHANGED = ("eva", "orthogonal")


def config_to_dict(config: LoraConfig, model: Module) -> dict[str, Any]:
    """As PEFT's adapter_config.json has it, and so that PEFT means the same layers, ranks and α of `model` by it."""
    targets = portable_targets(config, model)
    layers = [name for name in adaptable_layers(model) if is_target(name, config.target_modules)]
    return {
        **KIND,
        **WRITTEN_OFF,
        "base_model_name_or_path": config.base_model_name_or_path and os.fspath(config.base_model_name_or_path),
        "target_modules": targets,
        "r": int(config.r),
        "lora_alpha": plain(config.lora_alpha),
        "lora_dropout": plain(config.lora_dropout),
        "use_rslora": bool(config.use_rslora),
        "use_dora": bool(config.use_dora),
        "init_lora_weights": config.init_lora_weights,
        "rank_pattern": portable_pattern(config.rank_pattern, layers, config.r),
        "alpha_pattern": portable_pattern(config.alpha_pattern, layers, config.lora_alpha),
    }


def portable_pattern(pattern: Mapping[str, T], layers: list[str], default: T) -> dict[str, T]:
    """`pattern` so that it survives a file, whose keys are sorted: where the order of two keys decided, one key a layer."""
    meant = {name: first_match(pattern, name, default) for name in layers}
    kept = {key: plain(pattern[key]) for key in sorted(pattern)}
    if all(first_match(kept, name, default) == value for name, value in meant.items()):
        return kept
    return {re.escape(name): plain(value) for name, value in meant.items() if value != default}


def config_from_dict(settings: Mapping[str, Any]) -> LoraConfig:
    """From an adapter_config.json's content. Raises ValueError or TypeError naming what is not here or out of range."""
    known = {field.name for field in fields(LoraConfig)}
    refuse_others(settings, known)
    given = {key: settings[key] for key in known if settings.get(key) is not None}
    check_targets(given.get("target_modules"))
    if given.get("init_lora_weights") == "pissa":
        raise ValueError(
            "init_lora_weights is 'pissa': these factors belong to what PiSSA left of the base, and not to the base; PEFT "
            "writes them for the base where save_pretrained is given path_initial_model_for_weight_conversion"
        )
    if given.get("init_lora_weights") in BASE_UNCHANGED:
        given["init_lora_weights"] = True
    return LoraConfig(**given)


def place(arrays: Mapping[str, np.ndarray], config: LoraConfig, model: Module) -> Factors:
    """The factors by layer, once every array is known to have its place and every place its array, of the right shape."""
    adaptable = adaptable_layers(model)
    layers = {name: layer for name, layer in adaptable.items() if is_target(name, config.target_modules)}
    if not layers:
        raise ValueError(f"{config.target_modules!r} matches no linear layer; {available(list(adaptable))}")
    expected = {}
    for name, layer in layers.items():
        r, out = config.for_layer(name).r, layer.out_features
        shapes = [(r, layer.in_features), (out, r)] + [(out,)] * config.use_dora
        expected |= {f"{PREFIX}{name}.{tensor}": shape for tensor, shape in zip(TENSORS, shapes, strict=False)}
    extra = sorted(key for key in arrays.keys() - expected.keys() if not is_of_the_base(key, arrays[key], model))
    missing = sorted(expected.keys() - arrays.keys())
    if extra:
        raise ValueError(
            f"no place for {some(extra)} in this model with target_modules {config.target_modules!r}; PEFT would ignore it"
        )
    if missing:
        raise ValueError(f"{some(missing)} is missing; PEFT would only warn, and go on without")
    for key, shape in expected.items():
        if arrays[key].shape != shape:
            raise ValueError(f"{key} has shape {arrays[key].shape}; this model and configuration have {shape} there")
        if arrays[key].dtype.kind != "f":
            raise ValueError(f"{key} has dtype {arrays[key].dtype}; expected floating-point numbers")
    tensors = TENSORS if config.use_dora else TENSORS[:2]
    return {name: tuple(arrays[f"{PREFIX}{name}.{tensor}"] for tensor in tensors) for name in layers}


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
