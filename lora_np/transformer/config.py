"""The configuration of a Transformer, with the names of a Hugging Face config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from .config_checks import check_fields, rope_settings
from .families import FAMILIES, Family

FULL, SLIDING = "full_attention", "sliding_attention"  # the values of layer_types
ACTIVATIONS = ("silu", "gelu_pytorch_tanh", "gelu_new")  # the last two are one function
ROPE_SCALING = {  # rope_type → the keys that it needs
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class TransformerConfig:
    """The sizes of a model, with the names of Hugging Face's configurations. The defaults describe a Llama model.

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
    model_type : str
        The family, a key of FAMILIES in families.py: "llama", "qwen2", ….
    hidden_act : str
        The activation of the MLP: "silu" or "gelu_pytorch_tanh" ("gelu_new" is the same function); "" means the
        activation of the family.
    attention_bias, mlp_bias : bool
        If `attention_bias` is True, q, k, v and o have biases. If `mlp_bias` is True, the MLP's layers have biases.
    rope_scaling : dict, optional
        The scaling of the rotary frequencies, with the entry "rope_type": "linear" or "llama3".
    partial_rotary_factor : float
        The share of the features of a head that are rotated.
    rope_local_base_freq : float, optional
        The base of the rotary frequencies in layers with a sliding window. None means `rope_theta`.
    sliding_window : int, optional
        In layers with a sliding window, a token sees only the last `sliding_window` tokens, including itself.
    layer_types : tuple of str
        The kind of attention of each layer: "full_attention" or "sliding_attention". If empty, the family and
        `sliding_window` decide.
    query_pre_attn_scalar : float, optional
        The attention scores are divided by the square root of this number. None means `head_dim`.
    attn_logit_softcapping, final_logit_softcapping : float, optional
        The soft caps c of the attention scores and of the logits: z becomes c·tanh(z/c).

    Raises
    ------
    ValueError
        If a field has the wrong type or is out of range, if `head_dim` is odd, if `num_key_value_heads` does not divide
        `num_attention_heads`, if `head_dim` is 0 and `num_attention_heads` does not divide `hidden_size`, or if a
        feature is unknown.

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
    model_type: str = "llama"
    hidden_act: str = ""  # "": the activation of the family
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    rope_local_base_freq: float | None = None
    sliding_window: int | None = None
    layer_types: tuple[str, ...] = ()
    query_pre_attn_scalar: float | None = None
    attn_logit_softcapping: float | None = None
    final_logit_softcapping: float | None = None

    def __post_init__(self) -> None:
        if self.model_type not in FAMILIES:
            raise ValueError(f"model_type is {self.model_type!r}; expected one of {', '.join(FAMILIES)}")
        if not self.hidden_act:
            object.__setattr__(self, "hidden_act", self.family.hidden_act)
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act is {self.hidden_act!r}; expected one of {', '.join(ACTIVATIONS)}")
        check_fields(self)
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} is not divisible by {self.num_attention_heads} heads; choose a multiple, "
                    "or give head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2 and not self.family.gpt2:
            raise ValueError(
                f"head_dim = {self.head_dim}; head_dim must be even, because rotary embedding rotates pairs of features"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key/value heads evenly; "
                "num_key_value_heads must divide num_attention_heads"
            )

        if not isinstance(self.partial_rotary_factor, int | float) or not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(f"partial_rotary_factor = {self.partial_rotary_factor!r:.80}; expected a number in (0, 1]")
        if self.rotary_dim % 2:
            raise ValueError(
                f"partial_rotary_factor = {self.partial_rotary_factor} rotates {self.rotary_dim} of {self.head_dim} features; "
                "expected an even number"
            )
        if self.family.gpt2 and (self.head_dim * self.num_key_value_heads, self.num_attention_heads) != (
            self.hidden_size,
            self.num_key_value_heads,
        ):
            raise ValueError("gpt2 needs num_key_value_heads = num_attention_heads and head_dim = hidden_size / heads")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int | float) or not 0 < value < float("inf")):
                raise ValueError(f"{name} = {value!r:.80}; expected a positive number")
        self._check_rope_scaling()
        self._check_layer_types()

    def _check_rope_scaling(self) -> None:
        if (scaling := self.rope_scaling) is None:
            return
        if not isinstance(kind := scaling.get("rope_type"), str) or kind not in ROPE_SCALING:
            raise ValueError(f"rope_type is {kind!r}; expected 'default', {' or '.join(map(repr, ROPE_SCALING))}")
        for key in ROPE_SCALING[kind]:
            value = scaling.get(key)
            if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
                raise ValueError(f"rope_scaling of type {kind!r}: {key} is {value!r}; expected a positive number")
        if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
            raise ValueError(
                f"rope_scaling of type 'llama3': low_freq_factor = {scaling['low_freq_factor']} must be below "
                f"high_freq_factor = {scaling['high_freq_factor']}"
            )

    def _check_layer_types(self) -> None:
        window = self.sliding_window
        if window is not None and (not isinstance(window, int) or isinstance(window, bool) or window < 1):
            raise ValueError(
                f"sliding_window = {window!r:.80}; expected an integer of at least 1, or null for no window"
            )
        if not isinstance(self.layer_types, tuple) or not all(isinstance(kind, str) for kind in self.layer_types):
            raise ValueError(f"layer_types = {self.layer_types!r:.80}; expected a list of {FULL!r} and {SLIDING!r}")
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        if unknown := set(self.layer_types) - {FULL, SLIDING}:
            raise ValueError(f"layer_types contains {min(unknown)!r}; expected {FULL!r} or {SLIDING!r}")
        if SLIDING in self.layer_types and self.sliding_window is None:
            raise ValueError(f"layer_types contains {SLIDING!r}, but sliding_window is missing")

    @property
    def family(self) -> Family:
        """The differences of this model's family from Llama."""
        return FAMILIES[self.model_type]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of attention of each layer: `layer_types`, or the rule of the family if `layer_types` is empty."""
        layers, every = range(1, self.num_hidden_layers + 1), self.family.full_every
        if self.layer_types or self.sliding_window is None:
            return self.layer_types or (FULL,) * self.num_hidden_layers
        return tuple(FULL if every and i % every == 0 else SLIDING for i in layers)

    @property
    def rotary_dim(self) -> int:
        """The number of features of a head that are rotated."""
        return 0 if self.family.gpt2 else int(self.head_dim * self.partial_rotary_factor)

    def rope(self, kind: str) -> tuple[float, Mapping[str, Any] | None]:
        """Return θ and the scaling of the rotary frequencies in the layers of one kind.

        Parameters
        ----------
        kind : str
            "full_attention" or "sliding_attention".

        Returns
        -------
        theta : float
            The base of the frequencies.
        scaling : dict or None
            As `rope_scaling`.
        """
        if kind == SLIDING and self.rope_local_base_freq is not None:
            return self.rope_local_base_freq, None
        return self.rope_theta, self.rope_scaling

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a Hugging Face config.json.

        Returns
        -------
        dict
            `model_type`, `architectures`, and the fields that this family has.
        """
        family, values = self.family, asdict(self)
        for f in fields(self):
            if f.name in OPTIONAL - family.defaults.keys() and values[f.name] == f.default:
                del values[f.name]
        del values["model_type"], values["hidden_act"]
        settings: dict[str, Any] = {"model_type": self.model_type, "architectures": [family.architecture]}
        settings |= family.written
        settings |= {family.keys.get("hidden_act", "hidden_act"): self.hidden_act}
        settings |= {
            family.keys.get(name, name): value for name, value in values.items() if family.keys.get(name) != ""
        }
        if "use_sliding_window" in family.defaults and self.sliding_window is not None:
            settings |= {"use_sliding_window": True, "layer_types": list(self.kinds)}
        return settings

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
            If the architecture or a feature is not supported, or if a key is missing or invalid.
        """
        model_type = config.get("model_type", "llama")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise ValueError(f"model_type is {model_type!r}; expected one of {', '.join(FAMILIES)}")
        family = FAMILIES[model_type]
        for key, value in family.fixed.items():
            if config.get(key) not in (None, value):
                raise ValueError(f"{key} is {config[key]!r}; {model_type} models with this feature are not supported")
        try:
            settings = {**family.defaults, **config, **_rope(config)}
            settings |= {name: settings.get(key) for name, key in family.keys.items()}
            settings |= _windows(settings, family)
            known = {f.name: settings[f.name] for f in fields(cls) if settings.get(f.name) is not None}
            if isinstance(heads := known.get("num_attention_heads"), int):
                known.setdefault("num_key_value_heads", heads)
            if family.gpt2 and isinstance(width := known.get("hidden_size"), int):
                known.setdefault("intermediate_size", 4 * width)
            return cls(**known)
        except TypeError as error:
            raise ValueError(f"config.json does not describe a {model_type} model: {error}") from None


MOST_LAYERS = 10_000  # largest number of layers whose types are listed
POSITIVE = ("rope_local_base_freq", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping")
OPTIONAL = {  # to_dict leaves these fields out if they have their default values, and if their family has no other default
    "attention_bias",
    "mlp_bias",
    "rope_scaling",
    "partial_rotary_factor",
    "rope_local_base_freq",
    "sliding_window",
    "layer_types",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
}


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the rotary embedding. Their layout in config.json depends on the version of transformers.

    transformers 4 writes rope_theta, partial_rotary_factor and rope_local_base_freq as separate keys, and the other
    numbers in rope_scaling. transformers 5 writes all numbers in rope_parameters. For Gemma 3, rope_parameters contains
    one object per kind of layer.
    """
    rope: Mapping[str, Any] = rope_settings(config)
    found: dict[str, Any] = {}
    if SLIDING in rope or FULL in rope:
        local, rope = _object(SLIDING, rope.get(SLIDING)), _object(FULL, rope.get(FULL))
        if (kind := local.get("rope_type", "default")) != "default":
            raise ValueError(f"rope_type of {SLIDING} is {kind!r}; only 'default' is supported")
        found["rope_local_base_freq"] = local.get("rope_theta", config.get("rope_local_base_freq"))
    found |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    kind = rope.get("rope_type", rope.get("type", "default"))
    found["rope_scaling"] = None
    if kind != "default":
        keys = ROPE_SCALING.get(kind, ()) if isinstance(kind, str) else ()
        found["rope_scaling"] = {"rope_type": kind, **{key: rope.get(key) for key in keys}}
    return found


