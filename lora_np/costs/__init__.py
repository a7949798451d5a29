"""What adapting a model costs, counted before it is run: parameters, bytes and operations, of a live model or on paper.

    count(model, config)                       parameters: how many there are, and how many are trained
    flops(model, config, batch=…, seq=…)       the arithmetic of a training step, product by product
    memory(model, config, batch=…, seq=…)      its bytes: weights, gradients, optimizer state, activations, temporaries

The model is a name in MODELS, an Architecture or a live model; the configuration is that of `get_peft_model`, and without one
all of the model is trained. What an adapter adds is in its method's file (see peft/cost.py).

Reading order: architecture, anatomy, precision, paper, live, subject, parameters, report, flops, activations, temporaries,
memory.
"""

from ..peft.cost import AdapterCost, PrefixCost, Products
from .architecture import MODELS, Architecture, LinearShape, architecture_of, gpt, llama
from .flops import Flops, flops
from .live import adapter_parameters, stored_bytes
from .memory import Memory, memory
from .parameters import ParameterCount, count, houlsby_parameters, lora_parameters, prefix_parameters
from .precision import PRECISIONS, Precision, nf4_bytes
from .report import report
from .resolve import model_structure
from .structure import Layer, ModelStructure, Sublayer

__all__ = [
    "MODELS",
    "PRECISIONS",
    "AdapterCost",
    "Architecture",
    "Flops",
    "Layer",
    "LinearShape",
    "Memory",
    "ModelStructure",
    "ParameterCount",
    "Precision",
    "PrefixCost",
    "Products",
    "Sublayer",
    "adapter_parameters",
    "architecture_of",
    "count",
    "flops",
    "gpt",
    "houlsby_parameters",
    "llama",
    "lora_parameters",
    "memory",
    "model_structure",
    "nf4_bytes",
    "prefix_parameters",
    "report",
    "stored_bytes",
]
