"""The methods that are here, a line each: which configuration is whose, and what its files are called."""

from __future__ import annotations

from typing import Any

from .bottleneck import BottleneckConfig, BottleneckMethod
from .lora.config import LoraConfig
from .lora.method import LoraMethod
from .method import Method
from .prefix import PrefixMethod, PrefixTuningConfig
from .vera import VeraConfig, VeraMethod

METHODS: dict[type, Method] = {
    LoraConfig: LoraMethod(),
    PrefixTuningConfig: PrefixMethod(),
    BottleneckConfig: BottleneckMethod(),
    VeraConfig: VeraMethod(),
}


def method_of(config: Any) -> Method:
    """The method that a configuration is for. Raises TypeError where it is none's."""
    for kind, method in METHODS.items():
        if isinstance(config, kind):
            return method
    *others, last = [kind.__name__ for kind in METHODS]
    expected = f"{', '.join(others)} or {last}" if others else last
    raise TypeError(f"expected a {expected}, got {type(config).__name__}")


def method_named(peft_type: Any) -> Method:
    """The method of an adapter_config.json. Raises ValueError where it is not here."""
    for method in METHODS.values():
        if method.peft_type == peft_type:
            return method
    *others, last = [repr(method.peft_type) for method in METHODS.values()]
    known = f"{', '.join(others)} and {last} are" if others else f"only {last} is"
    raise ValueError(f"peft_type is {peft_type!r}; {known} here")
