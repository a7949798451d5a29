"""Quantised weights in the file format of bitsandbytes. lora_np and transformers can read each other's files.

    config.json                   "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": true, …}
    model.safetensors
        ….weight                  (⌈n/2⌉, 1) uint8, two codes per byte
        ….weight.absmax           (blocks,) float32; uint8 with double quantisation, which adds
        ….weight.nested_absmax    (⌈blocks/256⌉,) float32
        ….weight.quant_map, ….weight.nested_quant_map            the values of the codes: (16,) and (256,) float32
        ….weight.quant_state.bitsandbytes__nf4                   the other settings, as JSON in bytes

Source: bitsandbytes 0.50.2, `QuantState.as_dict`; transformers 5.23, `BitsAndBytesConfig`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from ..backend import to_host
from ..files import StoredArrays, check_finite
from ..nn import Linear, Module
from ..quantization import Quantized4bit, QuantizedAbsmax, QuantizedLinear, code_book, dynamic_map
from ..quantization.four_bits import ABSMAX_BLOCK

STATE = ".quant_state.bitsandbytes__"
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")


def quantization_config(model: Module) -> dict[str, Any] | None:
    """Return the quantization_config of a model's config.json, or None if no layer is quantised.

    The file of the weights also stores the settings of each weight. transformers can read "nf4" and "fp4"; only lora_np
    can read "int4".
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
    weights = [layer.weight.value for layer in layers.values() if isinstance(layer, QuantizedLinear)]
    if not weights:
        return None
    plain = {name for name, layer in layers.items() if not isinstance(layer, QuantizedLinear)}
    head = (
        set() if "lm_head" in layers else {"lm_head"}
    )  # a tied head is not a layer here, but it is one in transformers
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": weights[0].quant_type,
        "bnb_4bit_use_double_quant": isinstance(weights[0].absmax, QuantizedAbsmax),
        "bnb_4bit_compute_dtype": "float32",
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": sorted(plain | head),
    }


def check_config(settings: Any) -> None:
    """Raise ValueError if the quantization_config of a config.json is not the 4-bit format of bitsandbytes."""
    method, bits = (
        settings.get(key) if isinstance(settings, dict) else None for key in ("quant_method", "load_in_4bit")
    )
    if method != "bitsandbytes" or bits is not True:
        raise ValueError(
            f"quantization_config: got quant_method {method!r}, load_in_4bit {bits!r}; expected 'bitsandbytes' and true. Use the "
            "original model, or a GGUF file"
        )


def to_arrays(name: str, weight: Quantized4bit) -> dict[str, np.ndarray]:
    """Return the arrays that represent one quantised weight in a file."""
    state = {"quant_type": weight.quant_type, "blocksize": weight.block_size, "dtype": "float32", "shape": weight.shape}
    arrays = {"": weight.packed, ".quant_map": np.array(code_book(weight.quant_type), np.float32)}
    if isinstance(weight.absmax, QuantizedAbsmax):
        arrays |= {".absmax": weight.absmax.codes, ".nested_absmax": weight.absmax.absmax}
        arrays[".nested_quant_map"] = np.array(dynamic_map(), np.float32)
        offset = float(to_host(weight.absmax.offset))
        state |= {"nested_blocksize": ABSMAX_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
    else:
        arrays[".absmax"] = weight.absmax
    arrays[STATE + weight.quant_type] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    return {name + suffix: to_host(x) for suffix, x in arrays.items()}


def take_quantized(stored: StoredArrays) -> tuple[StoredArrays, dict[str, Quantized4bit]]:
    """Split the arrays of a file. Return the arrays of the unquantised weights, and a dict of the quantised weights by name.

    Raises ValueError if an array of a quantised weight is missing or damaged, or if the weight's code table differs
    from lora_np's code table. The message names the weight.
    """
    states = {key.split(STATE)[0]: key for key in stored.shapes if STATE in key}
    weights, parts = {}, set()
    for name, key in states.items():
        own = {name, key, *(f"{name}.{part}" for part in PARTS)} & stored.shapes.keys()
        try:
            weights[name] = _from_arrays(
                {k.removeprefix(name).lstrip("."): stored[k] for k in own - {key}}, stored[key]
            )
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{name}: its quantised state is incomplete or damaged ({error}); download the file again"
            ) from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        parts |= own
    shapes = {name: shape for name, shape in stored.shapes.items() if name not in parts}
    return replace(stored, shapes=shapes), weights


def _from_arrays(arrays: dict[str, np.ndarray], packed_state: np.ndarray) -> Quantized4bit:
    state = json.loads(packed_state.tobytes())
    quant_type, shape = state["quant_type"], tuple(state["shape"])
    if not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"the shape is {shape}; expected positive integers")
    _check_map("quant_map", arrays["quant_map"], code_book(quant_type))
    absmax: np.ndarray | QuantizedAbsmax = arrays["absmax"]
    for name in ("absmax", "nested_absmax"):
        if name in arrays and arrays[name].ndim != 1:
            raise ValueError(f"{name} has shape {arrays[name].shape}; expected one axis")
    if "nested_absmax" in arrays:
        _check_map("nested_quant_map", arrays["nested_quant_map"], dynamic_map())
        if state["nested_blocksize"] != ABSMAX_BLOCK:
            raise ValueError(f"nested_blocksize = {state['nested_blocksize']}; expected {ABSMAX_BLOCK}")
        offset = np.array(state["nested_offset"], np.float32)
        absmax = QuantizedAbsmax(arrays["absmax"], arrays["nested_absmax"], offset)
    weight = Quantized4bit(arrays[""], absmax, shape, state["blocksize"], quant_type, np.dtype(np.float32))
    for scales in (absmax.absmax, absmax.offset) if isinstance(absmax, QuantizedAbsmax) else (absmax,):
        check_finite("absmax", scales)
    return weight


def _check_map(name: str, stored: np.ndarray, ours: tuple[float, ...]) -> None:
    """Raise ValueError if the file's code table differs from lora_np's code table by more than a rounding error."""
    if stored.shape != (len(ours),) or not np.allclose(stored, ours, rtol=1e-6, atol=1e-7):
        raise ValueError(
            f"its array {name} differs from the code values of its type; other code values are not supported"
        )
