"""What adapting a model costs, counted exactly: for a live model, and on paper for published ones.

    Architecture   every matrix of a model as (out, in), and how often it occurs; MODELS has published ones by name
    count          parameters: all of them, and those that are trained
    flops          the arithmetic of a training step, product by product

Reading order: architecture, parameters, anatomy, flops.
"""

from .anatomy import Anatomy, Half, Layer, anatomy
from .architecture import MODELS, Architecture, LinearShape, architecture_of, gpt, llama
from .flops import Flops, Products, flops
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

__all__ = [
    "ADAPTER_MARK",
    "MODELS",
    "Anatomy",
    "Architecture",
    "Count",
    "Flops",
    "Half",
    "Layer",
    "LinearShape",
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
    "prefix_parameters",
    "report",
    "targeted",
]
