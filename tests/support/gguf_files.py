"""GGUF files of random models, as llama.cpp's conversion script would write them, for tests that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from on_device import host

from lora_np import Transformer, TransformerConfig

# Rows of whole blocks of 32, as the quantised types need, and no square matrix: q (64, 96), k (32, 96), o (96, 64).
CONFIG = TransformerConfig(
    vocab_size=40,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    rms_norm_eps=1e-3,
    rope_theta=500.0,
    max_position_embeddings=32,
)
NAMES = {  # written out, for a test must not ask the code that it tests
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def interleaved(W: np.ndarray, heads: int) -> np.ndarray:
    """W (heads · d, …) with the rows of each head where GGUF has them: the i-th of the first half, the i-th of the second, …"""
    rows = []
    for head in np.split(W, heads):
        first, second = np.split(head, 2)
        for pair in zip(first, second, strict=True):
            rows.extend(pair)
    return np.stack(rows)


def gguf_name(name: str) -> str:
    """model.layers.3.self_attn.q_proj.weight → blk.3.attn_q.weight."""
    name = name.removesuffix(".weight")
    if name.startswith("model.layers."):
        layer, _, name = name.removeprefix("model.layers.").partition(".")
        return f"blk.{layer}.{NAMES[name]}.weight"
    return f"{NAMES[name]}.weight"


def metadata_of(config: TransformerConfig) -> dict[str, Any]:
    return {
        "llama.vocab_size": config.vocab_size,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.rope.dimension_count": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_theta,
    }


def write_model(
    path: Path,
    model: Transformer,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
    **changes: Any,
) -> None:
    """`model` with its matrices quantised to `kind`. `changes` to the metadata: llama_block_count=3, or None to leave it out."""
    config, arrays = model.config, {}
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, x in model.state_dict().items():
        x = np.asarray(host(x), np.float32)
        layer = name.split(".")[-2]
        arrays[gguf_name(name)] = interleaved(x, heads[layer]) if layer in heads else x
    metadata = metadata_of(config) | {key.replace("__", "."): value for key, value in changes.items()}
    write(path, arrays, metadata, kind, architecture)


def write(
    path: Path,
    arrays: dict[str, np.ndarray],
    metadata: dict[str, Any],
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    architecture: str = "llama",
) -> None:
    """Arrays (norms stay float32) and metadata: integers as uint32, the rest as Python's type says."""
    writer = GGUFWriter(path, architecture)
    for key, value in metadata.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            add[type(value)](key, value)
    for name, x in arrays.items():
        if x.ndim == 2:
            writer.add_tensor(name, quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
