"""Prefix tuning: trained keys and values before the tokens' keys and values, in each layer (Li and Liang 2021, arXiv 2101.00190).

    softmax(q [K_prefix, K]ᵀ / √d) [V_prefix, V]          in each layer and key/value head; the base is frozen

The prefix is passed in `past_key_values` (transformer/cache.py), as if v tokens came before the first token. As in
PEFT, the v prefix keys are not rotated, and the first token has position v. Attention to the prefix therefore depends
on absolute positions. A row with padding on its left needs its own position_ids; `generate` sets them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array, array_module, move, to_host
from ..nn import Embedding, Module, Parameter
from ..ops.checks import check_mask
from ..ops.linear import LinearCache
from ..transformer import KeyValueCache, Transformer
from .adapter import AdapterLinear, upcast
from .choices import Choice, Option
from .config import PeftConfig, check_choice, check_whole
from .cost import PrefixCost
from .files import COMMON_SETTINGS, check_arrays, to_python
from .method import AdapterHost, Method

TENSOR = (
    "prompt_embeddings"  # the only tensor of a file: the keys and values (v, 2L·kv), trained with or without an MLP
)

SIZES = ("num_layers", "num_attention_heads", "token_dim")  # sizes of the base in PEFT's file


@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig(PeftConfig):
    """The configuration of prefix tuning, with PEFT's names and meanings.

    Parameters
    ----------
    task_type : str or None, default None
        None or "CAUSAL_LM".
    inference_mode : bool, default False
        Must be False. To freeze an adapter, call `PeftModel.set_adapter(name, inference_mode=True)`.
    num_virtual_tokens : int, default 20
        Number v of virtual tokens: each layer gets v keys and v values.
    prefix_projection : bool, default False
        True: during training, an MLP (Linear, tanh, Linear) computes the prefix from the trained matrix E. Only the
        resulting keys and values are saved. The paper uses the MLP because direct training is sensitive to the learning
        rate (section 4.3).
    encoder_hidden_size : int or None, default None
        Width of the MLP. None: the width of a key, kv_heads·head_dim.
    init_weights : "zero" or None, default None
        None: all parameters are initialised as in PyTorch's Embedding and Linear, so E is normal with standard
        deviation 1. "zero": keys and values start at zero. A zero key still gets attention weight, so "zero" changes
        the model's output, although PEFT calls this initialisation a no-op.
    num_layers, num_attention_heads, token_dim : int or None, default None
        Number of layers, number of key/value heads, and kv_heads·head_dim of the base. None: the value is taken from
        the base. A value that differs from the size of the base raises ValueError.
    base_model_name_or_path : str, path or None, default None
        Name of the base model. The name is saved with the adapter and has no other effect.

    Raises
    ------
    ValueError
        If a value is out of range.
    TypeError
        If a number is not an integer.

    Examples
    --------
    >>> import lora_np as ln
    >>> ln.costs.count("llama-2-7b", ln.PrefixTuningConfig(num_virtual_tokens=20)).trainable
    5242880
    """

    num_virtual_tokens: int = 20
    prefix_projection: bool = False
    encoder_hidden_size: int | None = None
    init_weights: Literal["zero"] | None = None
    num_layers: int | None = None
    num_attention_heads: int | None = None
    token_dim: int | None = None
    base_model_name_or_path: str | os.PathLike[str] | None = None

    switches = ("prefix_projection",)

    def check(self) -> None:
        """Check all fields. Raises ValueError or TypeError; the message names the wrong field."""
        check_whole("num_virtual_tokens", self.num_virtual_tokens, 1)
        for name in ("encoder_hidden_size", *SIZES):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        check_choice("init_weights", self.init_weights, None, "zero")


PrefixEncoderCache: TypeAlias = tuple[LinearCache, Array, LinearCache]  # W₀, a = tanh(h) (v, m), W₂


class PrefixEncoder(Module):
    """The module that computes a prefix P: the keys and values of the virtual tokens in all layers.

        P = E                                   E (v, 2L·kv): without an MLP
        P = tanh(E W₀ᵀ + b₀) W₂ᵀ + b₂           E (v, kv), W₀ (m, kv), W₂ (2L·kv, m): with an MLP

    Here kv = g·d for g key/value heads of size d. Each row of P contains layer 0's keys, layer 0's values, layer 1's
    keys, …. The names and the order of the parameters are the same as in PEFT's PrefixEncoder.

    Parameters
    ----------
    embedding : ndarray, shape (v, 2L·kv) or (v, kv)
        E.
    heads : (int, int, int)
        (2L, g, d).
    transform : list of AdapterLinear, optional
        The two linear layers of the MLP.

    Examples
    --------
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.PrefixTuningConfig(num_virtual_tokens=3))
    >>> P, _ = peft_model.prompt_encoder["default"].forward("float32")
    >>> P.shape
    (3, 10, 2, 32)
    """

    def __init__(
        self, embedding: Array, heads: tuple[int, int, int], transform: list[AdapterLinear] | None = None
    ) -> None:
        self.embedding = Embedding(embedding)
        self.transform = {
            str(2 * i): linear for i, linear in enumerate(transform or [])
        }  # keys "0" and "2": PyTorch's Sequential counts the tanh as "1"
        self.heads = heads  # 2L, g, d

    def cost(self) -> PrefixCost:
        """Return the cost that the prefix adds to a training step.

        Returns
        -------
        PrefixCost
            The cost.
        """
        table, (both, g, d) = self.embedding.weight, self.heads
        hidden = self.transform["0"].out_features if self.transform else 0
        return PrefixCost(table.value.shape[0], both // 2, g * d, hidden, table.trainable, table.value.itemsize == 2)

    def forward(self, dtype: DTypeLike) -> tuple[Array, PrefixEncoderCache | None]:
        """Compute the prefix.

        Parameters
        ----------
        dtype : dtype
            Parameters stored in 16 bits are upcast to this dtype.

        Returns
        -------
        P : ndarray, shape (v, 2L, g, d)
            Keys and values.
        cache : tuple or None
            Values that `backward` needs; None without an MLP.
        """
        E = upcast(dtype, self.embedding.weight.value)
        if not self.transform:
            return E.reshape(-1, *self.heads), None
        h, cache_0 = self.transform["0"].forward(E)  # (v, kv) → (v, m)
        a = array_module(h).tanh(h)
        P, cache_2 = self.transform["2"].forward(a)  # (v, m) → (v, 2L·kv)
        return P.reshape(-1, *self.heads), (cache_0, a, cache_2)

    def backward(self, dP: Array, cache: PrefixEncoderCache | None) -> None:
        """Add the gradients of the encoder's parameters to their `grad`.

        In the forward pass a = tanh(h), so dh = da ∘ (1 − a²). Each row of E is one virtual token. E is the input of
        the first layer, without a lookup, so dE is the gradient of this input.

        Parameters
        ----------
        dP : ndarray, shape (v, 2L, g, d)
            Gradient of the prefix.
        cache : tuple or None
            From `forward`.
        """
        dP = dP.reshape(dP.shape[0], -1)
        dE: Array | None = dP
        if cache is not None:
            cache_0, a, cache_2 = cache
            da = self.transform["2"].backward(dP, cache_2)
            assert da is not None
            dE = self.transform["0"].backward(da * (1 - a * a), cache_0)
        if self.embedding.weight.trainable:
            self.embedding.weight.add_grad(dE)


KEYS = "number of positions of the prefix, each with a key and a value per layer (default {})"
OPTIONS = {
    "num_virtual_tokens": Option(PrefixTuningConfig.num_virtual_tokens, KEYS, "N", int),
    "prefix_projection": Option(PrefixTuningConfig.prefix_projection, "train the prefix through an MLP (default: no)"),
    "encoder_hidden_size": Option(
        None, "width of the MLP of --prefix-projection (default: width of a layer's keys)", "M", int
    ),
}


class PrefixMethod(Method):
    """Prefix tuning: each adapter is a PrefixEncoder in `PeftModel.prompt_encoder`.

    Each key/value cache starts with the keys and values of the prefix.
    """

    config_type = PrefixTuningConfig
    peft_type = "PREFIX_TUNING"
    fixed_settings: ClassVar[Mapping[str, Any]] = {
        **COMMON_SETTINGS,
        "num_transformer_submodules": 1,
        "modules_to_save": None,
    }
    accepted_keys = ("num_transformer_submodules",)
    choices: ClassVar[Mapping[str, Choice]] = {"prefix": Choice(3e-2, PrefixTuningConfig, OPTIONS)}
    example = PrefixTuningConfig(num_virtual_tokens=3)

    def add(self, host: AdapterHost, name: str, config: PrefixTuningConfig, seed: int) -> None:
        """Add a new prefix.

        Random numbers are drawn in host memory, so that a seed gives the same prefix on every device.
        """
        check_peft_sizes(config, host.model)
        rng, v, zero = np.random.default_rng(seed), config.num_virtual_tokens, config.init_weights == "zero"
        heads, (kv, width) = prefix_layout(host.model), prefix_widths(host.model)
        if not config.prefix_projection:
            self._put(host, name, np.zeros((v, width)) if zero else rng.standard_normal((v, width)), heads)
            return
        m = config.encoder_hidden_size or kv
        embedding, transform = rng.standard_normal((v, kv)), []
        for out, in_ in ((m, kv), (width, m)):
            bound = 0 if zero and out == width else 1 / math.sqrt(in_)
            transform.append((rng.uniform(-bound, bound, (out, in_)), rng.uniform(-bound, bound, out)))
        self._put(host, name, embedding, heads, transform)

    def _put(self, host: AdapterHost, name: str, embedding: Array, heads: tuple, transform: Any = ()) -> None:
        like = host.model.model.norm.weight.value

        def moved(x: np.ndarray) -> Array:
            return move(x.astype(host.storage_dtype), like)

        linears = [AdapterLinear(moved(W), moved(b)) for W, b in transform]
        host.prompt_encoder[name] = PrefixEncoder(moved(embedding), heads, linears)

    def restore(
        self, host: AdapterHost, name: str, config: PrefixTuningConfig, arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Add a saved prefix. Further training uses no MLP, even if the prefix was trained with an MLP."""
        check_peft_sizes(config, host.model)
        shape = config.num_virtual_tokens, prefix_widths(host.model)[1]
        check_arrays(arrays, {TENSOR: shape}, host.storage_dtype)
        self._put(host, name, arrays[TENSOR], prefix_layout(host.model))

    def delete(self, host: AdapterHost, name: str) -> None:
        """Delete the encoder of the adapter `name`."""
        del host.prompt_encoder[name]

    def parameters(self, host: AdapterHost, name: str) -> Iterator[Parameter]:
        """Yield the parameters of the encoder: E, and the weights and biases of the MLP."""
        for _, p in host.prompt_encoder[name].named_parameters():
            yield p

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """Return the prefix P as one array. The MLP is not saved.

        Without an MLP, P is E in its storage dtype. If an MLP computes P, P is saved in the base's dtype, because
        rounding P to 16 bits would change the model's outputs.
        """
        encoder = host.prompt_encoder[name]
        stored = encoder.embedding.weight.value
        P = encoder.forward(host.model.model.norm.weight.value.dtype)[0] if encoder.transform else stored
        return {TENSOR: to_host(P.reshape(len(stored), -1))}

    def settings(self, config: PrefixTuningConfig, model: Transformer) -> dict[str, Any]:
        """Return the settings for the file, including the sizes of the base, as in PEFT."""
        hidden = to_python(config.encoder_hidden_size) or prefix_widths(model)[0]
        return super().settings(config, model) | peft_sizes(model) | {"encoder_hidden_size": hidden}

    def config(self, settings: Mapping[str, Any]) -> PrefixTuningConfig:
        """Return the configuration for the settings of a file.

        Raises ValueError for settings that this library does not support.
        """
        if settings.get("num_transformer_submodules") not in (None, 1):
            raise ValueError(
                f"num_transformer_submodules is {settings['num_transformer_submodules']}; expected 1, as for a decoder"
            )
        if settings.get("num_virtual_tokens") is None:
            raise ValueError("num_virtual_tokens is missing")
        return super().config(settings)

    def prefix_cost(self, config: PrefixTuningConfig, layers: int, kv: int) -> PrefixCost:
        """Return the cost of the prefix, with its MLP if `prefix_projection` is True."""
        hidden = int(config.encoder_hidden_size or kv) if config.prefix_projection else 0
        return PrefixCost(int(config.num_virtual_tokens), layers, kv, hidden)


