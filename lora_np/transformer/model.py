"""The Llama family: a decoder-only Transformer, with Hugging Face's names, that knows nothing of LoRA.

    tokens → decoder → head → logits → cross-entropy against the tokens shifted by one

The decoder's blocks are in decoder.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array, array_module, move
from ..nn import Cache, Context, Embedding, Linear, Module, RMSNorm
from ..ops.loss import CrossEntropyCache
from .cache import KeyValueCache
from .config import TransformerConfig
from .decoder import MLP, Attention, Block, Decoder, DecoderCache

LogitsCache: TypeAlias = tuple[DecoderCache, Cache]  # the decoder's, the head's
# the loss's, the head's, which of the b·t positions count (None: all), (b, t, d), the decoder's
LossCache: TypeAlias = tuple[CrossEntropyCache, Cache, Array | None, tuple[int, ...], DecoderCache]


class Transformer(Module):
    """A causal language model: logits and loss from tokens, gradients from the loss.

    Build one with random weights by `Transformer.random(config)`, or from files by `load_model`. The parameters start
    trainable; `freeze()` stops that.
    """

    # Hugging Face's names for load_model and save_model. pretrained/models.py sets both: this module may not import it.
    from_pretrained: ClassVar[Callable[..., Transformer]]
    save_pretrained: ClassVar[Callable[[Transformer, str | PathLike[str]], None]]

    def __init__(self, config: TransformerConfig, model: Decoder, lm_head: Linear | None) -> None:
        self.config = config
        self.model = model
        if lm_head is not None:  # otherwise tied: the embedding's table is the head's weight too
            self.lm_head = lm_head

    def extra_repr(self) -> str:
        """Where the head is, if it is no module of its own."""
        return "" if hasattr(self, "lm_head") else "lm_head is tied to model.embed_tokens"

    @classmethod
    def random(cls, config: TransformerConfig, seed: int = 0, dtype: DTypeLike = np.float32) -> Transformer:
        """Normal weights, std 0.02 (GPT-2's), and 0.02/√(2·layers) where they write to the residual stream."""
        rng = np.random.default_rng(seed)
        residual = 0.02 / np.sqrt(2 * config.num_hidden_layers)

        def normal(out: int, in_: int, writes: bool = False) -> Array:
            return ((residual if writes else 0.02) * rng.standard_normal((out, in_))).astype(dtype)

        return cls._build(config, normal, np.ones(config.hidden_size, dtype))

    @classmethod
    def empty(cls, config: TransformerConfig, dtype: DTypeLike = np.float32) -> Transformer:
        """Every parameter's shape, and none of its numbers: one zero that is read again and again, and takes no memory.

        For `load_model`, which puts the weights in its place.
        """
        zero = np.zeros((), dtype)
        return cls._build(
            config,
            lambda out, in_, writes=False: np.broadcast_to(zero, (out, in_)),
            np.ones(config.hidden_size, dtype),
        )

    @classmethod
    def _build(cls, config: TransformerConfig, matrix: Callable[..., Array], ones: Array) -> Transformer:
        """`matrix(out, in)` makes each weight matrix, `matrix(out, in, writes=True)` those that write to the residual."""
        d, f = config.hidden_size, config.intermediate_size
        q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim

        def norm() -> RMSNorm:
            return RMSNorm(ones.copy(), config.rms_norm_eps)

        embed_tokens = Embedding(matrix(config.vocab_size, d))
        layers = []
        for _ in range(config.num_hidden_layers):
            q_proj, k_proj, v_proj = (Linear(matrix(out, d)) for out in (q, kv, kv))
            attention = Attention(q_proj, k_proj, v_proj, Linear(matrix(d, q, writes=True)), config.head_dim)
            mlp = MLP(Linear(matrix(f, d)), Linear(matrix(f, d)), Linear(matrix(d, f, writes=True)))
            layers.append(Block(norm(), attention, norm(), mlp))
        lm_head = None if config.tie_word_embeddings else Linear(matrix(config.vocab_size, d))
        return cls(config, Decoder(embed_tokens, layers, norm()), lm_head)

    def forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        past_key_values: KeyValueCache | None = None,
        attention_mask: Array | None = None,
        context: Context | None = None,
    ) -> tuple[Array, LogitsCache]:
        """tokens (b, t) integers → logits (b, t, v).

        `rng` turns dropout on and draws its masks. With `past_key_values` the tokens follow what it holds, and it is extended by
        them; to a backward earlier tokens are constants, so that it gives the gradient of the last call's part alone.
        `attention_mask` (b, s), over past and present, is False where a key is padding.
        Raises ValueError where tokens are not (b, t), are too long or out of range.
        """
        context = _one_context(context, rng, attention_mask)
        x, decoder_cache = self.hidden(tokens, context, past_key_values)
        logits, head_cache = self.output_head.forward(x, context)
        return logits, (decoder_cache, head_cache)

    def hidden(self, tokens: Array, context: Context, past: KeyValueCache | None = None) -> tuple[Array, DecoderCache]:
        """tokens (b, t) → the last hidden states (b, t, d), before the head; as `forward` otherwise."""
        ops.checks.check_shape("tokens", tokens, None, None)
        start, limit = len(past) if past else 0, self.config.max_position_embeddings
        if not 1 <= tokens.shape[1] <= limit - start:
            after = f" after {start}" if start else ""
            raise ValueError(f"a sequence of {tokens.shape[1]} tokens{after}; this model takes 1 to {limit} in all")
        if past is not None and start and past.batch_size != tokens.shape[0]:
            raise ValueError(f"{tokens.shape[0]} rows of tokens after a past of {past.batch_size} rows")
        weight = self.model.norm.weight.value
        if context.attention_mask is not None:  # before any layer extends the past, so that a refusal leaves it whole
            ops.checks.check_mask(context.attention_mask, tokens.shape[0], start + tokens.shape[1])
            context = replace(context, attention_mask=move(context.attention_mask, like=weight))
        if context.position_ids is None:
            positions = array_module(weight).arange(start, start + tokens.shape[1])
        else:
            ops.checks.check_shape("position_ids", context.position_ids, *tokens.shape)
            positions = move(context.position_ids, like=weight)[:, None]  # (b, 1, t): the same for all heads
        rotary = ops.rotary_tables(positions, self.config.head_dim, self.config.rope_theta, weight.real.dtype)
        return self.model.forward(self._ids("tokens", tokens), rotary, context, past)

    def logits(self, x: Array, context: Context) -> Array:
        """The head alone: hidden states (…, d) → logits (…, v)."""
        return self.output_head.forward(x, context)[0]

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: np.random.Generator | None = None,
        ignore_index: int = ops.IGNORE_INDEX,
        context: Context | None = None,
        past_key_values: KeyValueCache | None = None,
    ) -> tuple[Array, LossCache]:
        """Mean cross-entropy in nats a token of `targets` (b, t), the tokens shifted by one, after `tokens` (b, t).

        `past_key_values` is as in `forward`; one that is trained has its gradient after the backward (see cache.py).
        A target equal to `ignore_index` does not count, and the head does not read its position: where only an answer
        counts, that is most of the head's work. (In a mixed batch it reads all of them: an adapter of its own finds its rows
        by their place in the batch.) The cache is good for one backward, which builds the logits' gradient in their own
        memory. Raises as `forward` and `ops.cross_entropy_forward` do.
        """
        ops.checks.check_shape("tokens", tokens, None, None)
        ops.checks.check_shape("targets", targets, *tokens.shape)
        ids = self._ids("targets", targets, ignore_index)
        x, decoder_cache = self.hidden(tokens, context := _one_context(context, rng), past_key_values)
        mixed = not isinstance(context.adapter, str | None)  # an adapter a row
        rows, shape = None if mixed else self._counted(targets, ignore_index), x.shape
        if rows is not None:
            x, ids = x.reshape(-1, shape[-1])[rows], ids.reshape(-1)[rows]  # (b, t, d) → (n, d), (b, t) → (n,)
        logits, head_cache = self.output_head.forward(x, context)
        loss, loss_cache = ops.cross_entropy_forward(logits, ids, ignore_index, overwrite=True)
        return loss, (loss_cache, head_cache, rows, shape, decoder_cache)

    def backward(self, cache: LossCache, dloss: float = 1.0) -> None:
        """From `loss`'s cache: adds dloss · ∂L/∂θ to the gradient of each trainable parameter, and of those only."""
        loss_cache, head_cache, rows, shape, decoder_cache = cache
        dlogits = ops.cross_entropy_backward(dloss, loss_cache)
        dx = self.output_head.backward(dlogits, head_cache, need_dx=self.model.reaches(decoder_cache))
        if dx is not None and rows is not None:
            counted, dx = dx, array_module(dx).zeros(shape, dx.dtype)
            dx.reshape(-1, shape[-1])[rows] = counted  # a position that does not count has no gradient from the head
        if dx is not None:
            self.model.backward(dx, decoder_cache)

    def backward_from_logits(self, dlogits: Array, cache: LogitsCache) -> None:
        """From `forward`'s cache and dlogits (b, t, v), for a loss of your own."""
        decoder_cache, head_cache = cache
        dx = self.output_head.backward(dlogits, head_cache, need_dx=self.model.reaches(decoder_cache))
        if dx is not None:
            self.model.backward(dx, decoder_cache)

    def _counted(self, targets: Array, ignore_index: int) -> Array | None:
        """Which of the b·t positions count, where the weights live; None where all do, or where only the GPU could say."""
        if not isinstance(targets, np.ndarray):
            return None
        rows = array_module(targets).flatnonzero(targets != ignore_index)
        return move(rows, like=self.model.norm.weight.value) if 0 < rows.size < targets.size else None

    def _ids(self, name: str, ids: Array, ignore: int | None = None) -> Array:
        """Check ids, then bring them to where the weights live: with the counted rows, all that a step takes to a GPU."""
        ops.checks.check_ids(name, ids, self.config.vocab_size, ignore)
        return move(ids, like=self.model.norm.weight.value)

    @property
    def output_head(self) -> Linear:
        """The language-model head; tied, it is a view of the embedding's own parameter, which so gets both gradients."""
        if hasattr(self, "lm_head"):
            return self.lm_head
        head = Linear.__new__(Linear)
        head.weight = self.model.embed_tokens.weight
        return head


def _one_context(
    context: Context | None, rng: np.random.Generator | None, attention_mask: Array | None = None
) -> Context:
    """The context that was given, or one made of its parts. Raises ValueError for both."""
    if context is not None and (rng is not None or attention_mask is not None):
        raise ValueError("rng and attention_mask are parts of a context: give them there, or give no context")
    return context or Context(rng, attention_mask=attention_mask)
