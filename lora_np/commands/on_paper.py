"""What the commands on paper ask alike: a published model, a method, and the sizes that it has; where none is given, train's."""

from __future__ import annotations

import argparse
from typing import Any

from ..ledger import METHODS, MODELS
from ..ledger.adaptation import AFTER, BESIDE
from ..peft import BottleneckConfig
from .methods import BOTTLENECK, DEFAULT, LORA, PREFIX, VERA


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--model, --method, and each method's sizes."""
    add, names = parser.add_argument, sorted(MODELS)
    add("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    add("--method", choices=METHODS, default=DEFAULT, help="%(choices)s (default %(default)s)")
    for name in ("r", "target_modules"):
        LORA[name].add(parser, name)
    PREFIX["num_virtual_tokens"].add(parser, "num_virtual_tokens")
    BOTTLENECK["bottleneck_size"].add(parser, "bottleneck_size")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as the ledger takes it: the method, its sizes, and what was given besides, which it may refuse."""
    given = {name: getattr(arguments, name) for name in ("r", "target_modules", "virtual_tokens", "bottleneck_size")}
    given = {name: value for name, value in given.items() if value is not None}
    return {"method": arguments.method} | sizes(arguments.method, arguments.model) | given


def sizes(method: str, model: str) -> dict[str, Any]:
    """What `train` gives the method where nothing is said."""
    if method in BESIDE:
        return {name: (VERA if method == "vera" else LORA)[name].default for name in ("r", "target_modules")}
    if method in AFTER:
        return {"bottleneck_size": BottleneckConfig().width(MODELS[model].hidden)}
    return {"virtual_tokens": PREFIX["num_virtual_tokens"].default} if method == "prefix" else {}
