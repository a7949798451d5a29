"""The ways to adapt a frozen model: one file a method, all behind `get_peft_model(model, config)`."""

from .bottleneck import BottleneckConfig, BottleneckLinear
from .lora.combination import COMBINATION_TYPES, MergeReport
from .lora.config import LoraConfig
from .lora.layer import LoraLinear
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
