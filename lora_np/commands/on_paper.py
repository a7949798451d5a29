"""The options of `params` and `memory`: a published model, and a method with the same options as in `train`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..costs import MODELS, PUBLISHED
from ..costs.published import architecture_named
from ..quantization import QUANT_TYPES
from .methods import DEFAULT, METHODS, add_options, check_options, configuration, option_name

QLORA = {"qlora": (DEFAULT, "nf4")}  # short for `--method lora --quantize nf4`


def add_settings(
    parser: argparse.ArgumentParser, add_others: Callable[[argparse.ArgumentParser], None] = lambda parser: None
) -> None:
    """Add --model, --method and --quantize, call `add_others`, then add the options of all methods."""
    group, names = parser.add_argument_group("model and method"), [*METHODS, *QLORA]
    models = ", ".join(sorted([*MODELS, *PUBLISHED]))
    shown = f"{models}, or the path of a config.json"
    group.add_argument("--model", required=True, type=_model, metavar="MODEL", help=shown)
    group.add_argument(
        "--method",
        choices=names,
        default=DEFAULT,
        metavar="METHOD",
        help=f"{', '.join(names)} (default {DEFAULT}); qlora is lora with --quantize nf4",
    )
    group.add_argument("--quantize", choices=QUANT_TYPES, help="store the frozen matrices in 4 bits (default: no)")
    add_others(parser)
    add_options(parser)


def _model(name: str) -> str:
    """Return the name or path of an architecture. If the name is unknown, the error lists the known names."""
    try:
        architecture_named(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return name


def settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of the method and the quantisation of the base model.

    Raises the same errors as the command `train`.
    """
    method, quantize = QLORA.get(arguments.method, (arguments.method, None))
    asked = argparse.Namespace(**vars(arguments) | {"method": method, "quantize": arguments.quantize or quantize})
    check_options(asked)
    return {"config": configuration(asked), "quantize": asked.quantize}


def sizes(arguments: argparse.Namespace, config: Any) -> list[str]:
    """Return the method, the quantisation and the integer fields of the configuration, for the first printed line."""
    words = [arguments.method, *([arguments.quantize] if arguments.quantize else [])]
    method, _ = QLORA.get(arguments.method, (arguments.method, None))
    for name, option in METHODS[method].options.items():
        value = getattr(config, name, None)
        if name == "bottleneck_size":
            value = config.width(architecture_named(arguments.model).hidden)
        if option.type is int and value is not None:
            words.append(f"{option_name(name).replace('_', ' ')} = {value}")
    return words
