"""The Llama family: a decoder-only Transformer, with Hugging Face's names, that knows nothing of LoRA.

    tokens → embedding → [ + attention(norm) → + MLP(norm) ] × layers → norm → logits

The backward walks that line in reverse, and stops where nothing below is trainable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import ops
from .backend import Array, array_module, move
from .kv_cache import KeyValueCache, LayerCache
from .nn import Context, Embedding, Linear, Module, RMSNorm
from .transformer_config import TransformerConfig


class Attention(Module):
    """Grouped-query causal attention with rotary positions, between four projections."""

    def __init__(self, q_proj: Linear, k_proj: Linear, v_proj: Linear, o_proj: Linear, head_dim: int) -> None:
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim = head_dim

    def forward(
        self, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None = None
    ) -> tuple[Array, Any]:
        """x (b, t, d) → y (b, t, d). With a `past`, these t tokens follow those it holds, and join them."""
        b, t, _ = x.shape
        q, q_cache = self.q_proj.forward(x, context)
        k, k_cache = self.k_proj.forward(x, context)
        v, v_cache = self.v_proj.forward(x, context)
        q, rotary_cache = ops.rotary_forward(self._heads(q), *rotary)  # (b, t, h·d) → (b, h, t, d)
        k, _ = ops.rotary_forward(self._heads(k), *rotary)  # (b, t, g·d) → (b, g, t, d)
        k, v = (k, self._heads(v)) if past is None else past.extend(k, self._heads(v))  # (b, g, s, d)
        o, attention_cache = ops.attention_forward(q, k, v, context.attention_mask)
        o = o.transpose(0, 2, 1, 3).reshape(b, t, -1)  # (b, h, t, d) → (b, t, h·d)
        y, o_cache = self.o_proj.forward(o, context)
        return y, (q_cache, k_cache, v_cache, rotary_cache, attention_cache, o_cache, _trained(past))

    def backward(self, dy: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dy (b, t, d) → dx (b, t, d), or None where nothing below needs it."""
        q_cache, k_cache, v_cache, rotary_cache, attention_cache, o_cache, past = cache
        inner = need_dx or self.q_proj.trainable or self.k_proj.trainable or self.v_proj.trainable
        do = self.o_proj.backward(dy, o_cache, need_dx=inner or past is not None)
        if do is None:
            return None
        dq, dk, dv = ops.attention_backward(self._heads(do), attention_cache)
        if past is not None:
            past.add_grad(dk, dv)  # never turned by a rotation, so not turned back
        if not inner:
            return None
        t = dy.shape[1]
        dk, dv = dk[:, :, -t:], dv[:, :, -t:]  # a past is given: its keys and values came from no layer here
        dq, dk = ops.rotary_backward(dq, rotary_cache), ops.rotary_backward(dk, rotary_cache)
        # x went into three projections, so its gradient is the sum of what comes back from them.
        dx = self.q_proj.backward(self._rows(dq), q_cache, need_dx)
        dx_k = self.k_proj.backward(self._rows(dk), k_cache, need_dx)
        dx_v = self.v_proj.backward(self._rows(dv), v_cache, need_dx)
        if not need_dx:
            return None
        dx += dx_k
        dx += dx_v
        return dx

    def _heads(self, x: Array) -> Array:
        """(b, t, n·d) → (b, n, t, d), a view."""
        b, t, _ = x.shape
        return x.reshape(b, t, -1, self.head_dim).transpose(0, 2, 1, 3)

    def _rows(self, x: Array) -> Array:
        """(b, n, t, d) → (b, t, n·d), the way back."""
        b, n, t, d = x.shape
        return x.transpose(0, 2, 1, 3).reshape(b, t, n * d)


