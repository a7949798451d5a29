"""What do LoRA and full fine-tuning compute for one linear layer? The gradients of both, for one loss on the same text."""

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
    """A linear layer x Wᵀ + s (x Aᵀ) Bᵀ: its factors, and the gradients that each method computes for it."""

    A: np.ndarray  # (r, in)
    B: np.ndarray  # (out, r)
    s: float  # lora_alpha / r
    dA: np.ndarray  # (r, in), LoRA's
    dB: np.ndarray  # (out, r), LoRA's
    dW: np.ndarray  # (out, in), full fine-tuning's, of the one weight W + sBA


def example(
    base: str = "tiny", r: int = 8, batch_size: int = 4, seq_len: int = 64
) -> tuple[PeftModel, np.ndarray, np.ndarray]:
    """A model with LoRA on every linear layer, and Python code for it: (model, tokens, targets), both (batch_size, seq_len).

    In float64, because it is there to prove something; B is random and not zero, as if it had trained for a while.
    """
    config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(load_model(base).astype("float64"), config)
    tokens, targets = data.Batches(data.corpus("code", "train"), batch_size=batch_size, seq_len=seq_len)[0]
    return model, tokens, targets


def both_ways(
    model: PeftModel, tokens: np.ndarray, targets: np.ndarray, adapter: str = "default"
) -> dict[str, LayerGradients]:
    """name → the gradients of each adapted layer, from two backward passes of one function. `model` stays as it is.

    Once the function is the model with its bypasses, of which A and B are trained. Once every bypass is merged into its
    weight, W + sBA, and all of that is trained, as full fine-tuning would.
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
