"""Adapter files in PEFT's format: PEFT reads adapters that lora_np wrote, and lora_np reads adapters that PEFT wrote.

    adapter/adapter_config.json          the method's configuration, and PEFT's general settings
    adapter/adapter_model.safetensors    the tensors: for LoRA base_model.model.<layer>.lora_A.weight (r, in) and .lora_B.weight

PEFT loads a folder even if the adapter does not fit the model. PEFT ignores an unexpected tensor and only warns about a
missing tensor, so the loaded adapter may have no effect. In both cases, lora_np raises an error that names the tensor,
and the model is unchanged.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backend import to_host
from ..files import load_arrays, save_arrays, write_atomically
from ..nn import Module
from ..nn.patterns import full_match
from ..nn.targets import is_target
from ..quantization import Quantized4bit, dequantize_4bit, quantize_4bit
from .config import storage_dtype
from .placement import adaptable_layers

PREFIX = "base_model.model."  # prefix of every layer name in PEFT's files
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_CONFIG = 1_000_000  # bytes of adapter_config.json; a file with a rank for every layer of a 70B model has 40,000

# Settings of every file. The format is that of this version of PEFT.
COMMON_SETTINGS = {"task_type": "CAUSAL_LM", "inference_mode": True, "peft_version": "0.21.2"}
DISABLED_SETTINGS = {"bias": "none", "fan_in_fan_out": False, "modules_to_save": None}  # features of PEFT that are off
IGNORED_SETTINGS = {
    *COMMON_SETTINGS,
    "peft_type",
    "revision",
    "auto_mapping",
    "fan_in_fan_out",  # PEFT sets it from the class of the layer: True for Conv1D, False for Linear
}  # keys that do not affect the output
NEUTRAL_VALUES = {
    "bias": "none",
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}  # values of features that are off
# Settings of PEFT that change what an adapter computes, and what they do
UNSUPPORTED = {
    "alora_invocation_tokens": "the adapter is applied only to tokens after the invocation tokens",
    "arrow_config": "other adapters, which are not in the file, are mixed for each token",
    "bias": "biases of the base are trained",
    "exclude_modules": "some layers have no adapter",
    "kasa_config": "singular values of the base are removed, and a diagonal matrix is between A and B",
    "layer_replication": "the base gets more layers",
    "layers_pattern": "some layers have no adapter",
    "layers_to_transform": "some layers have no adapter",
    "lora_bias": "B has a bias",
    "megatron_config": "the layers are layers of Megatron",
    "modules_to_save": "whole modules are trained",
    "target_parameters": "parameters instead of layers are adapted",
    "trainable_token_indices": "rows of the embedding are trained",
    "use_bdlora": "A or B is block-diagonal",
}
TRAINING_KEY = "lora_np.training"  # metadata: the fields of the configuration that PEFT does not have
SETTINGS_KEY = "lora_np.config"  # metadata: a copy of some settings of adapter_config.json


# --------------------------------------------------------------------------------------------------------------- writing


def write_adapter(
    folder: str | os.PathLike[str],
    settings: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    recorded_fields: Sequence[str] = (),
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the two files of an adapter. Both new files are complete before one of them replaces an older file.

    The settings whose names are in `recorded_fields` are also written into the weights file. If the process is killed
    between the two replacements, `read_adapter` detects that the files do not belong together. `training` contains the
    configuration fields that PEFT does not have. Raises ValueError if `folder` is a file.
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


def portable_targets(
    targets: str | Collection[str], model: Module, selects: Callable[[str], bool] | None = None
) -> str | list[str]:
    """Return `target_modules` in a form that selects the same layers in PEFT.

    If `targets` is a string, the result selects the layers for which `selects(name)` is true.

    In PEFT a string is always a regular expression for the full name, so "q_proj" matches no layer. PEFT compares the
    string with the names of all modules, and not only with the names of linear layers. If a string selects different
    layers in PEFT and in lora_np, a list of name suffixes replaces the string. If these suffixes also match other
    layers, the list contains full names instead.
    """
    layers = list(adaptable_layers(model))
    if not isinstance(targets, str):
        return list(targets)
    intended = [name for name in layers if (selects(name) if selects else is_target(name, targets))]
    if [name for name in peft_modules(model) if full_match(targets, name)] == intended:
        return targets
    suffixes = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in intended))
    return suffixes if [name for name in layers if is_target(name, suffixes)] == intended else intended


def peft_modules(model: Module) -> list[str]:
    """Return the names that the modules of this model have in the library transformers.

    The names that lora_np also uses come first.
    """
    names = dict.fromkeys(name.removesuffix(".base_layer") for name, _ in model.named_modules())
    activations = [f"{name}.act_fn" for name in names if name.endswith(".mlp")]
    return list(names | dict.fromkeys(["lm_head", "model.layers", "model.rotary_emb", *activations]))


def to_python(number: Any) -> Any:
    """Convert a NumPy scalar to a Python number, for JSON; return other values unchanged."""
    return number.item() if isinstance(number, np.generic) else number


# --------------------------------------------------------------------------------------------------------------- reading


def read_adapter(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Return the settings, the tensors, and the configuration fields that PEFT does not have.

    The tensors have the dtype of the file. Their values are not checked.

    Raises FileNotFoundError if a file is missing, and ValueError if a file is damaged or if the two files come from
    different saves.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        configs = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")]
        below = sorted(path.parent.relative_to(folder).as_posix() for path in configs)
        hint = f"; there are adapters in its subfolders {abbreviate(below)}. Give one of these folders" if below else ""
        raise FileNotFoundError(f"no adapter in {folder}: {folder / CONFIG} is missing{hint}")
    if not (folder / WEIGHTS).is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        convert = f"python -m lora_np convert {folder / 'adapter_model.bin'}"
        hint = f"; adapter_model.bin is a pickle and is not read. Convert it: {convert}" if pickled else ""
        raise FileNotFoundError(f"no adapter in {folder}: {folder / WEIGHTS} is missing{hint}")
    with name_file_in_errors(folder / CONFIG):
        if (size := (folder / CONFIG).stat().st_size) > LARGEST_CONFIG:
            raise ValueError(f"the file has {size:,} bytes; expected at most {LARGEST_CONFIG:,}")
        settings = json_object((folder / CONFIG).read_text(encoding="utf-8"))
    arrays, metadata = load_arrays(folder / WEIGHTS)
    with name_file_in_errors(folder / WEIGHTS):
        record, training = (json_object(metadata.get(key, "{}")) for key in (SETTINGS_KEY, TRAINING_KEY))
    for key, value in record.items():
        if settings.get(key) != value:
            raise ValueError(
                f"{folder / CONFIG}: {key} is {settings.get(key)!r}, but the weights were saved with {value!r}. "
                "Either a save was stopped between the two files, or the configuration was edited. Save the adapter again."
            )
    return settings, arrays, training


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object in `text`. Raises ValueError if `text` contains a JSON value that is not an object."""
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object, got {text:.40}")
    return found


