"""The ways to adapt a frozen model, all behind `get_peft_model(model, config)`.

Reading order: adapter, placement, config, cost, choices, files, method, lora, vera, ia3, bottleneck, prefix, registry, merging,
combination, model.
"""

from .adapter import AdaptedLinear, Adapter
from .bottleneck import BottleneckConfig
from .combination import COMBINATION_TYPES, MergeReport
from .lora.config import LoraConfig
from .model import PeftModel, get_peft_model
from .prefix import PrefixEncoder, PrefixTuningConfig
from .vera import VeraConfig

__all__ = [
    "COMBINATION_TYPES",
    "AdaptedLinear",
    "Adapter",
    "BottleneckConfig",
    "LoraConfig",
    "MergeReport",
    "PeftModel",
    "PrefixEncoder",
    "PrefixTuningConfig",
    "VeraConfig",
    "get_peft_model",
]
