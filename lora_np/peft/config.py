"""The base classes of all configurations, and checks of their fields."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import InitVar, dataclass, fields
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ..nn.targets import plain_targets

# Arguments of PEFT that are accepted only at these values, and what to use for other values.
NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "task_type": ((None, "CAUSAL_LM"), "all models are causal language models: task_type='CAUSAL_LM'"),
    "inference_mode": ((None, False), "call get_peft_model, then set_adapter(name, inference_mode=True)"),
    "bias": ((None, "none"), "biases stay frozen: bias='none'"),
    "fan_in_fan_out": ((None, False), "weights have shape (out, in) here: fan_in_fan_out=False"),
    "modules_to_save": ((None, [], ()), "only adapters are trained and saved: modules_to_save=None"),
    "exclude_modules": ((None, [], ()), "use a regular expression in target_modules that does not match them"),
    "layers_to_transform": ((None, [], ()), r"use a regular expression in target_modules: r'.*\.[0-3]\..*_proj'"),
    "layers_pattern": ((None, [], ()), "use a regular expression in target_modules"),
}


@dataclass(frozen=True, kw_only=True)
class PeftConfig:
    """The base class of all configurations.

    The constructor also accepts arguments of PEFT that lora_np does not support. These arguments must have a value that
    changes nothing, for example `inference_mode=False`. They are not stored.
    """

    switches: ClassVar[tuple[str, ...]] = ()  # names of boolean fields

    task_type: InitVar[str | None] = None
    inference_mode: InitVar[bool] = False

    def __post_init__(self, *neutral: Any) -> None:
        stored = {field.name for field in fields(self)}  # fields of a subclass, such as LoraConfig.exclude_modules
        names = [name for name in type(self).__dataclass_fields__ if name in NEUTRAL.keys() - stored]
        for name, value in zip(names, neutral, strict=True):
            values, instead = NEUTRAL[name]
            empty = [] in values and isinstance(value, Collection) and not isinstance(value, str) and len(value) == 0
            if not (empty or value is None or (isinstance(value, str | bool) and value in values)):
                raise ValueError(f"{name} = {value!r} is not supported; {instead}")
        for name in self.switches:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} = {getattr(self, name)!r}; expected True or False")
        self.check()

    def check(self) -> None:
        """Check all fields. Raises ValueError or TypeError; the message names the wrong field."""


@dataclass(frozen=True, kw_only=True)
class TargetedConfig(PeftConfig):
    """The base class of configurations that select linear layers by name.

    `target_modules` is stored as a string or a tuple.
    """

    bias: InitVar[str | None] = "none"
    fan_in_fan_out: InitVar[bool] = False
    modules_to_save: InitVar[Collection[str] | None] = None
    exclude_modules: InitVar[Collection[str] | None] = None
    layers_to_transform: InitVar[Collection[int] | None] = None
    layers_pattern: InitVar[Collection[str] | None] = None

    def __post_init__(self, *neutral: Any) -> None:
        object.__setattr__(self, "target_modules", plain_targets(getattr(self, "target_modules", None)))
        super().__post_init__(*neutral)


def check_number(name: str, value: Any) -> None:
    """Raise TypeError if `value` is not a real number; "16" and True are not accepted."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; expected a number")


def check_positive(name: str, value: Any) -> None:
    """Raise TypeError or ValueError if `value` is not a positive finite number.

    A Python integer that is larger than every float is refused too.
    """
    check_number(name, value)
    if not (0 < value < math.inf and (isinstance(value, np.generic) or value <= sys.float_info.max)):
        raise ValueError(f"{name} = {value}; expected a positive number")


def check_whole(name: str, value: Any, least: int | None = None, what: str = "expected a whole number") -> None:
    """Raise TypeError if `value` is not an integer, and ValueError if `value` is below `least`.

    The values 2.0 and True also raise TypeError.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} = {value!r}; {what}")
    if least is not None and value < least:
        raise ValueError(f"{name} = {value}; expected at least {least}")


def check_rank(name: str, r: Any) -> None:
    """Raise TypeError or ValueError if r is not an integer of at least 1."""
    check_whole(name, r, what="the rank is a whole number")
    if r < 1:
        raise ValueError(f"{name} = {r}; the rank must be at least 1")


def check_probability(name: str, value: Any) -> None:
    """Raise TypeError or ValueError if `value` is not a dropout probability, 0 ≤ p < 1."""
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} = {value}; expected 0 ≤ {name} < 1")


def check_choice(name: str, value: Any, *choices: Any) -> None:
    """Raise ValueError if `value` is not one of the choices."""
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        *others, last = map(repr, choices)
        raise ValueError(f"{name} = {value!r}; expected {', '.join(others)} or {last}")


def storage_dtype(name: DTypeLike, base: np.dtype) -> np.dtype:
    """Return the storage dtype with this name: float16, bfloat16 or the dtype of the base.

    Raises TypeError for another dtype.
    """
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    dtype = np.dtype(name)  # raises TypeError for an unknown name
    if dtype.kind != "f" or (dtype.itemsize > 2 and dtype != base):
        raise TypeError(
            f"adapter_dtype is {name!r} and the base is in {base}; expected 'float16', 'bfloat16' or '{base}'"
        )
    return dtype
