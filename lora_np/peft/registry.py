"""The methods that are here, one line each."""

from __future__ import annotations

from .bottleneck import BottleneckMethod
from .ia3 import IA3Method
from .lora.method import LoraMethod
from .method import Method
from .prefix import PrefixMethod
from .vera import VeraMethod

METHODS: tuple[Method, ...] = (
    LoraMethod(),
    VeraMethod(),
    PrefixMethod(),
    BottleneckMethod(),
    IA3Method(),
)


def method_of(config: object) -> Method:
    """The method that a configuration is for. Raises TypeError where it is not a method's configuration."""
    for method in METHODS:
        if isinstance(config, method.config_type):
            return method
    *others, last = [method.config_type.__name__ for method in METHODS]
    expected = f"{', '.join(others)} or {last}" if others else last
    raise TypeError(f"expected a {expected}, got {type(config).__name__}")


def method_named(peft_type: object) -> Method:
    """The method of an adapter_config.json. Raises ValueError where it is not here."""
    for method in METHODS:
        if method.peft_type == peft_type:
            return method
    *others, last = [repr(method.peft_type) for method in METHODS]
    known = f"{', '.join(others)} and {last} are" if others else f"only {last} is"
    raise ValueError(f"peft_type is {peft_type!r}; {known} here")
