"""The model families.

`FAMILIES` maps each `model_type` of a config.json to a `Family`: the differences of this family from Llama. If
config.json contains the size of a difference (of a window or a soft cap), the difference is a field of
`TransformerConfig`. If all models of a family have a difference, the difference is a field of `Family`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Family:
    """The differences of one family from Llama. The defaults of the fields describe Llama."""

    architecture: str  # the entry of "architectures" in config.json
    qkv_bias: bool = False  # q, k and v have biases, o has none
    qk_norm: bool = False  # an RMSNorm over each head of q and of k, before the rotation
    fused: bool = False  # one matrix qkv_proj for q, k and v, and one matrix gate_up_proj for gate and up
    gemma: bool = False  # embeddings times √d, norms with the factor 1 + w, and two more norms per block
    gpt2: bool = False  # LayerNorm, learned positions, an MLP without a gate, and the names of GPT-2
    hidden_act: str = "silu"
    windowed: bool = False  # the family has sliding windows
    full_every: int = 0  # in models with a window: layers n, 2n, … see all tokens; 0: no layer does
    defaults: Mapping[str, Any] = field(default_factory=dict)  # defaults of keys that a config.json may leave out
    keys: Mapping[str, str] = field(default_factory=dict)  # fields with another key in config.json; "": without a key
    written: Mapping[str, Any] = field(default_factory=dict)  # further entries of a config.json that we write
    fixed: Mapping[str, Any] = field(default_factory=dict)  # keys that must have this value, or be absent or null

    @property
    def decoder(self) -> str:
        """The name of the decoder in the names of parameters."""
        return "transformer" if self.gpt2 else "model"

    @property
    def embedding(self) -> str:
        """The name of the embedding in the names of parameters."""
        return "transformer.wte" if self.gpt2 else "model.embed_tokens"


QWEN = {"rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
GEMMA = {
    **{"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    **{"query_pre_attn_scalar": 256, "sliding_window": 4096},
}
# transformers gives these families a padding token, whose embedding it does not train; its id can exceed the vocabulary.
NO_PADDING = {"pad_token_id": None}
BOTH_GEMMAS: dict[str, Any] = {
    **{"gemma": True, "hidden_act": "gelu_pytorch_tanh", "windowed": True, "written": NO_PADDING},
    **{"keys": {"hidden_act": "hidden_activation"}, "fixed": {"use_bidirectional_attention": False}},
}

FAMILIES = {
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family(
        "MistralForCausalLM", windowed=True, defaults={"sliding_window": 4096}, fixed={"layer_types": None}
    ),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, windowed=True, defaults=QWEN),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, windowed=True, defaults=QWEN | {"head_dim": 128}),
    "phi3": Family(
        "Phi3ForCausalLM",
        fused=True,
        windowed=True,
        defaults={"rms_norm_eps": 1e-5},
        written=NO_PADDING,
        fixed={"layer_types": None},
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        full_every=2,
        defaults=GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
        **BOTH_GEMMAS,
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        qk_norm=True,
        full_every=6,
        defaults=GEMMA | {"rope_theta": 1e6, "rope_local_base_freq": 1e4},
        **BOTH_GEMMAS,
    ),
    "gpt2": Family(
        "GPT2LMHeadModel",
        gpt2=True,
        hidden_act="gelu_new",
        defaults={"tie_word_embeddings": True, "n_positions": 1024, "layer_norm_epsilon": 1e-5},
        keys={
            **{"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
            **{"intermediate_size": "n_inner", "max_position_embeddings": "n_positions"},
            **{"rms_norm_eps": "layer_norm_epsilon", "hidden_act": "activation_function"},
            **dict.fromkeys(("num_key_value_heads", "head_dim", "rope_theta"), ""),
        },
        fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
}
