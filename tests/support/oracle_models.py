"""The same small Llama twice, ours and transformers', adapted by our LoRA and by PEFT, with the same numbers in both.

transformers computes three things of a Llama in float32 whatever the model's dtype: the mean square in RMSNorm, the
softmax of the attention, and the rotary angles. In float64 that hides every difference below 1e-7. `DoubleTorch` lets
its own code, formula for formula, run in float64 throughout; so what is compared to 1e-10 is still transformers.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

import lora_np as ln

WHY = "the oracles are not installed: run `make test-oracles`"
torch = pytest.importorskip("torch", reason=WHY)
peft = pytest.importorskip("peft", reason=WHY)
transformers = pytest.importorskip("transformers", reason=WHY)
modeling_llama = pytest.importorskip("transformers.models.llama.modeling_llama", reason=WHY)

# No two sizes alike, so that no transposition survives; an eps and a θ that are not the default, so that both are felt.
UNTIED = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "rope_theta": 500.0,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
}
SHAPES = {
    "untied": UNTIED,
    "tied": UNTIED | {"tie_word_embeddings": True, "num_key_value_heads": 3},
    "wide heads": UNTIED | {"num_attention_heads": 4, "head_dim": 10},  # q is 40 wide, the stream 24
    "wide heads, tied": UNTIED | {"num_attention_heads": 4, "head_dim": 10, "tie_word_embeddings": True},
    "one head": UNTIED | {"num_attention_heads": 1, "num_key_value_heads": 1},
}


class DoubleTorch(types.ModuleType):
    """torch, except that whoever asks it for float32 gets float64."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def base_pair(shape: dict[str, Any], dtype: Any = np.float64, seed: int = 0) -> tuple[ln.Transformer, Any]:
    """(ours, theirs): one random Llama in both libraries."""
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, attn_implementation="eager"))
    ours = ln.Transformer.random(ln.TransformerConfig(**shape), dtype=dtype)
    theirs = theirs.to(torch.float64 if dtype == np.float64 else torch.float32).train()
    return share_random_numbers(ours, theirs, seed)


def adapted_pair(shape: dict[str, Any], settings: dict[str, Any], B_is_zero: bool = False) -> tuple[ln.PeftModel, Any]:
    """(ours, theirs) with LoRA of the same settings. B ≠ 0 unless `B_is_zero`: at B = 0 the gradient of A is 0."""
    ours, theirs = base_pair(shape)
    ours = ln.get_peft_model(ours, ln.LoraConfig(**settings))
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(**settings))
    return share_random_numbers(ours, theirs, seed=1, B_is_zero=B_is_zero)


def share_random_numbers(ours: ln.Module, theirs: Any, seed: int, B_is_zero: bool = False) -> tuple[Any, Any]:
    """Fill every parameter of both models with the same numbers, large enough that each matters for the loss."""
    rng = np.random.default_rng(seed)
    others = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        x = rng.standard_normal(p.value.shape)
        x = 1 + 0.2 * x if x.ndim == 1 else x / np.sqrt(x.shape[1])
        if B_is_zero and ".lora_B." in name:
            x *= 0
        p.value = x.astype(p.value.dtype)
        others[name].data.copy_(torch.from_numpy(x))
    return ours, theirs


def random_batch(seed: int, batch: int = 3, time: int = 11, ignored: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, targets), some targets ignored."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, UNTIED["vocab_size"], (2, batch, time))
    targets[rng.random(targets.shape) < ignored] = ln.ops.IGNORE_INDEX
    return tokens, targets


def their_loss(theirs: Any, tokens: np.ndarray, targets: np.ndarray) -> Any:
    """Cross-entropy of their logits on the given targets, in the model's own precision."""
    logits = theirs(input_ids=torch.from_numpy(tokens)).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())


def gradients(model: Any) -> dict[str, np.ndarray]:
    """name → gradient of every parameter that has one, for either library."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: np.asarray(grad) for name, grad in found.items()}


def trainable_values(model: Any) -> dict[str, np.ndarray]:
    """name → value of every parameter that trains, for either library."""
    if isinstance(model, ln.Module):
        return {name: p.value for name, p in model.named_parameters() if p.trainable}
    return {name: p.detach().numpy() for name, p in model.named_parameters() if p.requires_grad}


def relative_error(x: np.ndarray, expected: np.ndarray) -> float:
    """‖x − expected‖ / ‖expected‖."""
    assert x.shape == expected.shape, f"shape {x.shape} against {expected.shape}"
    norm = float(np.linalg.norm(expected))
    assert norm > 0, "the expected value is all zeros: agreement with it would prove nothing"
    return float(np.linalg.norm(x - expected)) / norm


def largest_difference(x: np.ndarray, expected: np.ndarray) -> float:
    """max |x − expected|."""
    assert x.shape == expected.shape, f"shape {x.shape} against {expected.shape}"
    return float(np.abs(x - expected).max())


def assert_close(
    mine: dict[str, np.ndarray], others: dict[str, np.ndarray], bound: float, lesson: str, error: Any = relative_error
) -> None:
    """The same names, and an error within `bound` for each. What was measured is printed: see it with `pytest -rP`."""
    extra, missing = sorted(mine.keys() - others.keys()), sorted(others.keys() - mine.keys())
    assert not extra and not missing, f"{lesson}\nonly ours: {extra}\nonly theirs: {missing}"
    assert mine, f"{lesson}\nthere is nothing to compare"
    errors = {name: error(mine[name], others[name]) for name in mine}
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else np.inf)  # a NaN is worst
    print(f"measured {errors[worst]:.1e} in {worst}, of {len(errors)}; bound {bound:.0e}")
    wrong = [f"  {name}  {e:.1e}" for name, e in errors.items() if not e <= bound]
    assert not wrong, "\n".join([lesson, f"off by more than {bound:.0e}:", *wrong])