@contextmanager
def name_file_in_errors(file: Path) -> Iterator[None]:
    """Re-raise a TypeError or ValueError from the `with` block as a ValueError that starts with the file name.

    The tensors are compared with the configuration, so an error in the weights file names both files.
    """
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        config = f" (read with {CONFIG})" if file.name == WEIGHTS else ""
        raise ValueError(f"{file}: {error!s:.1000}{config}") from None


def check_targets(targets: Any) -> None:
    """Raise ValueError if the `target_modules` of a file are empty, contain a value that is not a string, or are an
    invalid regular expression.
    """
    if not targets or not isinstance(targets, str | list) or not all(isinstance(entry, str) for entry in targets):
        raise ValueError(f"target_modules is {targets!r}; expected the names of the adapted layers")
    is_target("", targets)


def check_settings(settings: Mapping[str, Any], known: Collection[str], in_peft: bool = True) -> None:
    """Raise ValueError for a setting that changes the output and is not in `known`.

    Settings that turn a feature off are accepted. A setting that is also unknown to PEFT causes a warning, as in PEFT.
    If a newer version of PEFT wrote the file, an unknown setting can be a new feature, so it raises ValueError. For a
    method that PEFT does not have (`in_peft=False`), each unknown setting raises ValueError.
    """
    unknown = []
    for key in sorted(settings.keys() - known - IGNORED_SETTINGS):
        value = settings[key]
        if value is None or value is False or value in ("", [], {}, NEUTRAL_VALUES.get(key)):
            continue
        if key in UNSUPPORTED:
            raise ValueError(
                f"{key} is {value!r}; lora_np does not support this feature of PEFT: {UNSUPPORTED[key]}. Merge the adapter in "
                "PEFT, or train it without this setting"
            )
        if not in_peft:
            raise ValueError(
                f"{key} is {value!r}; lora_np does not support this feature, so the adapter cannot be loaded"
            )
        if is_newer(settings.get("peft_version")):
            raise ValueError(
                f"{key} is {value!r}; the file is from PEFT {settings['peft_version']}, which is newer than "
                f"{COMMON_SETTINGS['peft_version']}, so the setting can be a feature that lora_np does not support"
            )
        unknown.append(key)
    if unknown:
        warnings.warn(f"unknown settings {unknown} are ignored; PEFT ignores them too", stacklevel=2)


