"""Prefix tuning: trained keys and values, of no token, before those of each layer (Li and Liang 2021, arXiv 2101.00190).

    softmax(q [K_prefix, K]ᵀ / √d) [V_prefix, V]          in each layer and key/value head, the base being frozen

The prefix is passed in `past_key_values` (transformer/cache.py), as if v tokens came before the first token. As in PEFT,
the v prefix keys are not rotated, and the first token has position v. Attention to the prefix therefore depends on absolute
positions. A row with padding on its left needs its own position_ids; `generate` sets them.
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
    "prompt_embeddings"  # all that a file holds: (v, 2L·kv), the keys and values themselves, with or without an MLP
)

SIZES = ("num_layers", "num_attention_heads", "token_dim")  # what PEFT's file says of the base


@dataclass(frozen=True, kw_only=True)
class PrefixTuningConfig(PeftConfig):
    """How long a prefix, and how it is trained, with PEFT's names and meanings.

    num_virtual_tokens: v, how many keys and values each layer gets.
    prefix_projection: train them through an MLP, E → Linear → tanh → Linear, that is thrown away when they are saved. The
        paper trains so because the plain ones are sensitive to the learning rate (section 4.3).
    encoder_hidden_size: the width of that MLP; None takes that of a key, kv_heads·head_dim.
    init_weights: None draws the numbers as PyTorch draws an Embedding's and a Linear's, E normal with std 1; "zero" begins with
        keys and values of zero. PEFT calls this a no-op, but it changes the output: softmax also gives weight to a key of zero.
    num_layers, num_attention_heads, token_dim: the base's layers, its key/value heads, and kv_heads·head_dim. None reads
        the value from the base. A given value must equal the base's value.
    base_model_name_or_path: what the prefix was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range, TypeError for a number that is not whole.
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
        """Raise ValueError or TypeError for a field out of range, naming it."""
        check_whole("num_virtual_tokens", self.num_virtual_tokens, 1)
        for name in ("encoder_hidden_size", *SIZES):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), 1)
        check_choice("init_weights", self.init_weights, None, "zero")


PrefixEncoderCache: TypeAlias = tuple[LinearCache, Array, LinearCache]  # of W₀, a = tanh(h) (v, m), of W₂


