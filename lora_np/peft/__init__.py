"""The ways to adapt a frozen model: one file a method, all behind `get_peft_model(model, config)`."""

from .bottleneck import BottleneckConfig, BottleneckLinear
from .combination import COMBINATION_TYPES
from .lora import LoraConfig, LoraLinear
from .merging import MergeReport
from .model import PeftModel, get_peft_model
from .prefix import PrefixEncoder, PrefixTuningConfig
from .vera import VeraConfig, VeraLinear

__all__ = [
    "COMBINATION_TYPES",
    "BottleneckConfig",
    "BottleneckLinear",
    "LoraConfig",
    "LoraLinear",
    "MergeReport",
    "PeftModel",
    "PrefixEncoder",
    "PrefixTuningConfig",
    "VeraConfig",
    "VeraLinear",
    "get_peft_model",
]