class MLP(Module):
    """SwiGLU: down(silu(gate(x)) ∘ up(x))."""

    def __init__(self, gate_proj: Linear, up_proj: Linear, down_proj: Linear) -> None:
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def forward(self, x: Array, context: Context) -> tuple[Array, Any]:
        """x (b, t, d) → y (b, t, d)."""
        gate, gate_cache = self.gate_proj.forward(x, context)
        up, up_cache = self.up_proj.forward(x, context)
        h, swiglu_cache = ops.swiglu_forward(gate, up)
        y, down_cache = self.down_proj.forward(h, context)
        return y, (gate_cache, up_cache, swiglu_cache, down_cache)

    def backward(self, dy: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dy (b, t, d) → dx (b, t, d), or None where nothing below needs it."""
        gate_cache, up_cache, swiglu_cache, down_cache = cache
        inner = need_dx or self.gate_proj.trainable or self.up_proj.trainable
        dh = self.down_proj.backward(dy, down_cache, need_dx=inner)
        if not inner:
            return None
        dgate, dup = ops.swiglu_backward(dh, swiglu_cache)
        dx = self.gate_proj.backward(dgate, gate_cache, need_dx)
        dx_up = self.up_proj.backward(dup, up_cache, need_dx)
        if not need_dx:
            return None
        dx += dx_up
        return dx


class Block(Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(
        self, input_layernorm: RMSNorm, self_attn: Attention, post_attention_layernorm: RMSNorm, mlp: MLP
    ) -> None:
        self.input_layernorm, self.self_attn = input_layernorm, self_attn
        self.post_attention_layernorm, self.mlp = post_attention_layernorm, mlp

    def forward(
        self, x: Array, rotary: tuple[Array, Array], context: Context, past: LayerCache | None = None
    ) -> tuple[Array, Any]:
        """x (b, t, d) → y (b, t, d)."""
        normed, norm1_cache = self.input_layernorm.forward(x)
        y, attention_cache = self.self_attn.forward(normed, rotary, context, past)
        y += x  # the residual; y is ours, x is still needed by the norm's cache
        normed, norm2_cache = self.post_attention_layernorm.forward(y)
        z, mlp_cache = self.mlp.forward(normed, context)
        z += y
        return z, (norm1_cache, attention_cache, norm2_cache, mlp_cache, _trained(past))

    def backward(self, dz: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dz (b, t, d) → dx (b, t, d), or None where nothing below needs it. dz itself is consumed."""
        norm1_cache, attention_cache, norm2_cache, mlp_cache, past = cache
        below_mlp = need_dx or self.self_attn.trainable or self.input_layernorm.trainable
        below_mlp = below_mlp or past is not None
        below_norm2 = below_mlp or self.post_attention_layernorm.trainable
        # in the forward pass z = y + mlp(norm(y)): dz goes to both terms, so dy = dz + what comes back through the MLP
        dy = dz
        dnormed = self.mlp.backward(dz, mlp_cache, need_dx=below_norm2)
        if not below_norm2:
            return None
        dy_mlp = self.post_attention_layernorm.backward(dnormed, norm2_cache, need_dx=below_mlp)
        if not below_mlp:
            return None
        dy += dy_mlp
        # … and before that y = x + attention(norm(x))
        dx = dy
        below_norm1 = need_dx or self.input_layernorm.trainable
        dnormed = self.self_attn.backward(dy, attention_cache, need_dx=below_norm1)
        if not below_norm1:
            return None
        dx_attention = self.input_layernorm.backward(dnormed, norm1_cache, need_dx)
        if not need_dx:
            return None
        dx += dx_attention
        return dx


class Decoder(Module):
    """Embedding, blocks and the last norm: tokens → hidden states. Called `model` in Hugging Face's names."""

    def __init__(self, embed_tokens: Embedding, layers: list[Block], norm: RMSNorm) -> None:
        self.embed_tokens, self.layers, self.norm = embed_tokens, layers, norm

    def forward(
        self, tokens: Array, rotary: tuple[Array, Array], context: Context, past: KeyValueCache | None = None
    ) -> tuple[Array, Any]:
        """tokens (b, t) → x (b, t, d)."""
        x, embed_cache = self.embed_tokens.forward(tokens)
        block_caches = []
        for i, block in enumerate(self.layers):
            x, cache = block.forward(x, rotary, context, None if past is None else past.layers[i])
            block_caches.append(cache)
        x, norm_cache = self.norm.forward(x)
        return x, (embed_cache, block_caches, norm_cache, _trained(past))

    def reaches(self, cache: Any) -> bool:
        """Whether a backward has anything to do here: for a trainable parameter, or for a past that is trained."""
        return self.trainable or cache[-1] is not None

    def backward(self, dx: Array, cache: Any) -> None:
        """dx (b, t, d) → gradients, down to the lowest trainable layer and no further."""
        embed_cache, block_caches, norm_cache, past = cache
        below = [self.embed_tokens.trainable]  # below[i]: is anything under block i trainable?
        for block in self.layers:
            below.append(below[-1] or block.trainable or past is not None)
        dx = self.norm.backward(dx, norm_cache, need_dx=below[-1])
        for i in reversed(range(len(self.layers))):
            if not below[i + 1]:
                return
            dx = self.layers[i].backward(dx, block_caches[i], need_dx=below[i])
        if below[0]:
            self.embed_tokens.backward(dx, embed_cache)


class Transformer(Module):
    """A causal language model: logits and loss from tokens, gradients from the loss.

    Build one with random weights by `Transformer.random(config)`, or from files by `load_model`. The parameters start
    trainable; `freeze()` stops that.
    """

    def __init__(self, config: TransformerConfig, model: Decoder, lm_head: Linear | None) -> None:
        self.config = config
        self.model = model
        if lm_head is not None:  # otherwise tied: the embedding's table is the head's weight too
            self.lm_head = lm_head

    @classmethod
    def random(cls, config: TransformerConfig, seed: int = 0, dtype: Any = np.float32) -> Transformer:
        """Normal weights, std 0.02 (GPT-2's), and 0.02/√(2·layers) where they write to the residual stream."""
        rng = np.random.default_rng(seed)
        residual = 0.02 / np.sqrt(2 * config.num_hidden_layers)

        def normal(out: int, in_: int, writes: bool = False) -> Array:
            return ((residual if writes else 0.02) * rng.standard_normal((out, in_))).astype(dtype)

        return cls._build(config, normal, np.ones(config.hidden_size, dtype))

    @classmethod
    def empty(cls, config: TransformerConfig, dtype: Any = np.float32) -> Transformer:
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
            projections = [Linear(matrix(out, d)) for out in (q, kv, kv)] + [Linear(matrix(d, q, writes=True))]
            mlp = MLP(Linear(matrix(f, d)), Linear(matrix(f, d)), Linear(matrix(d, f, writes=True)))
            layers.append(Block(norm(), Attention(*projections, config.head_dim), norm(), mlp))
        lm_head = None if config.tie_word_embeddings else Linear(matrix(config.vocab_size, d))
        return cls(config, Decoder(embed_tokens, layers, norm()), lm_head)

    def forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        past_key_values: KeyValueCache | None = None,
        attention_mask: Array | None = None,
        context: Context | None = None,
    ) -> tuple[Array, Any]:
        """tokens (b, t) integers → logits (b, t, v).

        `rng` turns dropout on and draws its masks. With `past_key_values` the tokens follow what it holds, and it is extended by
        them. `attention_mask` (b, s), over past and present, is False where a key is padding.
        Raises ValueError where tokens are not (b, t), are too long or out of range.
        """
        context = _one_context(context, rng, attention_mask)
        x, decoder_cache = self.hidden(tokens, context, past_key_values)
        logits, head_cache = self._head.forward(x, context)
        return logits, (decoder_cache, head_cache)

    def hidden(self, tokens: Array, context: Context, past: KeyValueCache | None = None) -> tuple[Array, Any]:
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
        return self._head.forward(x, context)[0]

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: np.random.Generator | None = None,
        ignore_index: int = ops.IGNORE_INDEX,
        context: Context | None = None,
        past_key_values: KeyValueCache | None = None,
    ) -> tuple[Array, Any]:
        """Mean cross-entropy in nats a token of `targets` (b, t), the tokens shifted by one, after `tokens` (b, t).

        `past_key_values` is as in `forward`; one that is trained has its gradient after the backward (see kv_cache.py).
        A target equal to `ignore_index` does not count, and the head does not read its position: where only an answer
        counts, that is most of the head's work. The cache is good for one backward, which builds the logits' gradient in
        their own memory. Raises as `forward` and `ops.cross_entropy_forward` do.
        """
        ops.checks.check_shape("tokens", tokens, None, None)
        ops.checks.check_shape("targets", targets, *tokens.shape)
        ids = self._ids("targets", targets, ignore_index)
        x, decoder_cache = self.hidden(tokens, context := _one_context(context, rng), past_key_values)
        rows, shape = self._counted(targets, ignore_index), x.shape
        if rows is not None:
            x, ids = x.reshape(-1, shape[-1])[rows], ids.reshape(-1)[rows]  # (b, t, d) → (n, d), (b, t) → (n,)
        logits, head_cache = self._head.forward(x, context)
        loss, loss_cache = ops.cross_entropy_forward(logits, ids, ignore_index, overwrite=True)
        return loss, (loss_cache, head_cache, rows, shape, decoder_cache)

    def backward(self, cache: Any, dloss: float = 1.0) -> None:
        """From `loss`'s cache: adds dloss · ∂L/∂θ to the gradient of each trainable parameter, and of those only."""
        loss_cache, head_cache, rows, shape, decoder_cache = cache
        dlogits = ops.cross_entropy_backward(dloss, loss_cache)
        dx = self._head.backward(dlogits, head_cache, need_dx=self.model.reaches(decoder_cache))
        if dx is not None and rows is not None:
            counted, dx = dx, array_module(dx).zeros(shape, dx.dtype)
            dx.reshape(-1, shape[-1])[rows] = counted  # a position that does not count has no gradient from the head
        if dx is not None:
            self.model.backward(dx, decoder_cache)

    def backward_from_logits(self, dlogits: Array, cache: Any) -> None:
        """From `forward`'s cache and dlogits (b, t, v), for a loss of your own."""
        decoder_cache, head_cache = cache
        dx = self._head.backward(dlogits, head_cache, need_dx=self.model.reaches(decoder_cache))
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
    def _head(self) -> Linear:
        """The language-model head; tied, it is a view of the embedding's own parameter, which so gets both gradients."""
        if hasattr(self, "lm_head"):
            return self.lm_head
        head = Linear.__new__(Linear)
        head.weight = self.model.embed_tokens.weight
        return head


def _trained(past: LayerCache | KeyValueCache | None) -> Any:
    """The past, if it is one that a backward owes a gradient."""
    return past if past is not None and past.trainable else None


def _one_context(
    context: Context | None, rng: np.random.Generator | None, attention_mask: Array | None = None
) -> Context:
    """The context that was given, or one made of its parts. Raises ValueError for both."""
    if context is not None and (rng is not None or attention_mask is not None):
        raise ValueError("rng and attention_mask are parts of a context: give them there, or give no context")
    return context or Context(rng, attention_mask=attention_mask)
