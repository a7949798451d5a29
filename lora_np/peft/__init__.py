"""Methods that adapt a frozen model. `get_peft_model(model, config)` applies any of these methods.

Reading order: adapter, adapted_linear, placement, config, cost, choices, files, method, lora, vera, ia3, bottleneck,
prefix, registry, mixed, combination, management, merging, model.
"""

from .adapted_linear import AdaptedLinear
from .adapter import Adapter
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
