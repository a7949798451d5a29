"""LoraConfig: what to adapt and how, with PEFT's names (arXiv 2106.09685)."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from ..config import TargetedConfig, check_choice, check_positive, check_probability, check_rank

T = TypeVar("T")
AT_THE_END = r"(.*\.)?({})$"  # how a key of rank_pattern or alpha_pattern matches a layer's name


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TargetedConfig):
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
    dora_norm: "detached": DoRA's gradient treats the row norms as constants, as in the paper and in PEFT; "true": the gradient
        also flows through the norms.
    freeze_A: train B alone and keep no input for dA: LoRA-FA (Zhang et al. 2023, arXiv 2308.03303).
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range or a pattern that is not a regular expression, TypeError for a value of the wrong
    type.
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

    switches = ("use_rslora", "use_dora", "freeze_A")

    def check(self) -> None:
        """Raise ValueError or TypeError for a field out of range, naming it."""
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} = {getattr(self, name)!r}; expected a mapping, pattern → number")
            object.__setattr__(self, name, dict(getattr(self, name)))  # a copy, which stays as it is
        check_rank("r", self.r)
        check_positive("lora_alpha", self.lora_alpha)
        for key, r in self.rank_pattern.items():
            check_rank(f"rank_pattern[{key!r}]", r)
        for key, alpha in self.alpha_pattern.items():
            check_positive(f"alpha_pattern[{key!r}]", alpha)
        for key in [*self.rank_pattern, *self.alpha_pattern]:
            try:
                re.compile(AT_THE_END.format(key))
            except re.error as error:
                raise ValueError(f"the pattern {key!r} is no valid regular expression: {error}.") from None
        check_probability("lora_dropout", self.lora_dropout)
        check_choice("dora_norm", self.dora_norm, "detached", "true")
        check_choice("init_lora_weights", self.init_lora_weights, True, False, "gaussian", "pissa")

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
