"""The exact number of parameters of a model, and of its trained parameters.

A LoRA adapter of rank r for W (out, in) consists of A (r, in) and B (out, r). LoRA trains r·(in + out) parameters. Full
fine-tuning trains out·in parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..peft.config import PeftConfig, check_rank
from .resolve import Model, resolve_model, with_usage_in_errors

# --------------------------------------------------------------------------------------------------------------------
# Formulas of the papers


def lora_parameters(out: int, in_: int, r: int) -> int:
    """Return the number of parameters of LoRA's A (r, in) and B (out, r) for one W (out, in): r·(in + out).

    Parameters
    ----------
    out, in_ : int
        Shape of W.
    r : int
        Rank.

    Returns
    -------
    int
        Number of trained parameters.

    Raises
    ------
    TypeError
        If r is not an integer.
    ValueError
        If r is below 1.

    References
    ----------
    Hu et al. 2021, LoRA (arXiv 2106.09685), section 4.1.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.lora_parameters(4096, 4096, r=8), 4096 * 4096
    (65536, 16777216)
    """
    check_rank("r", r)
    return int(r) * (in_ + out)


def prefix_parameters(virtual_tokens: int, layers: int, kv_heads: int, head_dim: int) -> int:
    """Return the number of parameters of a prefix: v·2L·(kv_heads·head_dim).

    Each virtual token has a trained key and a trained value in each layer. During training, an MLP can
    compute the prefix. The MLP is not counted, because the MLP is not saved.

    Parameters
    ----------
    virtual_tokens : int
        Number v of virtual tokens.
    layers : int
        Number L of layers.
    kv_heads, head_dim : int
        Number of key/value heads, and features per head.

    Returns
    -------
    int
        Number of saved parameters.

    References
    ----------
    Li and Liang 2021, Prefix-Tuning (arXiv 2101.00190), section 4.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.prefix_parameters(20, layers=32, kv_heads=32, head_dim=128)
    5242880
    """
    return virtual_tokens * 2 * layers * kv_heads * head_dim


def houlsby_parameters(d: int, m: int) -> int:
    """Return the number of parameters of one bottleneck adapter d → m → d with both biases: 2md + d + m.

    Houlsby's method has two such adapters per block. The paper also trains the LayerNorms; their parameters are not
    counted.

    Parameters
    ----------
    d : int
        Width of the residual stream.
    m : int
        Width of the bottleneck.

    Returns
    -------
    int
        Number of trained parameters.

    References
    ----------
    Houlsby et al. 2019 (arXiv 1902.00751), section 2.1.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.houlsby_parameters(d=768, m=64)
    99136
    """
    return 2 * m * d + d + m


# --------------------------------------------------------------------------------------------------------------------
# Counting


@dataclass(frozen=True)
class ParameterCount:
    """The number of parameters of a model.

    Parameters
    ----------
    base : int
        Parameters without adapters.
    total : int
        Parameters with adapters.
    trainable : int
        Trained parameters.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> counted = costs.count("llama-2-7b", LoraConfig(r=8))
    >>> f"{counted.trainable:,}", round(counted.reduction)
    ('4,194,304', 1607)
    """

    base: int
    total: int
    trainable: int

    @property
    def frozen(self) -> int:
        """The number of frozen parameters."""
        return self.total - self.trainable

    @property
    def share(self) -> float:
        """The trained share, trainable / total; `total` includes the adapter, as in PEFT."""
        return self.trainable / self.total

    @property
    def reduction(self) -> float:
        """The ratio base / trainable: the parameters of the base model per trained parameter."""
        return self.base / self.trainable if self.trainable else math.inf

    def __str__(self) -> str:
        """Return the line that PEFT's print_trainable_parameters prints."""
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {100 * self.share:.4f}"
        )


@with_usage_in_errors
def count(model: Model, config: PeftConfig | None = None) -> ParameterCount:
    """Count the parameters of a model, and its trained parameters.

    A parameter that two modules share is counted once.

    Parameters
    ----------
    model : str, Architecture or Module
        A name in `MODELS`, an architecture, or a model in memory.
    config : PeftConfig or None
        For a name or an Architecture: the configuration of its adapter. None means full fine-tuning.

    Returns
    -------
    ParameterCount
        The counts; `print` shows them in PEFT's format.

    Raises
    ------
    ValueError
        If the model is unknown, if a target module matches no layer, or if a model in memory is given with a configuration.
    TypeError
        If `model` has a wrong type, or if `config` is not a configuration.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> print(costs.count("llama-2-7b", LoraConfig(r=8)))
    trainable params: 4,194,304 || all params: 6,742,609,920 || trainable%: 0.0622
    """
    base, added, trainable = resolve_model(model, config).parameters()
    return ParameterCount(base, base + added, trainable)
