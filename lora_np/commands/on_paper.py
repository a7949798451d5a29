"""What the commands on paper ask alike: a published model, a method, and the sizes that it has; where none is given, train's."""

from __future__ import annotations

import argparse
from typing import Any

from .. import costs
from .methods import DEFAULT, METHODS, every_option, option_name

# --method → what the ledger calls it: what `train` takes, as far as the ledger knows it, and what `train` calls --quantize
NAMES = {name: choice.on_paper or name for name, choice in METHODS.items()} | {"qlora": "qlora"}
NAMES = {name: paper for name, paper in NAMES.items() if paper in costs.METHODS}
# a field of a configuration → what the ledger calls it
SIZES = {name: option_name(name) for name in ("r", "target_modules", "num_virtual_tokens", "bottleneck_size")}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--model, --method, and each method's sizes."""
    add, names = parser.add_argument, sorted(costs.MODELS)
    add("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    add("--method", choices=NAMES, default=DEFAULT, help="%(choices)s (default %(default)s)")
    for name in SIZES:
        every_option()[name].add(parser, name)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as the ledger takes it: the method, its sizes, and what was given besides, which it may refuse."""
    given = {name: value for name in SIZES.values() if (value := getattr(arguments, name)) is not None}
    return {"method": NAMES[arguments.method]} | sizes(arguments.method, arguments.model) | given


def sizes(method: str, model: str) -> dict[str, Any]:
    """What `train` gives the method where nothing is said."""
    choice = METHODS.get(method, METHODS[DEFAULT])  # qlora is LoRA, over another base
    found = {SIZES[name]: option.default for name, option in choice.takes.items() if name in SIZES}
    if "bottleneck_size" in found:
        found["bottleneck_size"] = choice.configuration().width(costs.MODELS[model].hidden)
    return found
