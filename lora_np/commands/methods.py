"""The methods that `train` knows: the configuration that each means, the options that it takes, a learning rate to begin with.

The learning rates are where to begin a search of your own, not where one ended: full fine-tuning's and LoRA's are the best of
studies/finetuning.py on "lighthouse", the others were only seen to learn.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..peft import BottleneckConfig, LoraConfig, PrefixTuningConfig, VeraConfig
from ..peft.bottleneck import ACTIVATIONS


def target_modules(text: str) -> str | list[str]:
    """What a terminal says for LoraConfig's target_modules: a list has commas between its names."""
    return text.split(",") if "," in text else text


LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "lora_dropout": 0.0, "use_rslora": False}
VERA = {"r": VeraConfig.r, "target_modules": "all-linear", "vera_dropout": VeraConfig.vera_dropout}
PREFIX = {name: getattr(PrefixTuningConfig, name) for name in ("prefix_projection", "encoder_hidden_size")}
PREFIX = {"num_virtual_tokens": PrefixTuningConfig.num_virtual_tokens} | PREFIX
BOTTLENECK = {name: getattr(BottleneckConfig, name) for name in ("bottleneck_size", "non_linearity")}


@dataclass(frozen=True)
class Choice:
    """config: the class of its configuration. takes: the fields of it that are options → what they are where nothing is said.

    means: the fields that choosing it decides. ratio: of B's learning rate to that of A.
    """

    lr: float
    config: type | None = None
    takes: Mapping[str, Any] = field(default_factory=dict)
    means: Mapping[str, Any] = field(default_factory=dict)
    ratio: float | None = None


METHODS: dict[str, Choice] = {
    "lora": Choice(3e-3, LoraConfig, LORA),
    "rslora": Choice(1e-3, LoraConfig, LORA, {"use_rslora": True}),
    "dora": Choice(3e-3, LoraConfig, LORA, {"use_dora": True}),
    "pissa": Choice(1e-3, LoraConfig, LORA, {"init_lora_weights": "pissa"}),
    "lora-fa": Choice(3e-3, LoraConfig, LORA, {"freeze_A": True}),
    "lora+": Choice(1e-3, LoraConfig, LORA, ratio=16),
    "vera": Choice(3e-2, VeraConfig, VERA),
    "prefix": Choice(3e-2, PrefixTuningConfig, PREFIX),
    "houlsby": Choice(3e-3, BottleneckConfig, BOTTLENECK, {"placement": "houlsby"}),
    "pfeiffer": Choice(3e-3, BottleneckConfig, BOTTLENECK, {"placement": "pfeiffer"}),
    "full": Choice(3e-4),
}
DEFAULT = "lora"
SAID = {  # of the sizes that the commands on paper ask for too
    "r": f"the rank (default {LORA['r']}; of vera {VERA['r']})",
    "virtual_tokens": f"trained keys and values in each layer (default {PREFIX['num_virtual_tokens']})",
    "bottleneck_size": f"(default the model's width / {BottleneckConfig.reduction_factor})",
}
RATIO = "loraplus_lr_ratio"  # PEFT's name; no field of a configuration, but of the optimizer


def add_method(parser: argparse.ArgumentParser) -> None:
    """--method, and below it each method's own options. An option that was not given is None."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--method", choices=METHODS, help=f"%(choices)s (default {DEFAULT})")
    which.add_argument(
        "--full",
        dest="method",
        action="store_const",
        const="full",
        help="--method full, full fine-tuning: train every weight, and save a model",
    )
    add = parser.add_argument_group("LoRA, its family, and VeRA").add_argument
    add("--r", type=int, help=SAID["r"])
    add("--lora-alpha", type=float, metavar="ALPHA", help=f"(default {LORA['lora_alpha']})")
    add("--target-modules", type=target_modules, metavar="NAMES", help="as in params (default all-linear)")
    add("--lora-dropout", type=float, metavar="P", help="(default 0)")
    add("--vera-dropout", type=float, metavar="P", help="the same of vera (default 0)")
    add("--use-rslora", action="store_true", default=None, help="scale by α/√r instead of α/r, as --method rslora does")
    ratio = METHODS["lora+"].ratio
    add(
        "--loraplus-lr-ratio",
        type=float,
        metavar="X",
        help=f"of lora+: B's lr over A's, which is --lr (default {ratio})",
    )
    add = parser.add_argument_group("prefix tuning").add_argument
    add("--virtual-tokens", type=int, metavar="N", help=SAID["virtual_tokens"])
    add("--prefix-projection", action="store_true", default=None, help="train them through an MLP")
    add("--encoder-hidden-size", type=int, metavar="M", help="the MLP's width (default that of a key)")
    add = parser.add_argument_group("bottleneck adapters, houlsby and pfeiffer").add_argument
    add("--bottleneck-size", type=int, metavar="M", help=SAID["bottleneck_size"])
    add("--non-linearity", choices=ACTIVATIONS, help=f"(default {BottleneckConfig.non_linearity})")


def configuration(arguments: argparse.Namespace) -> Any:
    """The configuration that was asked for; None for full fine-tuning. Raises as the configuration itself does.

    An option that the method does not take has no part in it: `check_options` refuses one.
    """
    choice = METHODS[arguments.method]
    if choice.config is None:
        return None
    settings = {name: value for name in choice.takes if (value := getattr(arguments, _option(name))) is not None}
    return choice.config(**{**choice.takes, **settings, **choice.means}, base_model_name_or_path=arguments.model)


def learning_rates(arguments: argparse.Namespace) -> tuple[float, dict[str, float]]:
    """The learning rate, and the factors on it that AdamW takes as `lr_ratio`."""
    choice = METHODS[arguments.method]
    ratio = choice.ratio if arguments.loraplus_lr_ratio is None else arguments.loraplus_lr_ratio
    return choice.lr if arguments.lr is None else arguments.lr, {} if ratio is None else {"lora_B": ratio}


def check_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for an option that says nothing about the method that was chosen, naming those that do."""
    method, choice = arguments.method, METHODS[arguments.method]
    everybodys = {_option(name) for each in METHODS.values() for name in each.takes} | {RATIO}
    takes = [_option(name) for name in choice.takes] + [RATIO] * (choice.ratio is not None)
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


def _option(name: str) -> str:
    """What argparse calls the option of a configuration's field."""
    return name.removeprefix("num_")


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
