"""Weights in four bits: the codes (NF4, FP4, int4) and the linear layer that stores them.

Reading order: four_bits, linear.
"""

from .four_bits import (
    QUANT_TYPES,
    Quantized4bit,
    QuantizedAbsmax,
    code_book,
    dequantize_4bit,
    dynamic_map,
    quantize_4bit,
)
from .linear import QuantizedLinear, dequantize_model, quantize_model

__all__ = [
    "QUANT_TYPES",
    "Quantized4bit",
    "QuantizedAbsmax",
    "QuantizedLinear",
    "code_book",
    "dequantize_4bit",
    "dequantize_model",
    "dynamic_map",
    "quantize_4bit",
    "quantize_model",
]
