r"""Convert a GGUF file of a Llama model: metadata to a TransformerConfig, array names to the names of Hugging Face.

Both formats store equal weights, except for the order of rows in q_proj and k_proj. At position m, rotary embedding
rotates feature pair i by the angle mθᵢ. In lora_np and Hugging Face, pair i of a head of size d has the features
(i, i + d/2). In GGUF, pair i has the features (2i, 2i+1). Let P map the first order of features to the second order,

    (P x)[2i] = x[i],    (P x)[2i+1] = x[i + d/2],    i < d/2.

Then R_interleaved P = P R_half, because both sides rotate the same pair by the same angle. A GGUF file contains P W for
each head of q and k. The attention scores are unchanged: (P R q)·(P R k) = (R q)·(R k), because P is a permutation. So
W = Pᵀ (P W): row i comes from row 2i, and row i + d/2 from row 2i+1. The matrices v_proj and o_proj have no rotation
and keep the order of their rows.

Source: llama.cpp, LlamaModel.permute in its conversion script, which writes P W.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..files import StoredArrays
from ..transformer import TransformerConfig

ARCHITECTURE = "llama"
NAMES = {  # GGUF's names → Hugging Face's; blk.0. → model.layers.0.
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def config_from(stored: StoredArrays) -> TransformerConfig:
    """Read the configuration from the metadata of a GGUF file. If the file does not contain output.weight, the output
    head is tied to the embedding.

    Raises ValueError if the architecture is not Llama, if a feature is not supported, or if a key is missing.
    """
    metadata = stored.metadata
    if (architecture := metadata.get("general.architecture")) != ARCHITECTURE:
        raise ValueError(f"general.architecture is {architecture!r}; only the Llama family is supported")

    def number(key: str, default: Any = ..., kind: type = int) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is ...:
            raise ValueError(f"llama.{key} is missing from the metadata")
        if type(value) is not kind and value is not default:
            raise ValueError(f"llama.{key} = {value!r}; expected one number of type {kind.__name__}")
        return value

    heads, width = number("attention.head_count"), number("embedding_length")
    if heads < 1:
        raise ValueError(f"llama.attention.head_count = {heads}; expected at least 1")
    head_dim = number("attention.key_length", width // heads)
    embedding = stored.shapes.get("token_embd.weight", ())
    config = TransformerConfig(
        vocab_size=number("vocab_size", embedding[0] if embedding else ...),
        hidden_size=width,
        intermediate_size=number("feed_forward_length"),
        num_hidden_layers=number("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=number("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=_shortest(number("attention.layer_norm_rms_epsilon", kind=float)),
        rope_theta=_shortest(number("rope.freq_base", 10000.0, float)),
        max_position_embeddings=number("context_length"),
        tie_word_embeddings="output.weight" not in stored.shapes,
    )
    if "rope_freqs.weight" in stored.shapes or metadata.get("llama.rope.scaling.type", "none") != "none":
        raise ValueError(
            "the file contains llama.rope.scaling or rope_freqs.weight; only plain rotary embedding is supported"
        )
    if metadata.get("llama.expert_count", 0):
        raise ValueError("llama.expert_count: mixtures of experts are not supported")
    for key in ("rope.dimension_count", "attention.value_length"):
        if number(key, head_dim) != head_dim:
            raise ValueError(f"llama.{key} = {number(key)}; expected the head size, {head_dim}")
    return config


def as_huggingface(stored: StoredArrays, config: TransformerConfig) -> StoredArrays:
    """Rename the arrays to Hugging Face's names, and reorder the rows of q_proj and k_proj. Unknown names do not change."""
    names = {huggingface_name(name): name for name in stored}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def read(name: str) -> np.ndarray:
        x = stored[names[name]]
        layer = name.split(".")[-2]
        return half_split(x, heads[layer]) if layer in heads else x

    return StoredArrays({new: stored.shapes[old] for new, old in names.items()}, read, stored.metadata)


def huggingface_name(name: str) -> str:
    """Convert a name of GGUF: blk.3.attn_q.weight becomes model.layers.3.self_attn.q_proj.weight."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if (
        match is None
        or match[2] not in NAMES
        or NAMES[match[2]].startswith(("model.", "lm_head")) != (match[1] is None)
    ):
        return name
    layer = "" if match[1] is None else f"model.layers.{match[1]}."
    return f"{layer}{NAMES[match[2]]}.{match[3]}"


def half_split(W: np.ndarray, heads: int) -> np.ndarray:
    """Compute Pᵀ W for each head of W (heads · d, …). Rows 2i and 2i+1 of a head, as in GGUF, become rows i and i + d/2."""
    pairs = W.reshape(heads, -1, 2, *W.shape[1:])  # [head, pair, first or second of the pair]
    return pairs.swapaxes(1, 2).reshape(W.shape)  # [head, first or second of the pair, pair]


def _shortest(x: float) -> float:
    """Return the shortest decimal number whose float32 value equals the value in the file: 1e-5 instead of
    9.999999747378752e-06."""
    return float(str(np.float32(x)))
