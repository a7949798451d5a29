"""Parameters, counted exactly: all of them, and those that are trained.

    count      for a live model as it stands, and on paper for a published one

An adapter of rank r beside W (out, in) has A (r, in) and B (out, r), so it trains r·(in + out) parameters where full
fine-tuning trains out·in. Everything below adds up such products.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..nn.targets import select_targets
from .adaptation import Adaptation, check_whole
from .architecture import Architecture, LinearShape, architecture_of

# --------------------------------------------------------------------------------------------------------------------
# What each method adds


def lora_parameters(out: int, in_: int, r: int) -> int:
    """A (r, in) and B (out, r) beside one W (out, in): r·(in + out). Source: Hu et al. 2021, section 4.1.

    Raises ValueError where r is not a whole number of at least 1.
    """
    return check_whole("r", r) * (in_ + out)


def prefix_parameters(virtual_tokens: int, layers: int, kv_heads: int, head_dim: int) -> int:
    """A trained key and a trained value for each virtual token in each layer: v·2L·(kv_heads·head_dim).

    Without the reparameterising MLP, which is thrown away after training. Source: Li and Liang 2021, section 4.
    """
    return virtual_tokens * 2 * layers * kv_heads * head_dim


def houlsby_parameters(d: int, m: int) -> int:
    """One bottleneck adapter d → m → d with both biases: 2md + d + m. A block holds two of them.

    The block's LayerNorms come on top where they are trained as well. Source: Houlsby et al. 2019, section 2.1.
    """
    return 2 * m * d + d + m


# --------------------------------------------------------------------------------------------------------------------
# Counting


@dataclass(frozen=True)
class Count:
    """How many parameters a model has, and how many of them are trained."""

    base: int  # the model without its adapter
    total: int  # the model with it
    trainable: int

    @property
    def frozen(self) -> int:
        return self.total - self.trainable

    @property
    def share(self) -> float:
        """trainable / total, the adapter counted in both, as PEFT prints it."""
        return self.trainable / self.total

    @property
    def reduction(self) -> float:
        """base / trainable: how many times fewer parameters are trained than by full fine-tuning."""
        return self.base / self.trainable if self.trainable else math.inf

    def __str__(self) -> str:
        """One line in the words of PEFT's print_trainable_parameters."""
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {100 * self.share:.4f}"
        )


def count(
    model: Any,
    r: int | None = None,
    target_modules: str | Collection[str] | None = None,
    method: str = "lora",
    virtual_tokens: int | None = None,
    bottleneck_size: int | None = None,
) -> Count:
    """Count parameters, all and trainable.

        count(peft_model)                                              a live model, as it stands
        count("llama-2-7b", 8, ["q_proj", "v_proj"])                   a published one with LoRA, or an Architecture of your own
        count("llama-2-7b", method="prefix", virtual_tokens=20)        the same with another method of `Adaptation`

    A live model is a Module or a PeftModel; a tied weight counts once.
    `target_modules` is a list, a single suffix, a regular expression or "all-linear" (see targets.py).

    Raises ValueError for an unknown model, method or target module, for r < 1, and for an argument without a use.
    """
    settings = r, target_modules, virtual_tokens, bottleneck_size
    if isinstance(model, str):
        model = architecture_of(model)
    if not isinstance(model, Architecture):
        if method != "lora" or any(setting is not None for setting in settings):
            raise ValueError("a live model is counted as it stands: call get_peft_model first, then count(model).")
        return count_live(model)
    added, trained = Adaptation(method, *settings).parameters(model)
    return Count(base=model.parameters, total=model.parameters + added, trainable=trained)


def count_live(model: Any) -> Count:
    """Add up the arrays that are there. Raises TypeError where `model` has no parameters to name."""
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"count expects a model's name, an Architecture or a model, not {type(model).__name__}.")
    base = added = trainable = 0
    adapters = adapter_names(model)
    for name, parameter in model.named_parameters():
        size = parameter.value.size
        if name in adapters:
            added += size
        else:
            base += size
        if parameter.trainable:
            trainable += size
    if base + added == 0:
        raise ValueError(f"this {type(model).__name__} has no parameters, so there is nothing to count.")
    return Count(base=base, total=base + added, trainable=trainable)


def adapter_names(model: Any) -> set[str]:
    """Which of a live model's parameters are its adapters'. A PeftModel knows; in a base, what wrappers add to their layer."""
    if hasattr(model, "adapter_parameters"):
        added = set(map(id, model.adapter_parameters()))
    else:
        wrappers = [module for _, module in model.named_modules() if hasattr(module, "base_layer")]
        added = set().union(*(ids(wrapper) - ids(wrapper.base_layer) for wrapper in wrappers))
    return {name for name, p in model.named_parameters() if id(p) in added}


def ids(module: Any) -> set[int]:
    """Of the parameters at and below a module."""
    return {id(p) for _, p in module.named_parameters()}


def targeted(architecture: Architecture, target_modules: str | Collection[str]) -> list[LinearShape]:
    """The linear layers that get an adapter, one entry for each layer of each block."""
    layers = architecture.linear_layers()
    return [layers[name] for name in select_targets(list(layers), target_modules)]
