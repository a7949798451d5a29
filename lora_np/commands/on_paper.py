"""What the commands on paper ask alike: a published model, a method, and the sizes that it has; where none is given, train's."""

from __future__ import annotations

import argparse
from typing import Any

from ..ledger import METHODS, MODELS
from ..ledger.adaptation import AFTER, BESIDE
from ..peft import BottleneckConfig
from .methods import DEFAULT, LORA, PREFIX, SAID, VERA, target_modules


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--model, --method, and each method's sizes."""
    add, names = parser.add_argument, sorted(MODELS)
    add("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    add("--method", choices=METHODS, default=DEFAULT, help="%(choices)s (default %(default)s)")
    add("--r", type=int, help=SAID["r"])
    add(
        "--target-modules",
        type=target_modules,
        metavar="NAMES",
        help="all-linear (default), names with commas between, or a regular expression",
    )
    add("--virtual-tokens", type=int, metavar="N", help=f"of prefix: {SAID['virtual_tokens']}")
    add("--bottleneck-size", type=int, metavar="M", help=f"of houlsby and pfeiffer {SAID['bottleneck_size']}")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as the ledger takes it: the method, its sizes, and what was given besides, which it may refuse."""
    given = {name: getattr(arguments, name) for name in ("r", "target_modules", "virtual_tokens", "bottleneck_size")}
    given = {name: value for name, value in given.items() if value is not None}
    return {"method": arguments.method} | sizes(arguments.method, arguments.model) | given


def sizes(method: str, model: str) -> dict[str, Any]:
    """What `train` gives the method where nothing is said."""
    if method in BESIDE:
        return {name: (VERA if method == "vera" else LORA)[name] for name in ("r", "target_modules")}
    if method in AFTER:
        return {"bottleneck_size": BottleneckConfig().width(MODELS[model].hidden)}
    return {"virtual_tokens": PREFIX["num_virtual_tokens"]} if method == "prefix" else {}
