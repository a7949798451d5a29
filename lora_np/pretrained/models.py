"""Load a Transformer and its tokenizer from a Hugging Face folder or a GGUF file, and save a Transformer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array, array_module, device_module, move, to_host
from ..files import (
    ByteTokenizer,
    StoredArrays,
    Tokenizer,
    check_finite,
    open_folder,
    open_gguf,
    read_json,
    save_arrays,
    tokenizer_from_folder,
    tokenizer_from_gguf,
    write_text,
)
from ..files.huggingface import INDEX, WEIGHTS
from ..files.stop_tokens import stop_tokens_from_folder
from ..nn import Linear, replace_module
from ..nn.targets import OUTPUT_HEAD
from ..ops.checks import check_shape
from ..quantization import Quantized4bit, QuantizedLinear, quantize_4bit
from ..quantization.four_bits import check_settings
from ..transformer import Transformer, TransformerConfig
from . import bitsandbytes, gpt2_files, llama_gguf
from .download import MODELS, fetched

ASSETS = Path(__file__).parents[1] / "assets"  # the models in the package: "tiny"
HEAD = "lm_head.weight"
BLOCK_SIZE = 64  # weights that share an absmax, as in quantize_model
LOADED_DTYPES = (np.float16, np.float32, np.float64)


def load_model(
    name: str | os.PathLike[str], dtype: DTypeLike = np.float32, device: str = "auto", quantize: str | None = None
) -> Transformer:
    """Load a model of a supported family from the package, a Hugging Face folder or a GGUF file.

    Weights that the file stores in 4 bits stay in 4 bits and are frozen. All other parameters are trainable. The weights
    are read one array at a time, so loading needs no second copy of the model in memory.

    Parameters
    ----------
    name : str or PathLike
        One of: "tiny", the base model in the package; "smollm2-135m", if `python -m lora_np fetch` has downloaded it; the
        path of a Hugging Face folder; the path of a .gguf file.
    dtype : dtype
        Type of the weights, such as float32 (the default) or float64.
    device : {"auto", "numpy", "cupy"}
        "numpy" selects the CPU, and "cupy" selects the GPU. "auto" follows the environment variable LORA_NP_DEVICE if
        it is set. If not, "auto" selects a GPU if a GPU is available, and otherwise the CPU.
    quantize : {"nf4", "fp4", "int4"}, optional
        Quantise each weight matrix to 4 bits while it is loaded, as `quantize_model` does with its default settings.
        The memory never contains more than the quantised model and one unquantised matrix. None means that `load_model`
        quantises no weight.

    Returns
    -------
    Transformer
        The model. Call `train` for full fine-tuning, or `get_peft_model` to add an adapter.

    Raises
    ------
    FileNotFoundError
        If there is no such model. The message lists the models that exist.
    ValueError
        If a file is damaged, if the architecture is not supported, or if `quantize` is given for a quantised file.
    KeyError
        If the weights do not match the configuration.
    RuntimeError
        If `device` is "cupy" and no GPU is available.

    Examples
    --------
    >>> import lora_np as ln
    >>> model = ln.load_model("tiny", device="numpy")
    >>> sum(p.value.size for name, p in model.named_parameters())
    1017216
    """
    if quantize is not None:
        check_settings(BLOCK_SIZE, quantize)
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
                raise ValueError(
                    "config.json contains a quantization_config, but no weight is quantised; remove quantization_config"
                )
            if config.family.gpt2 and not path.is_file():
                stored = gpt2_files.from_file(stored)
            if quantized and quantize is not None:
                raise ValueError(
                    f"got quantize={quantize!r}, but this model is already quantised; leave out the quantisation"
                )
            return _fill(config, _without_doubles(stored, config), quantized, dtype, like, quantize)
        except ValueError as error:
            raise ValueError(f"{_files(path)}: {error!s:.1000}") from None
        except KeyError as error:
            raise KeyError(f"{_files(path)}: {error.args[0]!s:.1000}") from None


def save_model(model: Transformer, folder: str | os.PathLike[str]) -> None:
    """Save a model as a Hugging Face folder: config.json and model.safetensors.

    Quantised weights are written in the 4-bit format of bitsandbytes. Each file is written completely or not at all.

    Parameters
    ----------
    model : Transformer
        A model without adapters.
    folder : str or PathLike
        The folder to write to. The folder is created if needed.

    Raises
    ------
    TypeError
        If the model contains adapters (call merge_and_unload() first), or if `load_model` cannot load the dtype of a
        weight.
    ValueError
        If a weight contains NaN or infinity. After any of these errors, no file has been written.

    Examples
    --------
    >>> import tempfile
    >>> import lora_np as ln
    >>> model = ln.load_model("tiny", device="numpy")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ln.save_model(model, folder)
    ...     again = ln.load_model(folder, device="numpy")
    >>> bool((again.model.norm.weight.value == model.model.norm.weight.value).all())
    True
    """
    if not isinstance(model, Transformer):
        raise TypeError(
            f"save_model takes a Transformer, got {type(model).__name__}; call merge_and_unload() on a PeftModel first"
        )
    arrays: dict[str, np.ndarray] = {}
    for name, x in model.state_dict().items():
        if ".base_layer." in name:
            raise TypeError(
                "this Transformer has an adapter; call merge_and_unload() first, or save the Transformer before get_peft_model"
            )
        if isinstance(x, Quantized4bit):
            arrays |= bitsandbytes.to_arrays(name, x)
            continue
        if x.dtype not in LOADED_DTYPES:
            raise TypeError(f"{name} has dtype {x.dtype}, which load_model refuses; call astype('float32') first")
        if not array_module(x).isfinite(x).all():
            raise ValueError(
                f"{name} contains NaN or infinity, so the model would answer with NaN; nothing was written"
            )
        arrays |= gpt2_files.to_file({name: to_host(x)}) if model.config.family.gpt2 else {name: to_host(x)}
    save_arrays(Path(folder) / "model.safetensors", arrays, {"format": "pt"})
    settings = model.config.to_dict()
    if quantization := bitsandbytes.quantization_config(model):
        settings["quantization_config"] = quantization
    text = json.dumps(settings, indent=2) + "\n"
    write_text(Path(folder) / "config.json", text)


# Assigned here, because the package transformer must not import this package.
Transformer.from_pretrained = staticmethod(load_model)
Transformer.save_pretrained = save_model  # a method: its first argument is the model


def load_tokenizer(name: str | os.PathLike[str]) -> Tokenizer:
    """Load the tokenizer of a model.

    Parameters
    ----------
    name : str or PathLike
        The name or path of a model, as in `load_model`.

    Returns
    -------
    Tokenizer
        The tokenizer that the model's files describe. If tokenizer.json is missing and the vocabulary has 256 tokens, a
        ByteTokenizer is returned.

    Raises
    ------
    FileNotFoundError
        If there is no such model, or if the tokenizer of the model is missing.
    ValueError
        If a file is damaged, or if the kind of tokenizer is not supported.

    Examples
    --------
    >>> import lora_np as ln
    >>> tokenizer = ln.load_tokenizer("tiny")
    >>> tokenizer.vocab_size, tokenizer.decode(tokenizer.encode("def f():"))
    (256, 'def f():')
    """
    path = _locate(name)
    if path.is_dir():
        by_bytes = _read_config(path / "config.json").vocab_size == ByteTokenizer.vocab_size
        if not by_bytes or (path / "tokenizer.json").exists():
            return tokenizer_from_folder(path)
        bytewise = ByteTokenizer()
        bytewise.more_stop_token_ids = stop_tokens_from_folder(path, bytewise.vocab_size)
        return bytewise
    with open_gguf(path) as stored:
        try:
            tokenizer = tokenizer_from_gguf(stored.metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    tokenizer.chat_template_file = str(path)
    return tokenizer


# ------------------------------------------------------------------------------------------------------------- the files


def _locate(name: str | os.PathLike[str]) -> Path:
    """Return the path of a model. If there is no such model, raise FileNotFoundError with a list of the existing models."""
    if name in MODELS:
        return fetched(name)
    folder = ASSETS / name
    path = folder if (folder / "config.json").is_file() else Path(name)
    if path.is_file() or (path / "config.json").is_file():
        return path
    included = sorted(p.parent.name for p in ASSETS.glob("*/config.json"))
    what = path if path.suffix == ".gguf" else path / "config.json"
    raise FileNotFoundError(
        f"no model {str(name)!r}: the package contains {included}, `python -m lora_np fetch` downloads {sorted(MODELS)}, "
        f"and the file {what} does not exist"
    )


def _read_config(path: Path) -> TransformerConfig:
    settings = read_json(path)
    try:
        if "quantization_config" in settings:
            bitsandbytes.check_config(settings["quantization_config"])
        return TransformerConfig.from_dict(settings)
    except ValueError as error:  # another architecture, or a missing or invalid size
        raise ValueError(f"{path}: {error!s:.1000}") from None


@contextmanager
def _open_weights(path: Path) -> Iterator[StoredArrays]:
    with open_gguf(path) if path.is_file() else open_folder(path) as stored:
        yield stored


def _files(path: Path) -> str:
    """Return the names of the files that describe the weights, for an error message. If two files disagree, both are
    named, because either file may be wrong."""
    weights = WEIGHTS if (path / WEIGHTS).is_file() else INDEX
    return str(path) if path.is_file() else f"{path / weights} (with config.json)"


# ----------------------------------------------------------------------------------------------------------- the weights


def _without_doubles(stored: StoredArrays, config: TransformerConfig) -> StoredArrays:
    """Leave out two kinds of arrays: a second copy of the tied embedding, and the rotary frequencies, which the model
    computes itself."""
    shapes = {name: s for name, s in stored.shapes.items() if not name.endswith(".rotary_emb.inv_freq")}
    embedding = f"{config.family.embedding}.weight"
    if config.tie_word_embeddings and HEAD in shapes and embedding in shapes:
        if not np.array_equal(stored[HEAD], stored[embedding]):
            raise ValueError(
                f"tie_word_embeddings is true, but {HEAD} differs from {embedding}; set tie_word_embeddings to false in config.json"
            )
        del shapes[HEAD]
    return replace(stored, shapes=shapes)


def _fill(
    config: TransformerConfig,
    stored: StoredArrays,
    quantized: dict[str, Quantized4bit],
    dtype: DTypeLike,
    like: Array,
    quantize: str | None,
) -> Transformer:
    """Build the model in `dtype` on the device of `like`, with the values from `quantized` and `stored` as parameters.
    `quantize` is the 4-bit type to which matrices in `stored` are quantised.

    The names and shapes are compared with the file before memory is allocated, so a damaged config.json cannot exhaust memory.
    """
    embedding = f"{config.family.embedding}.weight"
    if embedding in stored.shapes:
        _check(embedding, stored.shapes, config.vocab_size, config.hidden_size, label=stored.label(embedding))
    arrays = len(stored) + len(quantized)
    if config.num_hidden_layers > arrays:
        raise ValueError(f"num_hidden_layers = {config.num_hidden_layers}, but the file has only {arrays} arrays")
    try:
        model = Transformer.empty(config, dtype)
    except (ValueError, OverflowError):  # the message of NumPy does not contain the size
        raise ValueError(f"a size in this configuration is too large for an array: {config}") from None
    parameters = dict(model.named_parameters())
    found = stored.keys() | quantized.keys()
    missing, unexpected = parameters.keys() - found, found - parameters.keys()
    if missing or unexpected:
        raise KeyError(
            f"the weights do not match the configuration: missing {_some(missing)}; unexpected {_some(unexpected)}"
        )
    shapes = stored.shapes | {name: weight.shape for name, weight in quantized.items()}
    for name, p in parameters.items():
        _check(name, shapes, *p.value.shape, label=stored.label(name))
    modules = dict(model.named_modules())
    linear = {f"{name}.weight": name for name, m in modules.items() if isinstance(m, Linear)}
    if others := quantized.keys() - linear.keys():
        raise ValueError(f"{_some(others)} is quantised; only weights of linear layers can be quantised")

    def place(name: str, weight: Quantized4bit) -> None:
        layer = QuantizedLinear(weight.move_to(like))
        if hasattr(plain := modules[linear[name]], "bias"):
            layer.bias = plain.bias
        replace_module(model, linear[name], layer)

    for name, weight in quantized.items():
        place(name, weight.astype(dtype))
        del parameters[name]
    for name, p in parameters.items():
        if quantize is not None and name in linear and linear[name] != OUTPUT_HEAD:
            place(name, quantize_4bit(_read(name, stored, dtype), BLOCK_SIZE, quantize, double_quant=True))
        else:
            p.value = move(_read(name, stored, dtype), like)
    return model


def _read(name: str, stored: StoredArrays, dtype: DTypeLike) -> np.ndarray:
    """Read one array and check its values."""
    x = stored[name]
    if x.dtype not in LOADED_DTYPES:
        raise ValueError(f"{stored.label(name)} has dtype {x.dtype}; expected float16, float32 or float64")
    check_finite(stored.label(name), x)
    return x.astype(dtype, copy=False)


def _check(name: str, shapes: Mapping[str, tuple[int, ...]], *expected: int, label: str) -> None:
    check_shape(label, np.broadcast_to(np.float32(0), shapes[name]), *expected)


def _some(names: set[str]) -> str:
    """Return up to four names as text, with the number of further names."""
    return f"{sorted(names)[:4]}{f' and {len(names) - 4} more' if len(names) > 4 else ''}" if names else "none"
