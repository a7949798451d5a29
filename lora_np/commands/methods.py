"""The methods of `train --method`: the configuration, the options and the default learning rate of each.

Each method defines these three things in its own file. A default learning rate is a starting point for a search, not
the best value.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..peft.choices import Choice, Option
from ..peft.config import PeftConfig
from ..peft.registry import METHODS as ADAPTERS

RATIO = "loraplus_lr_ratio"  # PEFT's name; an option of the optimizer, not of a configuration
METHODS: dict[str, Choice] = {name: one for method in ADAPTERS for name, one in method.choices.items()}
METHODS["full"] = Choice(3e-4)
DEFAULT = "lora"


def options(choice: Choice) -> dict[str, Option]:
    """Return all options of a method, including options of the optimizer."""
    return {**choice.options, **choice.optimizer}


def every_option() -> dict[str, Option]:
    """Return the options of all methods. If several methods have the same option, the definition of the first of these
    methods is used."""
    return {name: option for choice in reversed(METHODS.values()) for name, option in options(choice).items()}


def add_method(parser: Any) -> None:
    """Add --method and its short form --full to a parser or to a group of options."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--method", choices=METHODS, metavar="METHOD", help=f"{', '.join(METHODS)} (default {DEFAULT})")
    group.add_argument(
        "--full",
        dest="method",
        action="store_const",
        const="full",
        help="full fine-tuning: train every weight, and save a model instead of an adapter (short for --method full)",
    )


def default_rates() -> str:
    """Return a text with each default learning rate and its methods, from the smallest rate to the largest."""
    methods: dict[float, list[str]] = {}
    for name, choice in METHODS.items():
        methods.setdefault(choice.lr, []).append(name)
    return "; ".join(f"{lr:g} for {', '.join(names)}" for lr, names in sorted(methods.items()))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all methods, grouped by the methods that have them.

    If an option is not given on the command line, its value is None.
    """
    groups: dict[str, Any] = {}
    taken = {method: options(choice) for method, choice in METHODS.items()}
    for name in dict.fromkeys(name for found in taken.values() for name in found):
        users = {method: found[name] for method, found in taken.items() if name in found}
        title, (first, *_) = f"options of {', '.join(users)}", users.values()
        groups[title] = groups.get(title) or parser.add_argument_group(title)
        defaults = {option.default: method for method, option in reversed(users.items())}
        others = [f"{default} for {method}" for default, method in defaults.items() if default != first.default]
        text = first.help.format("; ".join([str(first.default), *others]) if others else first.default)
        if first.default is False:
            groups[title].add_argument(_flag(option_name(name)), action="store_true", default=None, help=text)
        else:
            settings = {"metavar": first.metavar, "type": first.type, "choices": first.choices, "help": text}
            groups[title].add_argument(_flag(option_name(name)), **settings)


def configuration(arguments: argparse.Namespace) -> PeftConfig | None:
    """Return the configuration of the chosen method; None for full fine-tuning.

    Raises the errors of the configuration class for wrong values.

    This function ignores options of other methods. `check_options` raises an error for such options.
    """
    choice = METHODS[arguments.method]
    given = {name: value for name in choice.options if (value := getattr(arguments, option_name(name))) is not None}
    return choice.configuration(**given, base_model_name_or_path=arguments.model)


def learning_rates(arguments: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """Return the learning rate and the argument `lr_ratio` of AdamW. For lora+, `lr_ratio` contains the factor for the
    learning rate of B; otherwise `lr_ratio` is an empty dict."""
    choice = METHODS[arguments.method]
    ratio = arguments.loraplus_lr_ratio
    if ratio is None and RATIO in choice.optimizer:
        ratio = choice.optimizer[RATIO].default
    return choice.lr if arguments.lr is None else arguments.lr, {} if ratio is None else {"lora_B": ratio}


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an option that the chosen method does not have."""
    method, choice = arguments.method, METHODS[arguments.method]
    all_names = set(map(option_name, every_option()))
    takes = [option_name(name) for name in options(choice)]
    given = [name for name in vars(arguments) if name in all_names and getattr(arguments, name) is not None]
    other = next((name for name in given if name not in takes), None)
    if method == "full" and other:
        raise ValueError(
            f"{_flag(other)} is an option of an adapter, but --full trains no adapter; leave out one of the two"
        )
    if other:
        raise ValueError(
            f"--method {method} has no option {_flag(other)}; its options are {', '.join(map(_flag, takes)) or 'none'}"
        )
    if arguments.encoder_hidden_size is not None and not arguments.prefix_projection:
        raise ValueError(
            "--encoder-hidden-size is the width of the MLP of --prefix-projection; add --prefix-projection"
        )
    if arguments.quantize and method == "full":
        raise ValueError(
            "--quantize freezes the weights in 4 bits, but --full trains the weights; leave out one of the two"
        )
    if arguments.quantize and method == "pissa":
        raise ValueError(
            "--quantize rounds the residual weights that PiSSA leaves in the base, but the adapter is saved for the original "
            "weights; leave out --quantize, or choose another method"
        )


def option_name(name: str) -> str:
    """Return the name of the command-line option for a field of a configuration."""
    return name.removeprefix("num_")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
