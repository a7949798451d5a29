"""Weights in four bits: the codes (NF4, FP4, int4) and a linear layer with quantised weights.

Reading order: code_books, four_bits, linear.
"""

from .code_books import QUANT_TYPES, code_book, dynamic_map
from .four_bits import Quantized4bit, QuantizedAbsmax, dequantize_4bit, quantize_4bit
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
