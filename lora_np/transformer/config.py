"""The configuration of a Transformer, with the names of a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .config_checks import check_fields, rope_settings


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a Llama model, with the names of Hugging Face's LlamaConfig.

    Parameters
    ----------
    vocab_size : int
        Number of different tokens.
    hidden_size : int
        Width of the residual stream.
    intermediate_size : int
        Width of the MLP.
    num_hidden_layers : int
        Number of decoder blocks.
    num_attention_heads : int
        Number of query heads.
    num_key_value_heads : int
        Number of key and value heads; it must divide `num_attention_heads`.
    head_dim : int
        Size of one head, an even number; 0 means hidden_size / num_attention_heads.
    rms_norm_eps : float
        The ε of RMSNorm.
    rope_theta : float
        The base of the rotary frequencies.
    max_position_embeddings : int
        Longest sequence in tokens.
    tie_word_embeddings : bool
        If True, the embedding matrix is also the weight of the output head.

    Raises
    ------
    ValueError
        If a field has the wrong type or is out of range, if `head_dim` is odd, or if a division described above leaves a
        remainder.

    Examples
    --------
    >>> import lora_np as ln
    >>> config = ln.TransformerConfig(
    ...     vocab_size=256,
    ...     hidden_size=64,
    ...     intermediate_size=128,
    ...     num_hidden_layers=2,
    ...     num_attention_heads=4,
    ...     num_key_value_heads=2,
    ... )
    >>> config.head_dim
    16
    """

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
        check_fields(self)
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not divisible by {self.num_attention_heads} heads: choose a multiple, "
                    "or give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim = {self.head_dim}; head_dim must be even, because rotary embedding rotates pairs of features"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value heads evenly: "
                "num_key_value_heads must divide num_attention_heads"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a Hugging Face config.json.

        Returns
        -------
        dict
            All fields of the configuration, and the entries that are equal for every Llama model, such as `model_type`.
        """
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu"} | asdict(self)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TransformerConfig:
        """Make a configuration from the content of a Hugging Face config.json.

        Parameters
        ----------
        config : dict
            The content of the file. Keys that are not fields of this class are ignored.

        Returns
        -------
        TransformerConfig
            The configuration.

        Raises
        ------
        ValueError
            If the architecture is not Llama, if a feature is not supported, or if a key is missing or invalid.
        """
        if config.get("model_type", "llama") != "llama":
            raise ValueError(f"model_type is {config['model_type']!r}; only the Llama family is supported")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act is {config['hidden_act']!r}; only silu is supported")
        rope = rope_settings(config)
        if (kind := rope.get("rope_type", rope.get("type", "default"))) != "default":
            raise ValueError(f"rope_type is {kind!r}; only the plain rotary embedding ('default') is supported")
        config = {**config, **rope}  # in transformers 5, rope_theta is inside rope_parameters
        known = {f.name: config[f.name] for f in fields(cls) if config.get(f.name) is not None}
        try:
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"config.json does not describe a Llama model: {error}") from None
