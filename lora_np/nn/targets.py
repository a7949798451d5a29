"""Which layers `target_modules` means: the one rule for live models and on paper.

    target_modules          a layer is a target when …
    ["q_proj", "v_proj"]    its full name is an entry, or ends in "." + an entry
    "q_proj"                the same, for this one entry
    r".*\\.[0-3]\\..*_proj"   the regular expression matches its full name from end to end
    "all-linear"            it is a linear layer other than the output head, lm_head

Source: PEFT, `check_target_module_exists` and `_maybe_include_all_linear_layers` in peft/tuners/tuners_utils.py. The
second line is ours; PEFT reads every single string as a regular expression, and "q_proj" then matches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Set
from typing import Any

ALL_LINEAR = "all-linear"
OUTPUT_HEAD = "lm_head"


def plain_targets(target_modules: Any, name: str = "target_modules") -> str | tuple[str, ...]:
    """`target_modules` as a configuration keeps it: a string, or a tuple of its own, that of a set in the same order each time.

    Raises TypeError for what is neither a string nor names.
    """
    if isinstance(target_modules, str):
        return target_modules
    entries = tuple(target_modules) if isinstance(target_modules, Iterable) else None
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        raise TypeError(f"{name} = {target_modules!r}; expected a list of layers' names, one string, or {ALL_LINEAR!r}")
    return tuple(sorted(entries)) if isinstance(target_modules, Set) else entries


def is_target(name: str, target_modules: str | Collection[str]) -> bool:
    """Whether the linear layer `name` ("model.layers.0.self_attn.q_proj") is meant by `target_modules`.

    Raises ValueError where a string is no valid regular expression.
    """
    if target_modules == ALL_LINEAR:
        return not has_suffix(name, OUTPUT_HEAD)
    if isinstance(target_modules, str):
        return has_suffix(name, target_modules) or matches_pattern(name, target_modules)
    return any(has_suffix(name, entry) for entry in target_modules)


def select_targets(names: list[str], target_modules: str | Collection[str]) -> list[str]:
    """The names among `names` (a model's linear layers) that `target_modules` means, in the model's order.

    Raises ValueError where an entry matches no layer: a typing error must not become a model that trains less.
    """
    entries = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not entries:
        raise ValueError(f"target_modules is empty, so nothing would be adapted; {available(names)}")
    for entry in entries:
        alone = entry if isinstance(target_modules, str) else [entry]  # a list holds suffixes, never patterns
        if not any(is_target(name, alone) for name in names):
            raise ValueError(f"target module {entry!r} matches no linear layer; {available(names)}")
    return [name for name in names if is_target(name, target_modules)]


def has_suffix(name: str, suffix: str) -> bool:
    """Whole path components only: "proj" is no suffix of "q_proj"."""
    return name == suffix or name.endswith("." + suffix)


def matches_pattern(name: str, pattern: str) -> bool:
    """The pattern must match the whole name, so that "q_proj.*" does not reach into "layers.0.q_proj"."""
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise ValueError(f"target_modules {pattern!r} is no valid regular expression: {error}.") from None


def available(names: list[str]) -> str:
    """What a reader may write instead: the last components of the names, each once, in the model's order."""
    leaves = dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)
    return f"this model's linear layers are {', '.join(leaves)}." if leaves else "this model has no linear layer."