def is_newer(version: Any) -> bool:
    """Return True if a version of PEFT, for example "0.22.0", is newer than the version whose format is used here."""
    numbers = [tuple(map(int, re.findall(r"\d{1,9}", str(v))[:3])) for v in (version, COMMON_SETTINGS["peft_version"])]
    return numbers[0] > numbers[1]


def check_arrays(
    arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, hint: str = ""
) -> None:
    """Raise ValueError with the name of a tensor that is missing, unexpected, of a wrong shape or dtype, or not finite.

    `dtype` is the dtype in which the adapter will be stored. A number that is too large for this dtype counts as not
    finite.
    """
    if extra := sorted(arrays.keys() - shapes.keys()):
        raise ValueError(f"unexpected tensor {abbreviate(extra)} for this model and configuration (PEFT ignores it)")
    if missing := sorted(shapes.keys() - arrays.keys()):
        raise ValueError(f"{abbreviate(missing)} is missing{hint} (PEFT only prints a warning)")
    for key, shape in shapes.items():
        x = arrays[key]
        if x.shape != shape:
            raise ValueError(f"{key} has shape {x.shape}; this model and configuration need {shape}")
        if x.dtype.kind != "f":
            raise ValueError(f"{key} has dtype {x.dtype}; expected floating-point numbers")
        if not np.isfinite(x).all():
            raise ValueError(f"{key} contains NaN or infinity; expected finite numbers")
        with np.errstate(over="ignore"):
            if not np.isfinite(x.astype(dtype)).all():
                raise ValueError(
                    f"{key} contains numbers that are too large for {dtype}; load the base in a wider dtype"
                )


def abbreviate(keys: list[str]) -> str:
    """Return a text with the first three names, each of at most 200 characters, and the number of the remaining names."""
    return ", ".join(key[:200] for key in keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def base_weights(model: Module) -> dict[str, Any]:
    """Return a dictionary of the base's weights with PEFT's keys. A tied head has the weight of the embedding."""
    base = {n.replace(".base_layer", ""): p.value for n, p in model.named_parameters() if ".lora_" not in n}
    if (head := getattr(model, "linear_head", None)) is not None:
        base.setdefault("lm_head.weight", head.weight.value)
    return {f"{PREFIX}{name}": value for name, value in base.items()}


def is_base_weight(key: str, array: np.ndarray, base: Mapping[str, Any]) -> bool:
    """Return True if an array of a file is one of the weights `base`.

    If an adapter adapts lm_head, PEFT also saves the frozen weight of lm_head.

    Raises ValueError if the array differs from the weight of this base, because the adapter was then trained on another
    base.
    """
    name = key.replace(".base_layer", "")
    if name not in base:
        return False
    value = base[name]
    fits = value.shape == array.shape
    if fits and isinstance(value, Quantized4bit):  # rounding of the saved copy to 16 bits can change some codes
        stored, given = (
            to_host(dequantize_4bit(x, np.float32))
            for x in (value, quantize_4bit(array, value.block_size, value.quant_type))
        )
        fits = bool(np.linalg.norm(given - stored) <= 0.02 * np.linalg.norm(stored))
    elif fits:
        fits = equal_when_rounded(array, to_host(value))
    if not fits:
        raise ValueError(f"{key} differs from the weight of this base; the adapter was made for another base")
    return True


def equal_when_rounded(x: np.ndarray, y: np.ndarray) -> bool:
    """Return True if x and y are equal after rounding to the narrowest dtype that contains all numbers of x or of y."""
    for dtype in (storage_dtype("bfloat16", x.dtype), np.dtype(np.float16), np.dtype(np.float32), x.dtype, y.dtype):
        with np.errstate(over="ignore"):
            a, b = x.astype(dtype), y.astype(dtype)
        exact = (a.astype(x.dtype) == x).all() or (b.astype(y.dtype) == y).all()
        if exact and (a == b).all():
            return True
    return False
