"""Read a LoRA from a GGUF file, the format of llama.cpp.

    blk.3.attn_q.weight.lora_a    A (r, in)        adapter.lora.alpha    α; llama.cpp multiplies B A by α/r, or by 1 if α = 0
    blk.3.attn_q.weight.lora_b    B (out, r)

As in GGUF files of models, the rows of q and k are not in the order of Hugging Face (see pretrained/llama_gguf.py).
Each row of ΔW = s·B A depends on the same row of B, so the rows of B are put into the order of Hugging Face.

Source: llama.cpp, convert_lora_to_gguf.py and llama_adapter_lora_weight::get_scale.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import numpy as np

from ...files import open_gguf
from ...pretrained.llama_gguf import half_split, huggingface_name
from ...transformer import TransformerConfig
from ..files import PREFIX

EXPECTED = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama"}


def read_gguf(
    path: str | os.PathLike[str], model: TransformerConfig
) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Return the settings and the tensors of a GGUF adapter in PEFT's form, and an empty dictionary.

    The dictionary is empty because a GGUF file contains only fields that PEFT has. Raises ValueError if the file is not
    a LoRA of the Llama family.
    """
    arrays: dict[str, np.ndarray] = {}
    heads = {"q_proj": model.num_attention_heads, "k_proj": model.num_key_value_heads}
    with open_gguf(path) as stored:
        for key, expected in EXPECTED.items():
            if stored.metadata.get(key) != expected:
                raise ValueError(
                    f"{path}: {key} is {stored.metadata.get(key)!r}; expected {expected!r}, a LoRA for Llama"
                )
        if "adapter.alora.invocation_tokens" in stored.metadata:
            raise ValueError(
                f"{path} is an aLoRA, which is applied only after its invocation tokens; this is not supported"
            )
        alpha = stored.metadata.get("adapter.lora.alpha", 0.0)
        for name in stored:
            match = re.fullmatch(r"(.+\.weight)\.lora_([ab])", name)
            layer = huggingface_name(match[1], model).removesuffix(".weight") if match else name
            if match is None or layer == match[1].removesuffix(".weight"):
                raise ValueError(
                    f"{path}: unexpected tensor {name}; expected blk.0.attn_q.weight.lora_a and similar names"
                )
            x, last = stored[name], layer.rsplit(".", 1)[-1]
            if match[2] == "b" and last in heads:
                if x.shape[0] % (2 * heads[last]):
                    raise ValueError(
                        f"{path}: {name} has shape {x.shape}; the model has {heads[last]} heads in {layer}"
                    )
                x = half_split(x, heads[last])
            arrays[f"{PREFIX}{layer}.lora_{match[2].upper()}.weight"] = x
    ranks = {
        key.removeprefix(PREFIX).removesuffix(".lora_A.weight"): len(x) for key, x in arrays.items() if "lora_A" in key
    }
    if not ranks:
        raise ValueError(f"{path} contains no tensor .lora_a")
    r = Counter(ranks.values()).most_common(1)[0][0]
    own = {re.escape(layer): rank for layer, rank in ranks.items() if rank != r}
    settings = {
        "peft_type": "LORA",
        "r": r,
        "lora_alpha": float(alpha) or r,
        "target_modules": list(ranks),
        "rank_pattern": own,
        "alpha_pattern": {} if alpha else own,
    }
    return settings, arrays, {}
