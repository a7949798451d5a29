"""What adapting a model costs, counted exactly: for a live model, and on paper for published ones.

    Architecture   every matrix of a model as (out, in), and how often it occurs; MODELS has published ones by name
    count          parameters: all of them, and those that are trained
    flops          the arithmetic of a training step, product by product
    memory         its bytes: weights, gradients, optimizer state, activations, temporaries

Reading order: architecture, products, adapters, prefix, adaptation, parameters, report, body, anatomy, flops, precision,
activations, temporaries, memory.
"""

from ..peft.bottleneck import BottleneckCost as Bottleneck
from ..peft.cost import AdapterCost as Adapter
from ..peft.cost import PrefixCost as Prefix
from ..peft.cost import Products
from ..peft.lora.dora import DoraCost as Dora
from ..peft.lora.layer import LoraCost as Lora
from ..peft.vera import VeraCost as Vera
from .adaptation import METHODS, Adaptation
from .anatomy import anatomy
from .architecture import MODELS, Architecture, LinearShape, architecture_of, gpt, llama
from .body import Anatomy, Half, Layer
from .flops import Flops, flops
from .memory import Memory, memory
from .parameters import (
    Count,
    adapter_names,
    count,
    count_live,
    houlsby_parameters,
    lora_parameters,
    prefix_parameters,
    targeted,
)
from .precision import PRECISIONS, Precision, nf4_bytes
from .report import report

__all__ = [
    "METHODS",
    "MODELS",
    "PRECISIONS",
    "Adaptation",
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
    "adapter_names",
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
