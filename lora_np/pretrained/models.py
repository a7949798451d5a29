"""From files to a Transformer and back: a Hugging Face folder, or a GGUF file of the Llama family; and the tokenizer beside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array, device_module, move, to_host
from ..files import (
    ByteTokenizer,
    StoredArrays,
    Tokenizer,
    open_folder,
    open_gguf,
    read_json,
    save_arrays,
    tokenizer_from_folder,
    tokenizer_from_gguf,
    write_atomically,
)
from ..nn import Linear, replace_module
from ..ops.checks import check_shape
from ..quantization import Quantized4bit, QuantizedLinear
from ..transformer import Transformer, TransformerConfig
from . import bitsandbytes, llama_gguf
from .download import MODELS, fetched

EMBEDDED = Path(__file__).parents[1] / "assets"  # the models that come with the package: "tiny"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_model(name: str | os.PathLike[str], dtype: DTypeLike = np.float32, device: str = "auto") -> Transformer:
    """The model `name`: "tiny", the base that comes with the package; "smollm2-135m", after `python -m lora_np fetch`; the
    path of a Hugging Face folder; or that of a GGUF file.

    The weights come from disk one array at a time, converted to `dtype`, so that the model is in memory once.
    Every parameter starts trainable: `train` it as it is for full fine-tuning, or give it to `get_peft_model`. Weights that
    bitsandbytes or `save_model` has quantised to 4 bits stay so, and frozen.
    `device` is "cupy", "numpy", or "auto": the GPU when one answers, unless LORA_NP_DEVICE says otherwise.

    Raises FileNotFoundError naming what exists, ValueError for a damaged file or another architecture, KeyError for
    weights that do not fit the configuration, RuntimeError where cupy was asked for and no GPU answers.
    """
    like = device_module(device).empty(0)  # raises before anything is read
    path = _locate(name)
    config = None if path.is_file() else _read_config(path / "config.json")
    with _open_weights(path) as stored:
        try:
            if config is None:
                config = llama_gguf.config_from(stored)
                stored = llama_gguf.as_huggingface(stored, config)
            stored, quantized = bitsandbytes.take_quantized(stored)
            if not quantized and not path.is_file() and "quantization_config" in read_json(path / "config.json"):
                raise ValueError("its config.json has a quantization_config, and none of its weights is quantised")
            return _fill(config, _without_doubles(stored, config), quantized, dtype, like)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        except KeyError as error:
            raise KeyError(f"{path}: {error.args[0]}") from None


def save_model(model: Transformer, folder: str | os.PathLike[str]) -> None:
    """Write config.json and model.safetensors, each whole or not at all; what is quantised, as bitsandbytes has it.

    Raises TypeError for a model with adapters.
    """
    if not isinstance(model, Transformer):
        raise TypeError(
            f"save_model takes a Transformer, got {type(model).__name__}; merge_and_unload() an adapter first"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, x in model.state_dict().items():
        if ".base_layer." in name:
            raise TypeError(
                "this Transformer carries an adapter: save it before get_peft_model, or merge_and_unload() first"
            )
        arrays |= bitsandbytes.to_arrays(name, x) if isinstance(x, Quantized4bit) else {name: to_host(x)}
    save_arrays(Path(folder) / "model.safetensors", arrays, {"format": "pt"})
    settings = model.config.to_dict()
    if quantization := bitsandbytes.quantization_config(model):
        settings["quantization_config"] = quantization
    text = json.dumps(settings, indent=2) + "\n"
    write_atomically(Path(folder) / "config.json", lambda path: path.write_text(text, encoding="utf-8", newline="\n"))


# Set from here, because transformer/ knows nothing of files and imports nothing above it.
Transformer.from_pretrained = staticmethod(load_model)
Transformer.save_pretrained = save_model  # a method, as its first argument is the model


def load_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of the model `name`, which is as in `load_model`.

    A folder without tokenizer.json whose vocabulary is the 256 bytes, as "tiny", has a ByteTokenizer.
    Raises FileNotFoundError naming what is not there, ValueError for a damaged file or a kind of tokenizer that is not here.
    """
    path = _locate(name)
    if path.is_dir():
        by_bytes = _read_config(path / "config.json").vocab_size == ByteTokenizer.vocab_size
        return ByteTokenizer() if by_bytes and not (path / "tokenizer.json").exists() else tokenizer_from_folder(path)
    with open_gguf(path) as stored:
        try:
            return tokenizer_from_gguf(stored.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


# ------------------------------------------------------------------------------------------------------------- the files


def _locate(name: str | os.PathLike[str]) -> Path:
    """The folder or the file that `name` means. Raises FileNotFoundError naming what exists."""
    if name in MODELS:
        return fetched(name)
    folder = EMBEDDED / name
    path = folder if (folder / "config.json").is_file() else Path(name)
    if path.is_file() or (path / "config.json").is_file():
        return path
    embedded = sorted(p.parent.name for p in EMBEDDED.glob("*/config.json"))
    what = path if path.suffix == ".gguf" else path / "config.json"
    raise FileNotFoundError(
        f"no model {str(name)!r}: the package has {embedded}, `python -m lora_np fetch` gets {sorted(MODELS)}, "
        f"and {what} is not there"
    )


def _read_config(path: Path) -> TransformerConfig:
    settings = read_json(path)
    try:
        if "quantization_config" in settings:
            bitsandbytes.check_config(settings["quantization_config"])
        for name in (f.name for f in fields(TransformerConfig) if f.type == "int"):
            if isinstance(settings.get(name), float):  # 576.0 makes no shape
                raise ValueError(f"{name} = {settings[name]}; expected a whole number")
        return TransformerConfig.from_dict(settings)
    except ValueError as error:  # another architecture, a size that is missing or impossible
        raise ValueError(f"{path}: {error}") from None


@contextmanager
def _open_weights(path: Path) -> Iterator[StoredArrays]:
    with open_gguf(path) if path.is_file() else open_folder(path) as stored:
        yield stored


# ----------------------------------------------------------------------------------------------------------- the weights


def _without_doubles(stored: StoredArrays, config: TransformerConfig) -> StoredArrays:
    """Leave out what some files carry although the model computes it, or has it under another name."""
    shapes = {name: s for name, s in stored.shapes.items() if not name.endswith(".rotary_emb.inv_freq")}
    if config.tie_word_embeddings and HEAD in shapes and EMBEDDING in shapes:
        if not np.array_equal(stored[HEAD], stored[EMBEDDING]):
            raise ValueError(f"tie_word_embeddings is true, but {HEAD} is not {EMBEDDING}")
        del shapes[HEAD]
    return StoredArrays(shapes, stored.read, stored.metadata)


def _fill(
    config: TransformerConfig, stored: StoredArrays, quantized: dict[str, Quantized4bit], dtype: DTypeLike, like: Array
) -> Transformer:
    """The model, with each parameter from `quantized` or read from `stored`, converted to `dtype`, and put where `like` lives.

    Names and shapes are held against the file's before the model takes memory: its size is the file's, never the claim's.
    """
    if EMBEDDING in stored.shapes:
        _check(EMBEDDING, stored.shapes, config.vocab_size, config.hidden_size)
    arrays = len(stored) + len(quantized)
    if config.num_hidden_layers > arrays:
        raise ValueError(f"num_hidden_layers = {config.num_hidden_layers}, with {arrays} arrays for all of them")
    try:
        model = Transformer.empty(config, dtype)
    except ValueError:  # NumPy's, which does not say which
        raise ValueError(f"no array can have a size of this configuration: {config}") from None
    parameters = dict(model.named_parameters())
    there = stored.keys() | quantized.keys()
    missing, unknown = parameters.keys() - there, there - parameters.keys()
    if missing or unknown:
        raise KeyError(f"it does not fit its configuration: missing {_some(missing)}; with no place {_some(unknown)}")
    shapes = stored.shapes | {name: weight.shape for name, weight in quantized.items()}
    for name, p in parameters.items():
        _check(name, shapes, *p.value.shape)
    linear = {f"{name}.weight": name for name, m in model.named_modules() if isinstance(m, Linear)}
    if others := quantized.keys() - linear.keys():
        raise ValueError(f"{_some(others)} is quantised; only the weights of linear layers can be")
    for name, weight in quantized.items():
        replace_module(model, linear[name], QuantizedLinear(weight.astype(dtype).move_to(like)))
        del parameters[name]
    for name, p in parameters.items():
        x = stored[name]
        if x.dtype not in (np.float16, np.float32, np.float64):
            raise ValueError(f"{name} has dtype {x.dtype}; expected numbers with a fraction")
        if not np.isfinite(x).all():
            raise ValueError(
                f"{name} holds NaN or infinity: the file is damaged, or the training that wrote it had failed"
            )
        p.value = move(x.astype(dtype, copy=False), like)
    return model


def _check(name: str, shapes: Mapping[str, tuple[int, ...]], *expected: int) -> None:
    check_shape(name, np.broadcast_to(np.float32(0), shapes[name]), *expected)


def _some(names: set[str]) -> str:
    """The first few of them, for a reader."""
    return f"{sorted(names)[:4]}{f' and {len(names) - 4} more' if len(names) > 4 else ''}" if names else "none"
