"""The registry of adapter methods."""

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
    """Return the method that a configuration belongs to.

    Raises TypeError if `config` is not a configuration of a method.
    """
    for method in METHODS:
        if isinstance(config, method.config_type):
            return method
    *others, last = [method.config_type.__name__ for method in METHODS]
    expected = f"{', '.join(others)} or {last}" if others else last
    raise TypeError(f"expected a {expected}, got {type(config).__name__}")


def method_named(peft_type: object) -> Method:
    """Return the method for the peft_type of an adapter_config.json.

    Raises ValueError for an unsupported peft_type.
    """
    for method in METHODS:
        if method.peft_type == peft_type:
            return method
    *others, last = [repr(method.peft_type) for method in METHODS]
    known = f"{', '.join(others)} or {last}" if others else last
    raise ValueError(f"peft_type is {peft_type!r}; expected {known}")
