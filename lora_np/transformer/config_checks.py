"""Checks of the values of a config.json: types, ranges, and the object that describes the rotary embedding.

A field's type is read from its annotation in TransformerConfig. So a new field needs no further code, if its annotation
is int, float or bool, with or without "| None". RANGES contains the range of each float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral
from typing import Any

import numpy as np

RANGES = {"rms_norm_eps": (1e-30, 1.0), "rope_theta": (1.0, 1e30)}  # smallest and largest value of a float
ZERO_IS_ALLOWED = {"head_dim"}  # 0: computed from other fields


def check_fields(config: Any) -> None:
    """Check the types and ranges of the fields of a dataclass. Raises ValueError with the name of the field."""
    for field in fields(config):
        kinds, value = str(field.type).split(" | "), getattr(config, field.name)
        if value is None and "None" in kinds:
            continue
        if kinds[0] == "bool" and not isinstance(value, bool | np.bool):
            raise ValueError(f"{field.name} = {value!r:.80}; expected true or false")
        if kinds[0] == "int":
            _check_int(field.name, value)
        if kinds[0] == "float":
            _check_float(field.name, value)


def _check_int(name: str, value: Any) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool):  # JSON's 576.0 is a float
        raise ValueError(f"{name} = {value!r:.80}; expected an integer")
    least = 0 if name in ZERO_IS_ALLOWED else 1
    if value < least:
        raise ValueError(f"{name} = {value!r:.80}; expected at least {least}")


def _check_float(name: str, value: Any) -> None:
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r:.80}; expected a number")
    least, most = RANGES.get(name, (-1e300, 1e300))
    if not least <= value <= most:  # NaN fails every comparison
        raise ValueError(f"{name} = {value!r:.80}; expected a finite number from {least:g} to {most:g}")


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary embedding's settings in a config.json, or {} if the file does not contain these settings.

    transformers 4 stores the settings as `rope_scaling`; transformers 5 stores the settings as `rope_parameters`.
    Raises ValueError if the settings are not a JSON object.
    """
    for name in ("rope_scaling", "rope_parameters"):
        settings = config.get(name)
        if settings is not None and not isinstance(settings, Mapping):
            raise ValueError(
                f'{name} is {settings!r:.80}; expected null or an object such as {{"rope_type": "default"}}'
            )
        if settings:
            return dict(settings)
    return {}
