"""The ways to adapt a frozen model: one file a method, all behind `get_peft_model(model, config)`."""

from .lora import LoraConfig, LoraLinear
from .model import PeftModel, get_peft_model

__all__ = ["LoraConfig", "LoraLinear", "PeftModel", "get_peft_model"]
