"""What adapting a model costs, counted exactly: for a live model, and on paper for published ones.

    Architecture   every matrix of a model as (out, in), and how often it occurs; MODELS has published ones by name
    count          parameters: all of them, and those that are trained
    flops          the arithmetic of a training step, product by product
    memory         its bytes: weights, gradients, optimizer state, activations, temporaries

Reading order: architecture, parameters, anatomy, flops, precision, activations, temporaries, memory.
"""

from .anatomy import METHODS, Anatomy, Half, Layer, anatomy
from .architecture import MODELS, Architecture, LinearShape, architecture_of, gpt, llama
from .flops import Flops, Products, flops
from .memory import Memory, memory
from .parameters import (
    ADAPTER_MARK,
    Count,
    count,
    count_live,
    houlsby_parameters,
    lora_parameters,
    prefix_parameters,
    report,
    targeted,
)
from .precision import PRECISIONS, Precision, nf4_bytes

__all__ = [
    "ADAPTER_MARK",
    "METHODS",
    "MODELS",
    "PRECISIONS",
    "Anatomy",
    "Architecture",
    "Count",
    "Flops",
    "Half",
    "Layer",
    "LinearShape",
    "Memory",
    "Precision",
    "Products",
    "anatomy",
    "architecture_of",
    "count",
    "count_live",
    "flops",
    "gpt",
    "houlsby_parameters",
    "llama",
    "lora_parameters",
    "memory",
    "nf4_bytes",
    "prefix_parameters",
    "report",
    "targeted",
]
