r"""Convert the metadata of a GGUF file to a TransformerConfig, and its arrays to the format of Hugging Face.

GGUF and Hugging Face files store equal weights, with two exceptions. In GGUF, the norms of Gemma contain 1 + w instead
of w. In GGUF files of the architecture "llama" (Llama and Mistral), the rows of q_proj and k_proj have another order.
At position m, rotary embedding rotates feature pair i by the angle mθᵢ. In lora_np and Hugging Face, pair i of a head
of size d has the features (i, i + d/2). In GGUF, pair i has the features (2i, 2i+1). Let P map the first order of
features to the second order,

    (P x)[2i] = x[i],    (P x)[2i+1] = x[i + d/2],    i < d/2.

Let R = R_half be the rotation in the first order, and R_interleaved the rotation in the second order. Then
R_interleaved P = P R_half, because both sides rotate the same pair by the same angle. For each head of q_proj and
k_proj with the weight W, a GGUF file contains P W. The attention scores are unchanged: (P R q)·(P R k) = (R q)·(R k),
because P is a permutation. So W = Pᵀ (P W): row i comes from row 2i, and row i + d/2 from row 2i+1. The matrices v_proj
and o_proj have no rotation and keep the order of their rows.

Source: llama.cpp, LlamaModel.permute in its conversion script, which writes P W.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..files import StoredArrays
from ..ops.rotary import scaled_frequencies
from ..transformer import TransformerConfig
from ..transformer.families import FAMILIES

ARCHITECTURES = {  # general.architecture → model_type
    **{"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "phi3": "phi3"},
    **{"gemma2": "gemma2", "gemma3": "gemma3_text", "gpt2": "gpt2"},
}
NAMES = {  # GGUF's names → Hugging Face's; blk.0. → model.layers.0.
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
FUSED_NAMES = {**NAMES, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
GEMMA_NAMES = {
    **NAMES,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
GPT2_NAMES = {
    **{"token_embd": "transformer.wte", "position_embd": "transformer.wpe", "output_norm": "transformer.ln_f"},
    **{"output": "lm_head", "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj"},
    **{"ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
}
LARGEST_GEMMA = {"gemma2": 46, "gemma3_text": 62}  # layers of the 27B models, which scale the scores in another way
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


class Metadata:
    """The metadata of one model in a GGUF file; all keys start with the name of the architecture."""

    def __init__(self, architecture: str, entries: Mapping[str, Any]) -> None:
        self.architecture, self.entries = architecture, entries

    def number(self, key: str, default: Any = ..., kind: type = int) -> Any:
        """Return a number. Raises ValueError if the value is not one number, or is missing without a default."""
        value = self.entries.get(f"{self.architecture}.{key}", default)
        if value is ...:
            raise ValueError(f"{self.architecture}.{key} is missing from the metadata")
        if type(value) is not kind and value is not default:
            raise ValueError(f"{self.architecture}.{key} = {value!r}; expected one number of type {kind.__name__}")
        return _shortest(value) if type(value) is float else value


def config_from(stored: StoredArrays) -> TransformerConfig:
    """Read the configuration from the metadata of a GGUF file. If the file does not contain output.weight, the output
    head is tied to the embedding.

    Raises ValueError if the architecture or a feature is not supported, or if a key is missing.
    """
    architecture = stored.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"general.architecture is {architecture!r}; expected one of {', '.join(ARCHITECTURES)}")
    metadata, model_type = Metadata(architecture, stored.metadata), ARCHITECTURES[architecture]
    number, family = metadata.number, FAMILIES[model_type]
    heads, width = number("attention.head_count"), number("embedding_length")
    if heads < 1:
        raise ValueError(f"{architecture}.attention.head_count = {heads}; expected at least 1")
    head_dim = number("attention.key_length", width // heads)
    embedding = stored.shapes.get("token_embd.weight", ())
    norm = "attention.layer_norm_epsilon" if family.gpt2 else "attention.layer_norm_rms_epsilon"
    layers = number("block_count")
    settings = {
        "vocab_size": number("vocab_size", embedding[0] if embedding else ...),
        "hidden_size": width,
        "intermediate_size": number("feed_forward_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": number(norm, kind=float),
        "rope_theta": number("rope.freq_base", 10000.0, float),
        "max_position_embeddings": number("context_length"),
        "tie_word_embeddings": "output.weight" not in stored.shapes,
        "sliding_window": (number("attention.sliding_window", 0) or None) if family.windowed else None,
        "attn_logit_softcapping": number("attn_logit_softcapping", None, float),
        "final_logit_softcapping": number("final_logit_softcapping", None, float),
    }
    if family.gemma:
        divisor = width // heads if layers == LARGEST_GEMMA[model_type] else head_dim
        scale = number("attention.scale", None, float)
        settings["query_pre_attn_scalar"] = divisor if scale is None else scale**-2
    if "rope_local_base_freq" in family.defaults:
        settings["rope_local_base_freq"] = number("rope.freq_base_swa", 10000.0, float)
    if number("expert_count", 0):
        raise ValueError(f"{architecture}.expert_count: mixtures of experts are not supported")
    rotated = number("rope.dimension_count", head_dim)
    settings["partial_rotary_factor"] = rotated / head_dim if family.fused else 1.0
    if rotated != head_dim and not family.fused:
        raise ValueError(f"{architecture}.rope.dimension_count = {rotated}; expected the head size, {head_dim}")
    if number("attention.value_length", head_dim) != head_dim:
        raise ValueError(
            f"{architecture}.attention.value_length = {number('attention.value_length')}; expected the head size, {head_dim}"
        )
    settings["rope_scaling"] = _rope_scaling(metadata, stored, settings["rope_theta"], rotated)
    return TransformerConfig(model_type=model_type, **settings)


def _rope_scaling(metadata: Metadata, stored: StoredArrays, theta: float, rotated: int) -> dict[str, Any] | None:
    """Return the scaling of the rotary frequencies.

    A file of Llama 3.1 does not contain the settings of the scaling. Instead, the file contains the divisors of the
    frequencies in the array rope_freqs.weight. The largest divisor is the setting `factor`. The other settings are in
    LLAMA3, and are equal for all Llama models.
    """
    kind = metadata.entries.get(f"{metadata.architecture}.rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": metadata.number("rope.scaling.factor", kind=float)}
    if kind != "none":
        raise ValueError(
            f"{metadata.architecture}.rope.scaling.type is {kind!r}; expected 'none' or 'linear', because other scalings of the "
            "rotary embedding are not supported"
        )
    if "rope_freqs.weight" not in stored.shapes:
        return None
    divisors = stored["rope_freqs.weight"].reshape(-1)
    scaling = {"rope_type": "llama3", "factor": _shortest(divisors.max()), **LLAMA3}
    frequencies = theta ** (np.arange(0, rotated, 2) / -rotated)
    if divisors.size != frequencies.size or not np.allclose(
        frequencies / divisors, scaled_frequencies(frequencies, scaling), rtol=1e-4
    ):
        raise ValueError("rope_freqs.weight is not the scaling of Llama 3.1; other factors are not supported")
    return scaling


def as_huggingface(stored: StoredArrays, config: TransformerConfig) -> StoredArrays:
    """Rename the arrays to Hugging Face's names, and convert their values. Unknown names do not change."""
    scaled = config.rope_scaling is not None
    names = {huggingface_name(name, config): name for name in stored if not (scaled and name == "rope_freqs.weight")}
    convert = _conversion(config)
    return StoredArrays(
        {new: stored.shapes[old] for new, old in names.items()},
        lambda name: convert(name, stored[names[name]]),
        stored.metadata,
    )


