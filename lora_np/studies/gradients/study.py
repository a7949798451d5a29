"""The gradients of LoRA and of full fine-tuning for one linear layer, from the same loss on the same text."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np

from ... import data
from ...nn import Trainable
from ...peft import LoraConfig, PeftModel, get_peft_model
from ...peft.lora.layer import LoraAdapter
from ...peft.placement import adapted_layers
from ...pretrained import load_model


@dataclass(frozen=True)
class LayerGradients:
    """The factors of one layer x Wᵀ + s (x Aᵀ) Bᵀ, and the gradients of LoRA and of full fine-tuning."""

    A: np.ndarray  # (r, in)
    B: np.ndarray  # (out, r)
    s: float  # lora_alpha / r
    dA: np.ndarray  # (r, in), of LoRA
    dB: np.ndarray  # (out, r), of LoRA
    dW: np.ndarray  # (out, in), of full fine-tuning, for the merged weight W + sBA


def example(
    base: str = "tiny", r: int = 8, batch_size: int = 4, seq_len: int = 64
) -> tuple[PeftModel, np.ndarray, np.ndarray]:
    """Return a model with LoRA on every linear layer, and tokens and targets of Python code.

    The model computes in float64 for exact comparisons. B is random instead of zero, because B is not zero after some
    training steps.
    """
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_model(base).astype("float64"), config)
    tokens, targets = data.Batches(data.corpus("code", "train"), batch_size=batch_size, seq_len=seq_len)[0]
    return model, tokens, targets


def both_ways(
    model: PeftModel, tokens: np.ndarray, targets: np.ndarray, adapter: str = "default"
) -> dict[str, LayerGradients]:
    """Return the gradients of each adapted layer by name, from two backward passes. `model` is not changed.

    One pass is through the model with its adapters and gives dA and dB. The other pass is through the merged model and
    gives dW for the weight W + sBA, as in full fine-tuning. The model with adapters and the merged model compute the
    same function.
    """
    adapted, merged = deepcopy(model), deepcopy(model).merge_and_unload().unfreeze()
    models: tuple[Trainable, ...] = (adapted, merged)
    for one in models:
        _, cache = one.loss(tokens, targets)
        one.zero_grad()
        one.backward(cache)
    weights = dict(merged.named_parameters())
    found = {}
    for name, layer in adapted_layers(adapted.model).items():
        lora = layer.adapters[adapter]
        assert isinstance(lora, LoraAdapter)
        A, B, s = lora.lora_A, lora.lora_B, lora.config.scaling
        W = weights[f"{name}.weight"]
        assert A.grad is not None and B.grad is not None and W.grad is not None
        found[name] = LayerGradients(A.value, B.value, s, A.grad, B.grad, W.grad)
    return found
