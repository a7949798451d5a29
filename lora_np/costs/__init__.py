"""The cost of adapting a model, computed before training: parameters, bytes and FLOPs.

    count(model, config)                       the number of parameters, and the number of trained parameters
    flops(model, config, batch=…, seq=…)       the FLOPs of one training step, from every matrix product
    memory(model, config, batch=…, seq=…)      the bytes of one training step: weights, gradients, optimizer state, activations

`model` is a name in MODELS or PUBLISHED, the path of a config.json, an Architecture or a model in memory. `config` is a
configuration for `get_peft_model`; without a configuration, all parameters are trained. The file of each adapter method
defines the cost that its adapters add (see peft/cost.py).

Reading order: architecture, structure, precision, live, planned, published, resolve, parameters, report, flops, activations,
temporaries, memory.
"""

from ..peft.cost import AdapterCost, PrefixCost, Products
from .architecture import MODELS, Architecture, LinearShape, architecture_of, gpt, llama
from .flops import Flops, flops
from .live import adapter_parameters, stored_bytes
from .memory import Memory, memory
from .parameters import ParameterCount, count, houlsby_parameters, lora_parameters, prefix_parameters
from .precision import PRECISIONS, Precision, nf4_bytes
from .published import PUBLISHED, architecture_from_config
from .report import report
from .resolve import model_structure
from .structure import Layer, ModelStructure, Sublayer

__all__ = [
    "MODELS",
    "PRECISIONS",
    "PUBLISHED",
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
    "architecture_from_config",
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

RENAMED = {"Anatomy": "ModelStructure", "Count": "ParameterCount", "Half": "Sublayer", "anatomy": "model_structure"}


def __getattr__(name: str) -> object:
    """Raise AttributeError. If the name existed in an earlier version, the error message gives the new name."""
    raise AttributeError(
        f"lora_np.costs has no attribute {name}" + (f"; use {RENAMED[name]}" if name in RENAMED else "")
    )
