"""The methods that `train` knows: the configuration that each means, the options that it takes, a learning rate to begin with.

The learning rates are where to begin a search of your own, not where one ended: full fine-tuning's and LoRA's are the best of
studies/finetuning.py on "lighthouse", the others were only seen to learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..peft import BottleneckConfig, LoraConfig, PrefixTuningConfig, VeraConfig
from ..peft.bottleneck import ACTIVATIONS


def target_modules(text: str) -> str | list[str]:
    """What a terminal says for LoraConfig's target_modules: a list has commas between its names."""
    return text.split(",") if "," in text else text


@dataclass(frozen=True)
class Option:
    """A field of a configuration on the command line: its default, and argparse's settings, with the default for {} in `help`.

    Where the default is False it is a switch.
    """

    default: Any
    help: str
    metavar: str | None = None
    type: Callable[[str], Any] | None = None
    choices: Collection[str] | None = None

    def add(self, parser: Any, name: str) -> None:
        """Let a parser, or a group of one, take the field `name`. Where it is not given, it is None."""
        flag, said = _flag(option_name(name)), self.help.format(self.default)
        if self.default is False:
            parser.add_argument(flag, action="store_true", default=None, help=said)
        else:
            parser.add_argument(flag, metavar=self.metavar, type=self.type, choices=self.choices, help=said)


TARGETS = "{} (default), names with commas between, or a regular expression"
LORA = {
    "r": Option(LoraConfig.r, f"the rank (default {LoraConfig.r}; of vera {VeraConfig.r})", type=int),
    "lora_alpha": Option(16, "α (default {})", "ALPHA", float),
    "target_modules": Option("all-linear", TARGETS, "NAMES", target_modules),
    "lora_dropout": Option(0.0, "(default {:g})", "P", float),
    "use_rslora": Option(False, "scale by α/√r instead of α/r, as --method rslora does"),
}
RATIO = "loraplus_lr_ratio"  # PEFT's name; no field of a configuration, but of the optimizer
LORAPLUS = LORA | {RATIO: Option(16, "B's lr over A's, which is --lr (default {})", "X", float)}
VERA = {
    "r": replace(LORA["r"], default=VeraConfig.r),
    "target_modules": LORA["target_modules"],
    "vera_dropout": Option(VeraConfig.vera_dropout, "(default {:g})", "P", float),
}
KEYS = "a prefix's keys and values in each layer (default {})"
PREFIX = {
    "num_virtual_tokens": Option(PrefixTuningConfig.num_virtual_tokens, KEYS, "N", int),
    "prefix_projection": Option(PrefixTuningConfig.prefix_projection, "train them through an MLP"),
    "encoder_hidden_size": Option(None, "the MLP's width (default that of a key)", "M", int),
}
WIDTH = f"a bottleneck's width (default the model's / {BottleneckConfig.reduction_factor})"
BOTTLENECK = {
    "bottleneck_size": Option(None, WIDTH, "M", int),
    "non_linearity": Option(BottleneckConfig.non_linearity, "(default {})", choices=ACTIVATIONS),
}


@dataclass(frozen=True)
class Choice:
    """config: the class of its configuration. takes: the fields of it that are options, and RATIO.

    means: the fields that choosing it decides.
    """

    lr: float
    config: type | None = None
    takes: Mapping[str, Option] = field(default_factory=dict)
    means: Mapping[str, Any] = field(default_factory=dict)

    def configuration(self, **given: Any) -> Any:
        """The configuration that it means, with what is given; None for full fine-tuning. Raises as the configuration does."""
        fields = {name: option.default for name, option in self.takes.items()} | given | {**self.means}
        fields.pop(RATIO, None)
        return self.config(**fields) if self.config else None


METHODS: dict[str, Choice] = {
    "lora": Choice(3e-3, LoraConfig, LORA),
    "rslora": Choice(1e-3, LoraConfig, LORA, {"use_rslora": True}),
    "dora": Choice(3e-3, LoraConfig, LORA, {"use_dora": True}),
    "pissa": Choice(1e-3, LoraConfig, LORA, {"init_lora_weights": "pissa"}),
    "lora-fa": Choice(3e-3, LoraConfig, LORA, {"freeze_A": True}),
    "lora+": Choice(1e-3, LoraConfig, LORAPLUS),
    "vera": Choice(3e-2, VeraConfig, VERA),
    "prefix": Choice(3e-2, PrefixTuningConfig, PREFIX),
    "houlsby": Choice(3e-3, BottleneckConfig, BOTTLENECK, {"placement": "houlsby"}),
    "pfeiffer": Choice(3e-3, BottleneckConfig, BOTTLENECK, {"placement": "pfeiffer"}),
    "full": Choice(3e-4),
}
DEFAULT = "lora"


def every_option() -> dict[str, Option]:
    """Each field that is an option of a method, once."""
    return {name: option for choice in METHODS.values() for name, option in choice.takes.items()}


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
    """The options, in groups by the methods that take them. An option that was not given is None."""
    groups: dict[str, Any] = {}
    for name, option in every_option().items():
        title = ", ".join(method for method, choice in METHODS.items() if name in choice.takes)
        groups[title] = groups.get(title) or parser.add_argument_group(title)
        option.add(groups[title], name)


def configuration(arguments: argparse.Namespace) -> Any:
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
    if ratio is None and RATIO in choice.takes:
        ratio = choice.takes[RATIO].default
    return choice.lr if arguments.lr is None else arguments.lr, {} if ratio is None else {"lora_B": ratio}


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an option that says nothing about the method that was chosen, naming those that do."""
    method, choice = arguments.method, METHODS[arguments.method]
    everybodys = set(map(option_name, every_option()))
    takes = [option_name(name) for name in choice.takes]
    given = [name for name in vars(arguments) if name in everybodys and getattr(arguments, name) is not None]
    other = next((name for name in given if name not in takes), None)
    if method == "full" and other:
        whose = "LoRA" if other in LORA else "an adapter"
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
