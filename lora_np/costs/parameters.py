"""Parameters, counted exactly: all of them, and those that are trained.

    count      for a live model as it stands, and on paper for a published one

An adapter of rank r beside W (out, in) has A (r, in) and B (out, r), so it trains r·(in + out) parameters where full
fine-tuning trains out·in. Everything below adds up such products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..peft.config import PeftConfig, check_rank
from .resolve import Model, resolve_model, with_usage_in_errors

# --------------------------------------------------------------------------------------------------------------------
# What each method adds


def lora_parameters(out: int, in_: int, r: int) -> int:
    """A (r, in) and B (out, r) beside one W (out, in): r·(in + out). Source: Hu et al. 2021, section 4.1.

    Raises TypeError where r is not a whole number, ValueError where it is below 1.
    """
    check_rank("r", r)
    return int(r) * (in_ + out)


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
class ParameterCount:
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


@with_usage_in_errors
def count(model: Model, config: PeftConfig | None = None) -> ParameterCount:
    """Count parameters, all and trainable.

        count("llama-2-7b")                                  a published model, all of it trained
        count("llama-2-7b", LoraConfig(r=8))                 the same with an adapter, the rest frozen
        count(peft_model)                                    a live model as it is

    A live model is any Module; a parameter that two places share is counted once.

    Raises ValueError for an unknown model, for a target module that matches no layer, and for a configuration with a live
    model; TypeError for what is not a model or not a configuration.
    """
    base, added, trainable = resolve_model(model, config).parameters()
    return ParameterCount(base, base + added, trainable)
