r"""Select layers by `target_modules`. The same rules apply to models in memory and to cost estimates.

    target_modules          selects a layer if …
    ["q_proj", "v_proj"]    its full name equals an entry, or ends in "." + an entry
    "q_proj"                its full name equals this string, or ends in "." + this string
    r".*\.[0-3]\..*_proj"   the regular expression matches its full name from start to end
    "all-linear"            it is a linear layer other than the output head, lm_head

Source: PEFT, `check_target_module_exists` and `_maybe_include_all_linear_layers` in peft/tuners/tuners_utils.py. PEFT
does not have the rule in the second line of the table. In PEFT, a string that is not in a list is always a regular
expression, so "q_proj" selects no layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Set
from typing import Any

from .patterns import ends_in_match, full_match

ALL_LINEAR = "all-linear"
OUTPUT_HEAD = "lm_head"
MOST_ENTRIES = 4_000  # of a list of names: more than the linear layers of a 405B model


def plain_targets(target_modules: Any, name: str = "target_modules") -> str | tuple[str, ...]:
    """Return `target_modules` as a string or a tuple of strings.

    A set is sorted, so that its order is the same in each run. Raises TypeError if `target_modules` is neither a string
    nor a collection of strings, and ValueError if it has too many entries.
    """
    if isinstance(target_modules, str):
        return target_modules
    entries = tuple(target_modules) if isinstance(target_modules, Iterable) else None
    if entries is None or not all(isinstance(entry, str) for entry in entries):
        raise TypeError(f"{name} = {target_modules!r}; expected a list of layer names, one string, or {ALL_LINEAR!r}")
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"{name} has {len(entries):,} entries; expected at most {MOST_ENTRIES:,}")
    return tuple(sorted(entries)) if isinstance(target_modules, Set) else entries


def is_target(name: str, target_modules: str | Collection[str]) -> bool:
    """Return True if `target_modules` selects the linear layer `name`, for example "model.layers.0.self_attn.q_proj".

    Raises ValueError if `target_modules` is a string that is not a regular expression, or a regular expression that
    cannot be matched quickly.
    """
    if target_modules == ALL_LINEAR:
        return not has_suffix(name, OUTPUT_HEAD)
    if isinstance(target_modules, str):
        return has_suffix(name, target_modules) or full_match(target_modules, name)
    return any(has_suffix(name, entry) for entry in target_modules)


def select_targets(names: list[str], target_modules: str | Collection[str]) -> list[str]:
    """Return the names of the linear layers that `target_modules` selects, in the model's order.

    Raises ValueError if an entry matches no layer. Without this error, a misspelt name would silently train fewer
    layers.
    """
    entries = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not entries:
        raise ValueError(f"target_modules is empty, so it selects no layer; {available(names)}")
    for entry in entries:
        alone = entry if isinstance(target_modules, str) else [entry]  # a list contains suffixes, never patterns
        if not any(is_target(name, alone) for name in names):
            raise ValueError(f"target module {entry!r} matches no linear layer; {available(names)}")
    return [name for name in names if is_target(name, target_modules)]


def layer_index(name: str, layers_pattern: Collection[str] = ()) -> int | None:
    """Return the index of the block that contains a layer: 3 for "model.layers.3.mlp.up_proj", None for "lm_head".

    The index is the first number after the second dot. With `layers_pattern`, the index is the first number after a
    component that matches one of the patterns. Source: PEFT, `check_target_module_exists`.
    """
    parts = name.split(".")
    for i, part in enumerate(parts[:-1]):
        before = ".".join(parts[:i])
        named = any(ends_in_match(pattern, before) for pattern in layers_pattern) if layers_pattern else i >= 2
        if part.isdecimal() and named:
            return int(part)
    return None


def has_suffix(name: str, suffix: str) -> bool:
    """Return True if the last components of a dotted name equal `suffix`. "proj" is not a suffix of "q_proj"."""
    return name == suffix or name.endswith("." + suffix)


def available(names: list[str]) -> str:
    """Return a sentence that lists the last component of each name, without repetitions and in the model's order."""
    leaves = dict.fromkeys(name.rsplit(".", 1)[-1] for name in names)
    return f"this model's linear layers are {', '.join(leaves)}." if leaves else "this model has no linear layer."
