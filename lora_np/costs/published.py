"""The architecture that a config.json describes, and the architectures of published models by name.

The shapes come from `Transformer.empty`, which builds a model without memory for its matrices. So the counts for an
architecture equal the counts for a model in memory.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..files import read_json
from ..nn import Linear
from ..transformer import Transformer, TransformerConfig
from .architecture import MODELS, Architecture, LinearShape


def _sizes(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, **others: Any
) -> dict[str, Any]:
    return {
        **{"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads},
        **{"num_key_value_heads": kv_heads, "intermediate_size": ffn, "vocab_size": vocabulary},
        **others,
    }


TIED: dict[str, Any] = {"tie_word_embeddings": True}
LLAMA32: dict[str, Any] = {"model_type": "llama", "head_dim": 128, **TIED}
QWEN25: dict[str, Any] = {"model_type": "qwen2"}
QWEN3: dict[str, Any] = {"model_type": "qwen3", "head_dim": 128}
# Sources: each model's config.json on the Hugging Face Hub.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": _sizes(16, 2048, 32, 8, 8192, 128_256, **LLAMA32 | {"head_dim": 64}),
    "llama-3.2-3b": _sizes(28, 3072, 24, 8, 8192, 128_256, **LLAMA32),
    "qwen-2.5-0.5b": _sizes(24, 896, 14, 2, 4864, 151_936, **QWEN25 | TIED),
    "qwen-2.5-1.5b": _sizes(28, 1536, 12, 2, 8960, 151_936, **QWEN25 | TIED),
    "qwen-2.5-3b": _sizes(36, 2048, 16, 2, 11_008, 151_936, **QWEN25 | TIED),
    "qwen-2.5-7b": _sizes(28, 3584, 28, 4, 18_944, 152_064, **QWEN25),
    "qwen-2.5-14b": _sizes(48, 5120, 40, 8, 13_824, 152_064, **QWEN25),
    "qwen-2.5-32b": _sizes(64, 5120, 40, 8, 27_648, 152_064, **QWEN25),
    "qwen-2.5-72b": _sizes(80, 8192, 64, 8, 29_568, 152_064, **QWEN25),
    "qwen-3-0.6b": _sizes(28, 1024, 16, 8, 3072, 151_936, **QWEN3 | TIED),
    "qwen-3-1.7b": _sizes(28, 2048, 16, 8, 6144, 151_936, **QWEN3 | TIED),
    "qwen-3-4b": _sizes(36, 2560, 32, 8, 9728, 151_936, **QWEN3 | TIED),
    "qwen-3-8b": _sizes(36, 4096, 32, 8, 12_288, 151_936, **QWEN3),
    "qwen-3-14b": _sizes(40, 5120, 40, 8, 17_408, 151_936, **QWEN3),
    "qwen-3-32b": _sizes(64, 5120, 64, 8, 25_600, 151_936, **QWEN3),
    "mistral-7b-v0.3": _sizes(32, 4096, 32, 8, 14_336, 32_768, model_type="mistral", sliding_window=None),
    "phi-3-mini": _sizes(32, 3072, 32, 32, 8192, 32_064, model_type="phi3", sliding_window=2047),
    "gemma-2-2b": _sizes(26, 2304, 8, 4, 9216, 256_000, model_type="gemma2"),
    "gemma-3-1b": _sizes(26, 1152, 4, 1, 6912, 262_144, model_type="gemma3_text", sliding_window=512),
}


def architecture_from_config(
    config: TransformerConfig | str | os.PathLike[str], name: str | None = None
) -> Architecture:
    """Return the architecture that a configuration describes.

    Parameters
    ----------
    config : TransformerConfig, str or PathLike
        A configuration, the path of a config.json, or the path of a folder with a config.json.
    name : str, optional
        Name of the architecture. The default is the path if `config` is a path, and otherwise the `model_type`.

    Returns
    -------
    Architecture
        The architecture. Pass it to `count`, `flops`, `memory` or `report`.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file does not describe a model of a supported family.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np import costs
    >>> model = ln.load_model("tiny")
    >>> costs.architecture_from_config(model.config).parameters == costs.count(model).base
    True
    """
    if not isinstance(config, TransformerConfig):
        path = Path(config)
        path, name = (path / "config.json" if path.is_dir() else path), name or str(config)
        try:
            config = TransformerConfig.from_dict(read_json(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    one_layer = replace(config, num_hidden_layers=1, layer_types=())
    model = Transformer.empty(one_layer)
    block_name, block = next((n, m) for n, m in model.named_modules() if m is model.model.layers[0])
    linears = tuple(
        LinearShape(n, m.out_features, m.in_features, hasattr(m, "bias"))
        for n, m in block.named_modules()
        if isinstance(m, Linear)
    )
    in_block = sum(p.value.size for _, p in block.named_parameters())
    return Architecture(
        name or config.model_type,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
        block_name.removesuffix("0") + "{}",
        linears,
        norm_vectors=2 if config.family.gpt2 else 1,
        positions=config.max_position_embeddings if config.family.gpt2 else 0,
        tied=config.tie_word_embeddings,
        config=config,
        block_norms=in_block - sum(linear.parameters for linear in linears),
    )


def architecture_named(name: str) -> Architecture:
    """Return an architecture, given a name in MODELS or PUBLISHED, or the path of a config.json or of its folder.

    Raises ValueError if the name is unknown and no such file exists.
    """
    if name in MODELS:
        return MODELS[name]
    if name in PUBLISHED:
        return architecture_from_config(TransformerConfig.from_dict(PUBLISHED[name]), name)
    if Path(name).is_file() or (Path(name) / "config.json").is_file():
        return architecture_from_config(name)
    known = ", ".join([*MODELS, *PUBLISHED])
    raise ValueError(f"unknown model {name!r}; use one of {known}, or the path of a config.json")
