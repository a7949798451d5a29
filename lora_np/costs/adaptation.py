"""How a published model is adapted, on paper: the method, its sizes, and which layer gets what."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..nn.targets import select_targets
from ..peft.bottleneck import BottleneckConfig, BottleneckCost
from ..peft.cost import AdapterCost, PrefixCost
from ..peft.lora.dora import DoraCost
from ..peft.lora.layer import LoraCost
from ..peft.vera import VeraCost
from .architecture import Architecture


@dataclass(frozen=True)
class Kind:
    """A method with adapters of rank r beside the targeted layers: its title, their sizes, and what of them is frozen."""

    title: str
    adapter: Callable[..., AdapterCost]
    frozen: str = ""


BESIDE = {
    "lora": Kind("LoRA", LoraCost),
    "qlora": Kind("QLoRA", LoraCost),
    "lora-fa": Kind("LoRA-FA", partial(LoraCost, A_trained=False), "A"),
    "dora": Kind("DoRA", DoraCost),
    "vera": Kind("VeRA", VeraCost, "A and B, the same in all layers"),
}
AFTER = {"houlsby": 2, "pfeiffer": 1}  # bottlenecks in a block: after attention and MLP, or after the MLP alone
METHODS = ("full", *BESIDE, "prefix", *AFTER)


@dataclass(frozen=True)
class Adaptation:
    """A method and the sizes that it has.

    method: "full", everything is trained; "lora", "lora-fa", "dora" and "vera", adapters of rank `r` beside the layers that
    `target_modules` means (see targets.py); "qlora", LoRA over blocks whose matrices are quantised; "prefix",
    `virtual_tokens` keys and values in each layer; "houlsby" and "pfeiffer", bottlenecks of `bottleneck_size`. None means
    lora where r or target_modules are given, and full otherwise.

    Raises ValueError for an unknown method, and for a size that it needs and that is not there, has no use, or is no whole
    number of at least 1.
    """

    method: str | None = None
    r: int | None = None
    target_modules: str | Collection[str] | None = None
    virtual_tokens: int | None = None
    bottleneck_size: int | None = None

    def __post_init__(self) -> None:
        given = [name for name, value in vars(self).items() if name != "method" and value is not None]
        method = self.method or ("lora" if {"r", "target_modules"} & {*given} else "full")
        object.__setattr__(self, "method", method)
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; the ledger knows {', '.join(METHODS)}.")
        if method == "full" and given:
            raise ValueError(
                "method 'full' trains every parameter: it has no r and no target_modules, nor other sizes."
            )
        needs, example = self._needs
        if others := [name for name in given if name not in needs]:
            raise ValueError(f"method {method!r} has no {others[0]}: it takes {' and '.join(needs)}.")
        if len(given) < len(needs):
            raise ValueError(f"method {method!r} needs {' and '.join(needs)}, for example {example}.")
        for name in ("r", "virtual_tokens", "bottleneck_size"):
            if name in given:
                object.__setattr__(self, name, check_whole(name, getattr(self, name)))

    @property
    def _needs(self) -> tuple[tuple[str, ...], str]:
        if self.method in BESIDE:
            return ("r", "target_modules"), 'r=8, target_modules="all-linear"'
        if self.method in AFTER:
            return ("bottleneck_size",), "bottleneck_size=64"
        return (("virtual_tokens",), "virtual_tokens=20") if self.method == "prefix" else ((), "")

    def adapters(self, model: Architecture) -> dict[str, AdapterCost]:
        """The full name of each layer that gets an adapter → what it gets. Raises ValueError for a target that is not there."""
        if self.method in BESIDE:
            one = BESIDE[self.method].adapter(r=self.r)
            return dict.fromkeys(select_targets(list(model.linear_layers()), self.target_modules), one)
        if self.method in AFTER:
            writes = [shapes[-1].name for shapes in (model.attention, model.mlp)][-AFTER[self.method] :]
            names = (f"{model.block.format(i)}.{name}" for i in range(model.layers) for name in writes)
            return dict.fromkeys(names, BottleneckCost(config=BottleneckConfig(bottleneck_size=self.bottleneck_size)))
        return {}

    def prefix(self, model: Architecture) -> PrefixCost | None:
        """The prefix, if that is the method."""
        if self.method != "prefix":
            return None
        return PrefixCost(self.virtual_tokens, model.layers, model.kv_heads * model.head_dim)

    def parameters(self, model: Architecture) -> tuple[int, int]:
        """(how many numbers are added to the model, how many are trained)."""
        if self.method == "full":
            return 0, model.parameters
        if prefix := self.prefix(model):
            return prefix.gradients, prefix.gradients
        layers, found = model.linear_layers(), self.adapters(model)
        shapes, adapter = [(layers[name].out, layers[name].in_) for name in found], next(iter(found.values()))
        trained = sum(adapter.gradients(*shape) for shape in shapes)
        return trained + adapter.frozen(shapes), trained


def check_whole(name: str, value: int) -> int:
    """The value as an int, NumPy's too. Raises ValueError where it is not a whole number of at least 1, or a bool."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return int(value)
