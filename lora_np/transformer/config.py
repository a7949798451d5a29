"""The shape of a Transformer, in Hugging Face's words: what its config.json says, and whether that makes a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a model, in the words of a Hugging Face config.json (LlamaConfig). Raises ValueError if it makes none."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in [f.name for f in fields(self) if f.type == "int" and f.name != "head_dim"]:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; expected at least 1")
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not divisible by {self.num_attention_heads} heads")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim = {self.head_dim}; rotary embedding turns pairs of features, so it must be even"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value heads evenly"
            )

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it, with the family's constants."""
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"} | asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """From a config.json's content. Raises ValueError naming another architecture, or the first key that is missing."""
        if config.get("model_type", "llama") != "llama":
            raise ValueError(f"model_type {config['model_type']!r}; only the Llama family is here")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act {config['hidden_act']!r}; the Llama family here uses silu")
        rope = config.get("rope_scaling") or config.get("rope_parameters") or {}  # transformers 4, and 5
        if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise ValueError(f"rope_type {kind!r}; only the plain rotary embedding is here")
        config = {**config, **rope}  # transformers 5 keeps rope_theta there
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"config.json describes no Llama model: {error}") from None
