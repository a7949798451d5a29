"""An adapter on disk, as PEFT lays it out, so that either library reads what the other wrote.

    adapter/adapter_config.json          the method's configuration, and the keys by which PEFT knows what it is
    adapter/adapter_model.safetensors    its tensors: for LoRA base_model.model.<layer>.lora_A.weight (r, in) and .lora_B.weight

PEFT takes a folder that does not fit for one that does: of a tensor with no place it says nothing, and for one that is
missing it warns; the model then answers as the base. Here each is an error that names it, and nothing has changed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..backend import to_host
from ..files import load_arrays, save_arrays, write_atomically
from ..nn import Module
from ..quantization import Quantized4bit, dequantize_4bit, quantize_4bit
from ..targets import available, is_target
from .layers import adaptable_layers
from .lora import LoraConfig, first_match

T = TypeVar("T")
Factors = dict[str, tuple[np.ndarray, ...]]  # layer → A (r, in), B (out, r), with DoRA m (out,), on the host

PREFIX = "base_model.model."  # what PEFT puts before every name of the base
TENSORS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")  # what it calls them, in the order of Factors
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What LoRA's file is, in PEFT's words; and the version whose files these are like.
KIND = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "peft_version": "0.21.2"}
WRITTEN_OFF = {"bias": "none", "fan_in_fan_out": False, "modules_to_save": None}  # and not here
NO_MATTER = {*KIND, "revision", "auto_mapping"}  # keys of a file that say nothing about the numbers
OFF = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}  # off, and yet not empty
# Without these the factors mean something else.
DECISIVE = ("target_modules", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora")
OWN = (
    "freeze_A",
    "dora_norm",
)  # of no account to the numbers, and nothing that PEFT has: kept beside the weights alone
TRAINING = "lora_np.training"
RECORD = "lora_np.config"

# PEFT takes these ways to draw A and B for True once they are trained; the others (pissa, olora, …) changed the base too.
BASE_UNCHANGED = ("eva", "orthogonal")


# --------------------------------------------------------------------------------------------------------------- writing


def write_adapter(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    decisive: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder of an adapter. Both files are complete before the first of them takes its place.

    `decisive` keys of the settings are written into the weights' own file too: both files are renamed in place one after the
    other, and a kill between the two must not give the new factors the old α. `training` is what PEFT has no key for. Raises
    ValueError where `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; an adapter is saved as a folder")
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    record = json.dumps({key: settings[key] for key in decisive}, sort_keys=True)
    metadata = {"format": "pt", RECORD: record, **({TRAINING: json.dumps(training)} if training else {})}

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")
        save_arrays(folder / WEIGHTS, arrays, metadata)

    write_atomically(folder / CONFIG, write)


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


def portable_targets(config: LoraConfig, model: Module) -> str | list[str]:
    """`target_modules` in a form that means the same layers in PEFT.

    There a string is always a regular expression, "q_proj" being one that matches nothing, and it is held against every
    module, not the linear ones alone. Such a string becomes a list: of suffixes, or of full names where those say too much.
    """
    targets, layers = config.target_modules, list(adaptable_layers(model))
    if not isinstance(targets, str):
        return list(targets)
    meant = [name for name in layers if is_target(name, targets)]
    if [name for name in peft_modules(model) if re.fullmatch(targets, name)] == meant:
        return targets
    suffixes = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in meant))
    return suffixes if [name for name in layers if is_target(name, suffixes)] == meant else meant


def peft_modules(model: Module) -> list[str]:
    """The names of the modules that PEFT sees where transformers built the model, those first that are modules here too."""
    names = dict.fromkeys(name.removesuffix(".base_layer") for name, _ in model.named_modules())
    activations = [f"{name}.act_fn" for name in names if name.endswith(".mlp")]
    return list(names | dict.fromkeys(["lm_head", "model.layers", "model.rotary_emb", *activations]))


def portable_pattern(pattern: Mapping[str, T], layers: list[str], default: T) -> dict[str, T]:
    """`pattern` so that it survives a file, whose keys are sorted: where the order of two keys decided, one key a layer."""
    meant = {name: first_match(pattern, name, default) for name in layers}
    kept = {key: plain(pattern[key]) for key in sorted(pattern)}
    if all(first_match(kept, name, default) == value for name, value in meant.items()):
        return kept
    return {re.escape(name): plain(value) for name, value in meant.items() if value != default}


def plain(number: Any) -> Any:
    """A number as JSON has it: NumPy's become Python's."""
    return number.item() if isinstance(number, np.generic) else number


# --------------------------------------------------------------------------------------------------------------- reading


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """The settings and the tensors of the adapter in `folder`, each in the file's own dtype, and what PEFT has no key for.

    What they say is not looked at.

    Raises FileNotFoundError where a file is missing; ValueError naming the file for damage, or two files of two saves.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"no adapter in {folder}: {folder / CONFIG} is not there")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        hint = "; adapter_model.bin is a pickle, which is never read here: save it as safetensors" if pickled else ""
        raise FileNotFoundError(f"no adapter in {folder}: {folder / WEIGHTS} is not there{hint}")
    with naming(folder / CONFIG):
        settings = json_object((folder / CONFIG).read_text(encoding="utf-8"))
    arrays, metadata = load_arrays(folder / WEIGHTS)
    with naming(folder / WEIGHTS):
        record, training = (json_object(metadata.get(key, "{}")) for key in (RECORD, TRAINING))
    for key, value in record.items():
        if settings.get(key) != value:
            raise ValueError(
                f"{folder / CONFIG}: {key} is {settings.get(key)!r}, and the weights beside it were saved with {value!r}. "
                "Either a save was stopped between the two files, or the configuration was edited: save it again."
            )
    return settings, arrays, training


def json_object(text: str) -> dict[str, Any]:
    """What the text says. Raises ValueError where that is no object."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {text:.40}")
    return found


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """What is wrong inside this block is wrong in `file`: no text, no JSON, not this method, a value out of range."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


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


def check_targets(targets: Any) -> None:
    """Raise ValueError for a file's `target_modules` that name no layers, or are no regular expression."""
    if not targets or not isinstance(targets, str | list) or not all(isinstance(entry, str) for entry in targets):
        raise ValueError(f"target_modules is {targets!r}; expected the names of the layers that the adapter is for")
    is_target("", targets)


def refuse_others(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for a key that is not `known`, unless it is off or says nothing about the numbers."""
    for key in sorted(settings.keys() - known - NO_MATTER):
        value = settings[key]
        off = value is None or value is False or value in ("", [], {}, OFF.get(key))
        if not off:
            raise ValueError(
                f"{key} is {value!r}, a feature of PEFT that is not here: without it this is another model"
            )


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


def some(keys: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
