"""What the commands on paper ask alike: a published model, a method, and the sizes that it has."""

from __future__ import annotations

import argparse
from typing import Any

from ..ledger import METHODS, MODELS

LORA, BOTTLENECK = {"r": 8, "target_modules": "all-linear"}, {"bottleneck_size": 64}
SIZES = {  # method → the sizes that it has where nothing is said
    **{"lora": LORA, "qlora": LORA, "dora": LORA, "vera": LORA | {"r": 256}},
    **{"prefix": {"virtual_tokens": 20}, "houlsby": BOTTLENECK, "pfeiffer": BOTTLENECK},
}


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--model, --method, and each method's sizes."""
    add, names = parser.add_argument, sorted(MODELS)
    add("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    add("--method", choices=METHODS, default="lora", help="%(choices)s (default lora)")
    add("--r", type=int, help="the rank (default 8; of vera 256)")
    add(
        "--target-modules",
        type=target_modules,
        metavar="NAMES",
        help="all-linear (default), names with commas between, or a regular expression",
    )
    add("--virtual-tokens", type=int, metavar="N", help="of prefix (default 20)")
    add("--bottleneck-size", type=int, metavar="M", help="of houlsby and pfeiffer (default 64)")


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, as the ledger takes it: the method, its sizes, and what was given besides, which it may refuse."""
    given = {name: getattr(arguments, name) for name in ("r", "target_modules", "virtual_tokens", "bottleneck_size")}
    given = {name: value for name, value in given.items() if value is not None}
    return {"method": arguments.method} | SIZES.get(arguments.method, {}) | given


def target_modules(text: str) -> str | list[str]:
    """What a terminal says for LoraConfig's target_modules: a list has commas between its names."""
    return text.split(",") if "," in text else text