def _object(name: str, value: Any) -> Mapping[str, Any]:
    """Return a JSON object, or {} for null."""
    if not isinstance(value, Mapping | None):
        raise ValueError(f'{name} is {value!r:.80}; expected null or an object such as {{"rope_type": "default"}}')
    return value or {}


def _windows(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return `sliding_window` and `layer_types`, which the families describe with different keys.

    Qwen has `use_sliding_window`, and the window is in the layers from `max_window_layers` upwards. Gemma 3 can have
    `sliding_window_pattern`: each n-th layer sees all tokens.
    """
    window, kinds, layers = (
        settings.get("sliding_window"),
        settings.get("layer_types"),
        settings.get("num_hidden_layers", 0),
    )
    qwen = "use_sliding_window" in family.defaults
    if not family.windowed or window is None or (qwen and not settings["use_sliding_window"]):
        return {"sliding_window": None, "layer_types": None}
    if kinds is not None:
        return {"layer_types": tuple(kinds) if isinstance(kinds, list | tuple) else kinds}
    if not qwen and ("sliding_window_pattern" not in settings or not family.qk_norm):
        return {}
    number = settings["max_window_layers" if qwen else "sliding_window_pattern"]
    for name, value in (("num_hidden_layers", layers), ("max_window_layers or sliding_window_pattern", number)):
        if not isinstance(value, int) or not 0 <= value <= MOST_LAYERS:
            raise ValueError(f"{name} = {value!r:.80}; expected an integer from 0 to {MOST_LAYERS}")
    if qwen:
        return {"layer_types": tuple(SLIDING if i >= number else FULL for i in range(layers))}
    return {"layer_types": tuple(SLIDING if number and i % number else FULL for i in range(1, layers + 1))}
