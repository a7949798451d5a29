"""An adapter on disk, as PEFT lays it out, so that either library reads what the other wrote.

    adapter/adapter_config.json          the method's configuration, and the keys by which PEFT knows what it is
    adapter/adapter_model.safetensors    its tensors: for LoRA base_model.model.<layer>.lora_A.weight (r, in) and .lora_B.weight

PEFT also loads a folder that does not fit the model. It ignores an unexpected tensor, and it only warns about a missing
tensor; the adapter can then have no effect. Here each of these raises an error that names the tensor, and the model is
unchanged.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_host
from ..files import load_arrays, save_arrays, write_atomically
from ..nn import Module
from ..nn.targets import is_target
from ..quantization import Quantized4bit, dequantize_4bit, quantize_4bit
from .placement import adaptable_layers

PREFIX = "base_model.model."  # what PEFT puts before every name of the base
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# What each file says, in PEFT's words; and the version whose files these are like.
COMMON_SETTINGS = {"task_type": "CAUSAL_LM", "inference_mode": True, "peft_version": "0.21.2"}
DISABLED_SETTINGS = {"bias": "none", "fan_in_fan_out": False, "modules_to_save": None}  # and not here
IGNORED_SETTINGS = {
    *COMMON_SETTINGS,
    "peft_type",
    "revision",
    "auto_mapping",
}  # keys of a file that say nothing about the numbers
NEUTRAL_VALUES = {"bias": "none", "megatron_core": "megatron.core", "qalora_group_size": 16}  # off, and yet not empty
TRAINING_KEY = "lora_np.training"
SETTINGS_KEY = "lora_np.config"


# --------------------------------------------------------------------------------------------------------------- writing


def write_adapter(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    recorded_fields: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the folder of an adapter. Both files are complete before the first of them takes its place.

    `recorded_fields` keys of the settings are written into the weights' own file too: both files are renamed in place one after the
    other, and a kill between the two must not give the new factors the old α. `training` is what PEFT has no key for. Raises
    ValueError where `folder` is a file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file; an adapter is saved as a folder")
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    record = json.dumps({key: settings[key] for key in recorded_fields}, sort_keys=True)
    metadata = {"format": "pt", SETTINGS_KEY: record, **({TRAINING_KEY: json.dumps(training)} if training else {})}

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")
        save_arrays(folder / WEIGHTS, arrays, metadata)

    write_atomically(folder / CONFIG, write)


def portable_targets(targets: str | Collection[str], model: Module) -> str | list[str]:
    """`target_modules` in a form that means the same layers in PEFT.

    There a string is always a regular expression, "q_proj" being one that matches nothing, and it is held against every
    module, not the linear ones alone. Such a string becomes a list: of suffixes, or of full names where those say too much.
    """
    layers = list(adaptable_layers(model))
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


def to_python(number: Any) -> Any:
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
    with name_file_in_errors(folder / CONFIG):
        settings = json_object((folder / CONFIG).read_text(encoding="utf-8"))
    arrays, metadata = load_arrays(folder / WEIGHTS)
    with name_file_in_errors(folder / WEIGHTS):
        record, training = (json_object(metadata.get(key, "{}")) for key in (SETTINGS_KEY, TRAINING_KEY))
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
def name_file_in_errors(file: Path) -> Iterator[None]:
    """What is wrong inside this block is wrong in `file`: no text, no JSON, not this method, a value out of range."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from None


def check_targets(targets: Any) -> None:
    """Raise ValueError for a file's `target_modules` that name no layers, or are no regular expression."""
    if not targets or not isinstance(targets, str | list) or not all(isinstance(entry, str) for entry in targets):
        raise ValueError(f"target_modules is {targets!r}; expected the names of the layers that the adapter is for")
    is_target("", targets)


def check_settings(settings: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for a key that is not `known`, unless it is off or says nothing about the numbers."""
    for key in sorted(settings.keys() - known - IGNORED_SETTINGS):
        value = settings[key]
        off = value is None or value is False or value in ("", [], {}, NEUTRAL_VALUES.get(key))
        if not off:
            raise ValueError(
                f"{key} is {value!r}, a feature of PEFT that is not here: without it this is another model"
            )


def check_arrays(arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], hint: str = "") -> None:
    """Raise ValueError naming what is missing, unexpected, of a wrong shape or dtype, or not finite."""
    if extra := sorted(arrays.keys() - shapes.keys()):
        raise ValueError(
            f"no place for {abbreviate(extra)} in this model with this configuration; PEFT would ignore it"
        )
    if missing := sorted(shapes.keys() - arrays.keys()):
        raise ValueError(f"{abbreviate(missing)} is missing{hint}; PEFT would only warn, and go on without")
    for key, shape in shapes.items():
        x = arrays[key]
        if x.shape != shape:
            raise ValueError(f"{key} has shape {x.shape}; this model and configuration have {shape} there")
        if x.dtype.kind != "f":
            raise ValueError(f"{key} has dtype {x.dtype}; expected floating-point numbers")
        if not np.isfinite(x).all():
            raise ValueError(f"{key} holds NaN or infinity; expected finite numbers")


def abbreviate(keys: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def is_base_weight(key: str, array: np.ndarray, model: Module) -> bool:
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
