"""Adapted models as many tests need them, and all there is to see of a model."""

from __future__ import annotations

from typing import Any

from on_device import host

from lora_np import LoraConfig, Module, PeftModel, Transformer, get_peft_model

ALL = "all-linear"


def adapted(model: Transformer, seed: int = 1, **changes: Any) -> PeftModel:
    """A PeftModel whose B is not zero, with α ≠ r, so that no gradient is zero by accident."""
    settings = {"r": 3, "lora_alpha": 7, "target_modules": ALL, "init_lora_weights": False} | changes
    return get_peft_model(model, LoraConfig(**settings), seed=seed)


def state(model: Module) -> tuple[Any, ...]:
    """All there is to see of a model: parameters, what trains, the layers' kinds, the adapters and which is active."""
    inner = getattr(model, "model", model) if isinstance(model, PeftModel) else model
    parameters = {name: (host(p.value).tobytes(), p.trainable) for name, p in model.named_parameters()}
    kinds = {name: type(m).__name__ for name, m in inner.named_modules()}
    return parameters, kinds, dict(getattr(model, "peft_config", {})), getattr(model, "active_adapter", None)
