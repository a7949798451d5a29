"""A small model of each family: the settings of its config.json, and our model with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np

import lora_np as ln

# No two sizes alike; windows and soft caps that are felt in 11 tokens.
SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-3,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama with biases": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "llama 3.1": {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": LLAMA3},
    "llama with linear scaling": {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "qwen2": {"model_type": "qwen2", "rope_theta": 500.0},
    "qwen2, tied": {"model_type": "qwen2", "tie_word_embeddings": True, "num_key_value_heads": 3},
    "qwen2 with a window": {
        **{"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    },
    "mistral": {"model_type": "mistral", "sliding_window": 4, "head_dim": 6},
    "mistral without a window": {"model_type": "mistral", "sliding_window": None},
    "qwen3": {"model_type": "qwen3", "head_dim": 10, "tie_word_embeddings": True},
    "qwen3 with biases": {"model_type": "qwen3", "head_dim": 10, "attention_bias": True},
    "phi3": {"model_type": "phi3", "num_attention_heads": 3, "num_key_value_heads": 1, "partial_rotary_factor": 0.5},
    "phi3 with a window": {"model_type": "phi3", "sliding_window": 4},
    "gemma2": {
        **{"model_type": "gemma2", "head_dim": 6, "sliding_window": 4, "tie_word_embeddings": True},
        **{"query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    },
    "gemma2, untied": {
        **{"model_type": "gemma2", "head_dim": 4, "sliding_window": 4, "query_pre_attn_scalar": 4},
        **{"attn_logit_softcapping": None, "final_logit_softcapping": None},
    },
    "gemma3_text": {
        **{"model_type": "gemma3_text", "head_dim": 6, "sliding_window": 4, "tie_word_embeddings": True},
        **{"query_pre_attn_scalar": 9, "rope_theta": 500.0, "rope_local_base_freq": 100.0},
        **{
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    },
    "gpt2": {
        **{"model_type": "gpt2", "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 52, "n_positions": 128},
        **{"layer_norm_epsilon": 1e-3, "tie_word_embeddings": True},
    },
}


def settings_of(family: str) -> dict[str, Any]:
    """The content of a config.json."""
    return SIZES | FAMILIES[family]


def family_model(
    family: str | None, dtype: Any = np.float64, seed: int = 0, config: ln.TransformerConfig | None = None
) -> ln.Transformer:
    """Our model, with random numbers that are large enough that each matters for the loss."""
    model = ln.Transformer.random(config or ln.TransformerConfig.from_dict(settings_of(str(family))), dtype=dtype)
    rng = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        x = rng.standard_normal(p.value.shape)
        fan_in = 2 if name.endswith(("embed_tokens.weight", "wte.weight")) else x.shape[-1]  # tokens that matter
        x = 0.2 * x + p.value if x.ndim == 1 else x / np.sqrt(fan_in)
        p.value = x.astype(p.value.dtype)
    return model
