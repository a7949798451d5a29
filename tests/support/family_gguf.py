"""GGUF files of each family, as llama.cpp's conversion script writes them. The names come from the package `gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf_files import interleaved, write
from on_device import host

from lora_np import Transformer

ARCHITECTURES = {
    **{"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3"},
    **{"gemma2": "gemma2", "gemma3_text": "gemma3", "gpt2": "gpt2"},
}


def gguf_names(model: Transformer, architecture: str) -> dict[str, str]:
    """Our name → GGUF's name."""
    kinds = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(kinds[architecture], model.config.num_hidden_layers)
    return {name: names.get_name(name, try_suffixes=(".weight", ".bias")) for name in model.state_dict()}


def metadata_of(model: Transformer, architecture: str) -> dict[str, Any]:
    config = model.config
    norm = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    entries: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        f"attention.{norm}": config.rms_norm_eps,
    }
    if architecture != "gpt2":
        entries |= {
            "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": config.head_dim,
            "attention.value_length": config.head_dim,
            "rope.freq_base": config.rope_theta,
            "rope.dimension_count": config.rotary_dim,
        }
    if config.sliding_window is not None and architecture in ("phi3", "gemma2", "gemma3"):
        entries["attention.sliding_window"] = config.sliding_window
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, cap) is not None:
            entries[cap] = getattr(config, cap)
    return {f"{architecture}.{key}": value for key, value in entries.items()}


def write_family(path: Path, model: Transformer, extra: dict[str, np.ndarray] | None = None, **changes: Any) -> None:
    """Write a model. `changes` are added to the metadata; `extra` to the arrays."""
    architecture, arrays = ARCHITECTURES[model.config.model_type], {}
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    names = gguf_names(model, architecture)
    for name, x in model.state_dict().items():
        x, layer = np.asarray(host(x), np.float32), name.split(".")[-2]
        if architecture == "llama" and layer in heads:
            x = interleaved(x, heads[layer])
        if architecture.startswith("gemma") and layer.endswith("norm"):
            x = 1 + x
        arrays[names[name]] = x
    metadata = metadata_of(model, architecture) | {key.replace("__", "."): value for key, value in changes.items()}
    write(path, arrays | (extra or {}), metadata, architecture=architecture)