def _conversion(config: TransformerConfig) -> Callable[[str, np.ndarray], np.ndarray]:
    """Return the function that converts the values of an array, given its name in Hugging Face's format."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def convert(name: str, x: np.ndarray) -> np.ndarray:
        layer = name.split(".")[-2]
        if config.model_type == "llama" and layer in heads:
            return half_split(x, heads[layer])
        return x - 1 if config.family.gemma and layer.endswith("norm") else x

    return convert


def huggingface_name(name: str, config: TransformerConfig) -> str:
    """Convert a name of GGUF: blk.3.attn_q.weight becomes model.layers.3.self_attn.q_proj.weight."""
    family = config.family
    names = GPT2_NAMES if family.gpt2 else FUSED_NAMES if family.fused else GEMMA_NAMES if family.gemma else NAMES
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if (
        match is None
        or match[2] not in names
        or names[match[2]].startswith((f"{family.decoder}.", "lm_head")) != (match[1] is None)
    ):
        return name
    blocks = "h" if family.gpt2 else "layers"
    layer = "" if match[1] is None else f"{family.decoder}.{blocks}.{match[1]}."
    return f"{layer}{names[match[2]]}.{match[3]}"


def half_split(W: np.ndarray, heads: int) -> np.ndarray:
    """Compute Pᵀ W for each head of W (heads · d, …). Rows 2i and 2i+1 of a GGUF head become rows i and i + d/2."""
    pairs = W.reshape(heads, -1, 2, *W.shape[1:])  # [head, pair, first or second of the pair]
    return pairs.swapaxes(1, 2).reshape(W.shape)  # [head, first or second of the pair, pair]


def _shortest(x: float) -> float:
    """Return the shortest decimal number whose float32 value equals the value in the file, for example 1e-5 instead of
    9.999999747378752e-06."""
    return float(str(np.float32(x)))
