"""LoraConfig: what to adapt and how, with PEFT's names (arXiv 2106.09685)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from ...nn.targets import plain_targets
from ..checks import check_number, check_whole

T = TypeVar("T")
AT_THE_END = r"(.*\.)?({})$"  # how a key of rank_pattern or alpha_pattern matches a layer's name


@dataclass(frozen=True)
class LoraConfig:
    """What to adapt and how, with PEFT's names and meanings.

    r: the rank of ΔW, at least 1.
    lora_alpha: α; the bypass is scaled by α/r, or by α/√r with `use_rslora` (Kalajdzievski 2023, arXiv 2312.03732).
    rank_pattern, alpha_pattern: another r or α for some layers, {"down_proj": 16}. A key is a regular expression for
        the end of a layer's name, from a dot on; the first key that matches counts.
    target_modules: a list of names or suffixes, one suffix, a regular expression for the whole name, or "all-linear"
        (every linear layer but lm_head). A list is kept as a tuple, which nobody can change later.
    lora_dropout: the probability of dropping an input of the bypass while training; the frozen path never drops.
    init_lora_weights: True, A uniform in ±1/√in (Kaiming with a = √5) and B = 0; "gaussian", A normal with std 1/r and
        B = 0; "pissa", the principal part of W, which leaves the base (see pissa.py); False, B uniform in ±1/√r too, so
        that the adapter is not the identity at the start (for tests).
    use_dora: train the length of each row of W + ΔW apart, as DoRA does (see dora.py).
    dora_norm: what DoRA's gradient takes the rows' lengths for: "detached", constants, as the paper and PEFT do, so that
        a run here is a run there; "true", what they are, so that it is the gradient of the loss.
    freeze_A: train B alone and keep no input for dA: LoRA-FA (Zhang et al. 2023, arXiv 2308.03303).
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range or a pattern that is no regular expression, TypeError for an r that is
    not an integer, a number or a mapping that is none, a switch that is no bool or targets that are no names.
    """

    r: int = 8
    lora_alpha: float = 8
    target_modules: str | Collection[str] = ("q_proj", "v_proj")
    lora_dropout: float = 0.0
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian", "pissa"] = True
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    base_model_name_or_path: str | os.PathLike[str] | None = None
    use_dora: bool = False
    dora_norm: Literal["detached", "true"] = "detached"
    freeze_A: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", plain_targets(self.target_modules))
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} = {getattr(self, name)!r}; expected a mapping, pattern → number")
            object.__setattr__(self, name, dict(getattr(self, name)))  # a copy, that stays as it is
        ranks = {"r": self.r} | {f"rank_pattern[{key!r}]": r for key, r in self.rank_pattern.items()}
        for what, r in ranks.items():
            check_whole(what, r, "the rank is a whole number")
            if r < 1:
                raise ValueError(f"{what} = {r}; the rank must be at least 1")
        alphas = {"lora_alpha": self.lora_alpha} | {f"alpha_pattern[{k!r}]": a for k, a in self.alpha_pattern.items()}
        for what, alpha in alphas.items():
            check_number(what, alpha)
            if not 0 < alpha < math.inf:
                raise ValueError(f"{what} = {alpha}; expected a positive number")
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            try:
                re.compile(AT_THE_END.format(key))
            except re.error as error:
                raise ValueError(f"the pattern {key!r} is no valid regular expression: {error}.") from None
        check_number("lora_dropout", self.lora_dropout)
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout = {self.lora_dropout}; expected 0 ≤ lora_dropout < 1")
        for name in ("use_rslora", "use_dora", "freeze_A"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} = {getattr(self, name)!r}; expected True or False")
        if self.dora_norm not in ("detached", "true"):
            raise ValueError(f"dora_norm = {self.dora_norm!r}; expected 'detached' or 'true'")
        init = self.init_lora_weights
        if not (isinstance(init, bool) or init in ("gaussian", "pissa")):
            raise ValueError(f"init_lora_weights = {init!r}; expected True, False, 'gaussian' or 'pissa'")

    @property
    def scaling(self) -> float:
        """s = α/r, or α/√r with rsLoRA."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def for_layer(self, name: str) -> LoraConfig:
        """The same for the one layer `name`: its own r and α, and no patterns left."""
        r, alpha = first_match(self.rank_pattern, name, self.r), first_match(self.alpha_pattern, name, self.lora_alpha)
        return replace(self, r=r, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})


def first_match(pattern: Mapping[str, T], name: str, default: T) -> T:
    """What `pattern` has for the layer `name`, or `default`. Source: PEFT, `get_pattern_key` in peft/utils/other.py."""
    return next((value for key, value in pattern.items() if re.match(AT_THE_END.format(key), name)), default)
