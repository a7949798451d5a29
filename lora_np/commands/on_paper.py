"""What the commands on paper take: a published model, and a method with its options as `train` takes them."""

from __future__ import annotations

import argparse
from typing import Any

from ..costs import MODELS
from ..quantization import QUANT_TYPES
from .methods import DEFAULT, METHODS, add_options, check_options, configuration, option_name

QLORA = {"qlora": (DEFAULT, "nf4")}  # a name of its own for `--method lora --quantize nf4`


def add_settings(parser: argparse.ArgumentParser) -> None:
    """--model, --method, --quantize, and each method's options."""
    add, names = parser.add_argument, sorted(MODELS)
    add("--model", required=True, choices=names, metavar="MODEL", help=", ".join(names))
    add("--method", choices=[*METHODS, *QLORA], default=DEFAULT, help="%(choices)s (default %(default)s)")
    add("--quantize", choices=QUANT_TYPES, help="the frozen matrices in four bits, as --method qlora has them")
    add_options(parser)


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration that `train` would make of the arguments, and what the base is quantised to. Raises as `train` does."""
    method, quantize = QLORA.get(arguments.method, (arguments.method, None))
    asked = argparse.Namespace(**vars(arguments) | {"method": method, "quantize": arguments.quantize or quantize})
    check_options(asked)
    return {"config": configuration(asked), "quantize": asked.quantize}


def sizes(arguments: argparse.Namespace, config: Any) -> list[str]:
    """What was asked for, in words: the method, and the sizes that its configuration has."""
    words = [arguments.method, *([arguments.quantize] if arguments.quantize else [])]
    method, _ = QLORA.get(arguments.method, (arguments.method, None))
    for name, option in METHODS[method].takes.items():
        value = getattr(config, name, None)
        if name == "bottleneck_size":
            value = config.width(MODELS[arguments.model].hidden)
        if option.type is int and value is not None:
            words.append(f"{option_name(name).replace('_', ' ')} = {value}")
    return words