class PrefixEncoder(Module):
    """The keys and values of all layers, (v, 2L, g, d): a table of them, or an MLP over a smaller table.

        P = E                                   E (v, 2L·kv)
        P = tanh(E W₀ᵀ + b₀) W₂ᵀ + b₂           E (v, kv), W₀ (m, kv), W₂ (2L·kv, m)

    with kv = g·d of g key/value heads. Row by row P holds layer 0's keys, layer 0's values, layer 1's keys, … The names, and
    that order, are those of PEFT's PrefixEncoder.
    """

    def __init__(
        self, embedding: Array, heads: tuple[int, int, int], transform: list[AdapterLinear] | None = None
    ) -> None:
        self.embedding = Embedding(embedding)
        self.transform = {str(2 * i): linear for i, linear in enumerate(transform or [])}  # PyTorch counts the tanh too
        self.heads = heads  # 2L, g, d

    def cost(self) -> PrefixCost:
        """What it adds to a step."""
        table, (both, g, d) = self.embedding.weight, self.heads
        hidden = self.transform["0"].out_features if self.transform else 0
        return PrefixCost(table.value.shape[0], both // 2, g * d, hidden, table.trainable, table.value.itemsize == 2)

    def forward(self, dtype: DTypeLike) -> tuple[Array, PrefixEncoderCache | None]:
        """P (v, 2L, g, d), in `dtype` where it is stored in 16 bits."""
        E = upcast(dtype, self.embedding.weight.value)
        if not self.transform:
            return E.reshape(-1, *self.heads), None
        h, cache_0 = self.transform["0"].forward(E)  # (v, kv) → (v, m)
        a = array_module(h).tanh(h)
        P, cache_2 = self.transform["2"].forward(a)  # (v, m) → (v, 2L·kv)
        return P.reshape(-1, *self.heads), (cache_0, a, cache_2)

    def backward(self, dP: Array, cache: PrefixEncoderCache | None) -> None:
        """Adds the gradients for dP (v, 2L, g, d).

        In the forward pass a = tanh(h), so now dh = da ∘ (1 − a²); the two products are undone by `ops.linear_backward`. No
        table is looked up in: each of its rows is one virtual token, so dE is what comes out below.
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


KEYS = "positions of the prefix, each with a key and a value per layer (default {})"
OPTIONS = {
    "num_virtual_tokens": Option(PrefixTuningConfig.num_virtual_tokens, KEYS, "N", int),
    "prefix_projection": Option(PrefixTuningConfig.prefix_projection, "train the prefix through an MLP (default: no)"),
    "encoder_hidden_size": Option(
        None, "width of the MLP of --prefix-projection (default: width of a layer's keys)", "M", int
    ),
}


class PrefixMethod(Method):
    """A PrefixEncoder beside the base, in `PeftModel.prompt_encoder`. Its keys and values begin each key/value cache."""

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
        """Draw E, and W and b of the MLP uniform in ±1/√in, on the host, so that a seed means the same on every device."""
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
        dtype = host.adapter_dtype or like.dtype

        def moved(x: np.ndarray) -> Array:
            return move(x.astype(dtype), like)

        linears = [AdapterLinear(moved(W), moved(b)) for W, b in transform]
        host.prompt_encoder[name] = PrefixEncoder(moved(embedding), heads, linears)

    def restore(
        self, host: AdapterHost, name: str, config: PrefixTuningConfig, arrays: Mapping[str, np.ndarray]
    ) -> None:
        """The keys and values themselves, which then train without an MLP, whatever they were trained with before."""
        check_peft_sizes(config, host.model)
        check_arrays(arrays, {TENSOR: (config.num_virtual_tokens, prefix_widths(host.model)[1])})
        self._put(host, name, arrays[TENSOR], prefix_layout(host.model))

    def delete(self, host: AdapterHost, name: str) -> None:
        """Forget the encoder."""
        del host.prompt_encoder[name]

    def parameters(self, host: AdapterHost, name: str) -> Iterator[Parameter]:
        """E, and W and b of the MLP."""
        for _, p in host.prompt_encoder[name].named_parameters():
            yield p

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """P as one table, in the dtype that it is stored in: the MLP has done its work and is not saved."""
        encoder = host.prompt_encoder[name]
        P, _ = encoder.forward(host.model.model.norm.weight.value.dtype)
        return {TENSOR: to_host(P.reshape(P.shape[0], -1).astype(encoder.embedding.weight.value.dtype))}

    def settings(self, config: PrefixTuningConfig, model: Transformer) -> dict[str, Any]:
        """With the sizes of the base, as PEFT writes them."""
        hidden = to_python(config.encoder_hidden_size) or prefix_widths(model)[0]
        return super().settings(config, model) | peft_sizes(model) | {"encoder_hidden_size": hidden}

    def config(self, settings: Mapping[str, Any]) -> PrefixTuningConfig:
        """From PEFT's file."""
        if settings.get("num_transformer_submodules") not in (None, 1):
            raise ValueError(
                f"num_transformer_submodules is {settings['num_transformer_submodules']}; a decoder is one"
            )
        if settings.get("num_virtual_tokens") is None:
            raise ValueError("num_virtual_tokens is not there")
        return super().config(settings)

    def prefix_cost(self, config: PrefixTuningConfig, layers: int, kv: int) -> PrefixCost:
        """With the MLP, if it trains through one."""
        hidden = int(config.encoder_hidden_size or kv) if config.prefix_projection else 0
        return PrefixCost(int(config.num_virtual_tokens), layers, kv, hidden)


def prefix_layout(model: Transformer) -> tuple[int, int, int]:
    """2L, g, d: the keys and the values of each layer, its key/value heads, and a head's size."""
    return 2 * model.config.num_hidden_layers, model.config.num_key_value_heads, model.config.head_dim


def prefix_widths(model: Transformer) -> tuple[int, int]:
    """kv = g·d, and 2L·kv: the numbers that a virtual token has in one key, and in all."""
    both, g, d = prefix_layout(model)
    return g * d, both * g * d


def peft_sizes(model: Transformer) -> dict[str, int]:
    """What PEFT says of a base."""
    both, g, d = prefix_layout(model)
    return dict(zip(SIZES, (both // 2, g, g * d), strict=True))


def check_peft_sizes(config: PrefixTuningConfig, model: Transformer) -> None:
    """Raise ValueError where the configuration is for a base of other sizes: equal shapes may hide other heads."""
    for name, size in peft_sizes(model).items():
        if getattr(config, name) not in (None, size):
            raise ValueError(f"{name} is {getattr(config, name)}, and {size} in this base: made for another one")


def check_prefix_of_past(past: KeyValueCache | None, named: tuple[str, PrefixEncoder] | None) -> None:
    """Raise ValueError where a past with tokens was not begun by the prefix of this call: it would answer as neither does."""
    if past is not None and len(past) and past.prefix_source != named:
        was, now = (f"the prefix of {each[0]!r}" if each else "no prefix" for each in (past.prefix_source, named))
        now = f"another one called {named[0]!r}" if named and was == now else now
        raise ValueError(f"past_key_values began with {was}, and this call has {now}: give it a past of its own")


def extend_mask_over_prefix(attention_mask: Array, v: int, b: int, s: int) -> Array:
    """The mask (b, s) of the tokens → (b, v + s): no row's prefix is padding. Raises as `check_mask` does."""
    check_mask(attention_mask, b, s)
    xp = array_module(attention_mask)
    return xp.concatenate([xp.ones((b, v), bool), attention_mask], axis=1)
