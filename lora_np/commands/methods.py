"""The methods that `train` knows: the configuration that each means, the options that it takes, a learning rate to begin with.

Each method's own file says its names, options and learning rate. A rate is where to begin a search, not where one ended.
"""

from __future__ import annotations

import argparse
from typing import Any

from ..peft.choices import Choice, Option
from ..peft.config import PeftConfig
from ..peft.registry import METHODS as ADAPTERS

RATIO = "loraplus_lr_ratio"  # PEFT's name; no field of a configuration, but of the optimizer
METHODS: dict[str, Choice] = {name: one for method in ADAPTERS for name, one in method.choices.items()}
METHODS["full"] = Choice(3e-4)
DEFAULT = "lora"


def options(choice: Choice) -> dict[str, Option]:
    """All options of a choice, those of the optimizer too."""
    return {**choice.takes, **choice.optimizer}


def every_option() -> dict[str, Option]:
    """Each option of a method, once, as the first method has it."""
    return {name: option for choice in reversed(METHODS.values()) for name, option in options(choice).items()}


def add_method(parser: argparse.ArgumentParser) -> None:
    """--method, or --full for short, and below it each method's options."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--method", choices=METHODS, help=f"%(choices)s (default {DEFAULT})")
    which.add_argument(
        "--full",
        dest="method",
        action="store_const",
        const="full",
        help="--method full, full fine-tuning: train every weight, and save a model",
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all methods, grouped by the methods that take them. An option left out is None."""
    groups: dict[str, Any] = {}
    taken = {method: options(choice) for method, choice in METHODS.items()}
    for name in dict.fromkeys(name for found in taken.values() for name in found):
        users = {method: found[name] for method, found in taken.items() if name in found}
        title, (first, *_) = ", ".join(users), users.values()
        groups[title] = groups.get(title) or parser.add_argument_group(title)
        defaults = {option.default: method for method, option in reversed(users.items())}
        others = [f"of {method} {default}" for default, method in defaults.items() if default != first.default]
        said = first.help.format("; ".join([str(first.default), *others]) if others else first.default)
        if first.default is False:
            groups[title].add_argument(_flag(option_name(name)), action="store_true", default=None, help=said)
        else:
            settings = {"metavar": first.metavar, "type": first.type, "choices": first.choices, "help": said}
            groups[title].add_argument(_flag(option_name(name)), **settings)


def configuration(arguments: argparse.Namespace) -> PeftConfig | None:
    """The configuration that was asked for; None for full fine-tuning. Raises as the configuration itself does.

    An option that the method does not take has no part in it: `check_options` refuses one.
    """
    choice = METHODS[arguments.method]
    given = {name: value for name in choice.takes if (value := getattr(arguments, option_name(name))) is not None}
    return choice.configuration(**given, base_model_name_or_path=arguments.model)


def learning_rates(arguments: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """The learning rate, and the factors on it that AdamW takes as `lr_ratio`."""
    choice = METHODS[arguments.method]
    ratio = arguments.loraplus_lr_ratio
    if ratio is None and RATIO in choice.optimizer:
        ratio = choice.optimizer[RATIO].default
    return choice.lr if arguments.lr is None else arguments.lr, {} if ratio is None else {"lora_B": ratio}


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an option that says nothing about the method that was chosen, naming those that do."""
    method, choice = arguments.method, METHODS[arguments.method]
    everybodys = set(map(option_name, every_option()))
    takes = [option_name(name) for name in options(choice)]
    given = [name for name in vars(arguments) if name in everybodys and getattr(arguments, name) is not None]
    other = next((name for name in given if name not in takes), None)
    if method == "full" and other:
        whose = "LoRA" if other in METHODS[DEFAULT].takes else "an adapter"
        raise ValueError(f"{_flag(other)} is {whose}'s, and --full trains without an adapter")
    if other:
        raise ValueError(
            f"{_flag(other)} is no option of --method {method}, which takes {', '.join(map(_flag, takes))}"
        )
    if arguments.encoder_hidden_size is not None and not arguments.prefix_projection:
        raise ValueError("--encoder-hidden-size is the width of an MLP that is not there: add --prefix-projection")
    if arguments.quantize and method == "full":
        raise ValueError("--quantize freezes the base in four bits, and --full trains it: leave one of them")
    if arguments.quantize and method == "pissa":
        raise ValueError(
            "--quantize rounds what PiSSA leaves of the base, and the saved adapter is for the base as it was: leave one of them"
        )


def option_name(name: str) -> str:
    """What argparse calls the option of a configuration's field."""
    return name.removeprefix("num_")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
