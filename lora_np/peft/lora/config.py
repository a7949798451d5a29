"""LoraConfig: the configuration of LoRA, with PEFT's field names (arXiv 2106.09685)."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from ...nn.patterns import LONGEST_PATTERN, ends_in_match, needs_steps, parse
from ...nn.targets import is_target, layer_index, plain_targets
from ..config import TargetedConfig, check_choice, check_positive, check_probability, check_rank, check_whole

T = TypeVar("T")
MOST_PATTERNS = 4_000  # of rank_pattern, alpha_pattern and layers_pattern together


@dataclass(frozen=True, kw_only=True)
class LoraConfig(TargetedConfig):
    """The configuration of LoRA and its variants rsLoRA, DoRA, PiSSA and LoRA-FA, with PEFT's names and meanings.

    Parameters
    ----------
    task_type : str or None, default None
        None or "CAUSAL_LM".
    inference_mode : bool, default False
        Must be False. To freeze an adapter, call `PeftModel.set_adapter(name, inference_mode=True)`.
    bias : str or None, default "none"
        Must be "none" or None: biases stay frozen.
    fan_in_fan_out : bool, default False
        Must be False: weights have shape (out, in).
    modules_to_save : collection of str or None, default None
        Modules that are trained in full and saved with the adapter: "lm_head", "embed_tokens", norms or linear layers.
        As in PEFT, an entry selects all modules whose names end with this entry. Training does not change the weights
        of the base.
    exclude_modules : str, collection of str or None, default None
        Layers that get no adapter, even if `target_modules` selects them. The value has the same forms as
        `target_modules`.
    layers_to_transform : int, collection of int or None, default None
        Indices of the blocks to adapt; 0 is the first block. None: all blocks are adapted. As in PEFT, a layer whose
        full name is in `target_modules` is adapted even if its block is not in this list.
    layers_pattern : str, collection of str or None, default None
        Possible names of the list of blocks in the model; not needed if the list is called "layers" or "h". Used with
        `layers_to_transform`.
    r : int, default 8
        Rank of ΔW, at least 1.
    lora_alpha : float, default 8
        The constant α. The bypass is multiplied by α/r, or by α/√r if `use_rslora` is True.
    target_modules : str or collection of str, default ("q_proj", "v_proj")
        Layers to adapt. A collection contains names or name suffixes, and is stored as a tuple. A string is one name
        suffix, a regular expression for the whole name, or "all-linear". The value "all-linear" selects every linear
        layer except lm_head.
    lora_dropout : float, default 0.0
        Dropout probability of the bypass's input in training, 0 ≤ p < 1. The frozen path has no dropout.
    use_rslora : bool, default False
        True: rsLoRA, which multiplies the bypass by α/√r instead of α/r (Kalajdzievski 2023, arXiv 2312.03732).
    init_lora_weights : bool, "gaussian" or "pissa", default True
        True: A is uniform in ±1/√in (Kaiming with a = √5), and B = 0. "gaussian": A is normal with standard deviation
        1/r, and B = 0. "pissa": s·B A is the principal part of W, and this part is subtracted from the base (see
        pissa.py). False (for tests): A is drawn as for True, and B is uniform in ±1/√r, so that ΔW ≠ 0 at the start.
    rank_pattern, alpha_pattern : dict of str to number, default {}
        Different values of r or α for some layers, for example {"down_proj": 16}. A key is a regular expression for the
        last dot-separated components of a layer's name. The first matching key is used.
    base_model_name_or_path : str, path or None, default None
        Name of the base model. The name is saved with the adapter and has no other effect.
    use_dora : bool, default False
        True: DoRA, which also trains the length of each row of W + ΔW (see dora.py).
    dora_norm : {"detached", "true"}, default "detached"
        "detached": DoRA's gradient treats the row norms as constants, as in the paper and in PEFT. "true": the gradient
        also flows through the norms; PEFT does not have this option.
    freeze_A : bool, default False
        True: LoRA-FA, which trains only B and saves no input for dA (Zhang et al. 2023, arXiv 2308.03303). PEFT does
        not have this option.

    Raises
    ------
    ValueError
        If a value is out of range, or if a pattern is not a valid regular expression.
    TypeError
        If a value has a wrong type.

    Examples
    --------
    >>> from lora_np import LoraConfig
    >>> config = LoraConfig(r=8, lora_alpha=16, rank_pattern={"down_proj": 4})
    >>> config.scaling, config.for_layer("model.layers.0.mlp.down_proj").scaling
    (2.0, 4.0)
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
    exclude_modules: str | Collection[str] | None = None
    layers_to_transform: int | Collection[int] | None = None
    layers_pattern: str | Collection[str] | None = None
    modules_to_save: Collection[str] | None = None

    switches = ("use_rslora", "use_dora", "freeze_A")

    def check(self) -> None:
        """Check all fields. Raises ValueError or TypeError; the message names the wrong field."""
        for name in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, name), Mapping):
                raise TypeError(f"{name} = {getattr(self, name)!r}; expected a mapping from patterns to numbers")
            object.__setattr__(
                self, name, dict(getattr(self, name))
            )  # a copy, so that later changes of the argument have no effect
        check_rank("r", self.r)
        check_positive("lora_alpha", self.lora_alpha)
        for key, r in self.rank_pattern.items():
            check_rank(f"rank_pattern[{key!r}]", r)
        for key, alpha in self.alpha_pattern.items():
            check_positive(f"alpha_pattern[{key!r}]", alpha)
        self.check_selection()
        check_patterns([*self.rank_pattern, *self.alpha_pattern, *(self.layers_pattern or ())])
        check_probability("lora_dropout", self.lora_dropout)
        check_choice("dora_norm", self.dora_norm, "detached", "true")
        check_choice("init_lora_weights", self.init_lora_weights, True, False, "gaussian", "pissa")

    def check_selection(self) -> None:
        """Check the fields that select layers, and store them as strings, tuples or None."""
        for name in ("exclude_modules", "layers_pattern", "modules_to_save"):
            given: Any = getattr(self, name)
            given = [given] if name != "exclude_modules" and isinstance(given, str) else given
            object.__setattr__(self, name, plain_targets(given, name) if given else None)
        indices: Any = self.layers_to_transform
        if indices is not None and not isinstance(indices, Iterable):
            indices = (indices,)
        indices = tuple(indices or ()) or None
        for index in indices or ():
            check_whole("layers_to_transform", index, least=0, what="expected indices of blocks")
        object.__setattr__(self, "layers_to_transform", indices)
        if self.layers_pattern and indices is None:
            raise ValueError("layers_pattern has an effect only together with layers_to_transform; set both or neither")

    def selects(self, name: str) -> bool:
        """Return True if a linear layer gets an adapter.

        Parameters
        ----------
        name : str
            The name of the layer, for example "model.layers.0.self_attn.q_proj".

        Returns
        -------
        bool
            True if `target_modules` selects the layer and no other setting excludes the layer.
        """
        targets = self.target_modules
        if self.exclude_modules is not None and is_target(name, self.exclude_modules):
            return False
        if self.saves(name) or not is_target(name, targets):
            return False
        full_name = not isinstance(targets, str) and name in targets
        return full_name or not self.blocks or layer_index(name, self.layers_pattern or ()) in self.blocks

    @property
    def blocks(self) -> tuple[int, ...]:
        """The indices in `layers_to_transform`; empty if all blocks are adapted."""
        blocks: Any = self.layers_to_transform
        return blocks or ()

    def saves(self, name: str) -> bool:
        """Return True if a copy of the module is trained in full.

        Parameters
        ----------
        name : str
            The name of the module, for example "lm_head".

        Returns
        -------
        bool
            True if the name ends with an entry of `modules_to_save`.
        """
        return name.endswith(tuple(self.modules_to_save or ()))

    @property
    def scaling(self) -> float:
        """The scaling s of the bypass: α/r, or α/√r with rsLoRA."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def for_layer(self, name: str) -> LoraConfig:
        """Return the configuration of one layer, with the layer's own r and α and without patterns.

        Parameters
        ----------
        name : str
            Full name of the layer.

        Returns
        -------
        LoraConfig
            The configuration.
        """
        r, alpha = first_match(self.rank_pattern, name, self.r), first_match(self.alpha_pattern, name, self.lora_alpha)
        return replace(self, r=r, lora_alpha=alpha, rank_pattern={}, alpha_pattern={})


def first_match(pattern: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the first key that matches the layer `name`, or `default` if no key matches.

    A key matches the last components of a name. Source: PEFT, `get_pattern_key`.
    """
    return next((value for key, value in pattern.items() if ends_in_match(key, name)), default)


def check_patterns(keys: list[str]) -> None:
    """Raise ValueError if a key is not a regular expression, or if matching the keys takes too long."""
    if len(keys) > MOST_PATTERNS:
        raise ValueError(
            f"rank_pattern, alpha_pattern and layers_pattern have {len(keys):,} keys; expected at most {MOST_PATTERNS:,}"
        )
    for key in keys:
        parse(key)
    if sum(len(key) for key in keys if needs_steps(key)) > LONGEST_PATTERN:
        raise ValueError(
            "the regular expressions of rank_pattern, alpha_pattern and layers_pattern have more than "
            f"{LONGEST_PATTERN:,} characters; use the names of the layers as keys"
        )