def prefix_layout(model: Transformer) -> tuple[int, int, int]:
    """Return the shape (2L, g, d) of one virtual token, for L layers, g key/value heads and d features per head.

    The factor 2 counts keys and values.
    """
    return 2 * model.config.num_hidden_layers, model.config.num_key_value_heads, model.config.head_dim


def prefix_widths(model: Transformer) -> tuple[int, int]:
    """Return kv = g·d, the size of one key, and 2L·kv, the number of floats per virtual token."""
    both, g, d = prefix_layout(model)
    return g * d, both * g * d


def peft_sizes(model: Transformer) -> dict[str, int]:
    """Return the sizes of the base, as PEFT writes them into the file."""
    both, g, d = prefix_layout(model)
    return dict(zip(SIZES, (both // 2, g, g * d), strict=True))


def check_peft_sizes(config: PrefixTuningConfig, model: Transformer) -> None:
    """Raise ValueError if the configuration was made for a base model with other sizes.

    A prefix for another base can have tensors of the same shapes, so a check of the shapes is not sufficient.
    """
    for name, size in peft_sizes(model).items():
        if getattr(config, name) not in (None, size):
            raise ValueError(
                f"{name} is {getattr(config, name)}, but this base has {size}; the prefix was made for another base"
            )


def check_prefix_of_past(past: KeyValueCache | None, named: tuple[str, PrefixEncoder] | None) -> None:
    """Raise ValueError if a filled key/value cache and this call use different prefixes."""
    if past is not None and len(past) and past.prefix_source != named:
        was, now = (f"the prefix of {each[0]!r}" if each else "no prefix" for each in (past.prefix_source, named))
        now = f"another prefix called {named[0]!r}" if named and was == now else now
        raise ValueError(
            f"past_key_values was filled with {was}, but this call uses {now}; use a new cache for this call"
        )


def extend_mask_over_prefix(attention_mask: Array, v: int, b: int, s: int) -> Array:
    """Return the mask (b, v + s) for the token mask (b, s), with True for the v positions of the prefix.

    Raises the same errors as `check_mask`.
    """
    check_mask(attention_mask, b, s)
    xp = array_module(attention_mask)
    return xp.concatenate([xp.ones((b, v), bool), attention_mask], axis=1)
