"""A decoder-only Transformer: Llama and the families in families.py, with the names of Hugging Face. This module contains
no code for LoRA.

    tokens → decoder → head → logits → cross-entropy against the tokens shifted by one

The decoder is in decoder.py.
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
from ..nn import Cache, Context, Linear, Module
from ..ops.loss import CrossEntropyCache
from .build import Builder
from .cache import KeyValueCache
from .config import TransformerConfig
from .decoder import Decoder, DecoderCache
from .gemma import SoftcappedHead
from .head_loss import BlocksCache, block_rows, loss_in_blocks_backward, loss_in_blocks_forward, works_in_blocks
from .reading import read

LogitsCache: TypeAlias = tuple[DecoderCache, Cache]  # decoder, head
WholeCache: TypeAlias = tuple[CrossEntropyCache, Cache]  # loss, head
# head and loss, indices of the counted positions among b·t (None: all), the shape (b, t, d), decoder
LossCache: TypeAlias = tuple[BlocksCache | WholeCache, Array | None, tuple[int, ...], DecoderCache]


class Transformer(Module):
    """A causal language model: it computes logits and a loss from tokens, and the gradients of the loss.

    Use `Transformer.random(config)` for random weights, or `load_model` to read weights from files. At first all parameters
    are trainable; `freeze()` makes all parameters constant.

    Parameters
    ----------
    config : TransformerConfig
        The sizes of the model.
    model : Decoder
        Embedding, blocks and last norm.
    lm_head : Linear or None
        The output head; None ties the head to the embedding.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> config = ln.TransformerConfig(
    ...     vocab_size=256,
    ...     hidden_size=16,
    ...     intermediate_size=32,
    ...     num_hidden_layers=1,
    ...     num_attention_heads=2,
    ...     num_key_value_heads=1,
    ... )
    >>> model = ln.Transformer.random(config, seed=0)
    >>> tokens = np.array([[1, 2, 3, 4]])
    >>> loss, cache = model.loss(tokens[:, :-1], tokens[:, 1:])
    >>> print(f"{loss:.1f} nats per token; a uniform guess has {np.log(256):.1f}")
    5.6 nats per token; a uniform guess has 5.5
    >>> model.backward(cache)
    >>> all(p.grad is not None for name, p in model.named_parameters())
    True
    """

    tokens_at_once = (
        1024  # `train` computes at most this many tokens of a batch at a time, so that they need less memory
    )

    gradient_checkpointing = False  # in `loss`: see gradient_checkpointing_enable

    # Hugging Face's names for load_model and save_model. pretrained/models.py assigns both, because this module must not
    # import from a higher layer of the package.
    from_pretrained: ClassVar[Callable[..., Transformer]]
    save_pretrained: ClassVar[Callable[[Transformer, str | PathLike[str]], None]]

    def __init__(self, config: TransformerConfig, model: Decoder, lm_head: Linear | None) -> None:
        self.config = config
        vars(self)[config.family.decoder] = model
        if lm_head is not None:  # else tied: the embedding matrix is also the weight of the head
            self.lm_head = lm_head

    @property
    def model(self) -> Decoder:
        """The decoder. In the names of parameters it is "transformer" for GPT-2, and "model" for all other families."""
        return vars(self)[self.config.family.decoder]

    def extra_repr(self) -> str:
        """Return the text that `print(model)` adds for this module: a note if the head is tied.

        Returns
        -------
        str
            The note, or "" if the head is a separate module.
        """
        return "" if hasattr(self, "lm_head") else f"lm_head is tied to {self.config.family.embedding}"

    @classmethod
    def random(cls, config: TransformerConfig, seed: int = 0, dtype: DTypeLike = np.float32) -> Transformer:
        """Make a model with random weights.

        The weights are drawn from a normal distribution with standard deviation 0.02, as in GPT-2. The projections that
        write to the residual stream (`o_proj`, `down_proj`) have the standard deviation 0.02/√(2·layers). Norm weights
        are 1, and biases are 0.

        Parameters
        ----------
        config : TransformerConfig
            The sizes of the model.
        seed : int
            Seed of the random generator.
        dtype : dtype
            Type of all weights.

        Returns
        -------
        Transformer
            A model on the host, with all parameters trainable.
        """
        rng = np.random.default_rng(seed)
        residual = 0.02 / np.sqrt(2 * config.num_hidden_layers)

        def normal(out: int, in_: int, writes: bool) -> Array:
            return ((residual if writes else 0.02) * rng.standard_normal((out, in_))).astype(dtype)

        return cls._build(config, normal, dtype)

    @classmethod
    def empty(cls, config: TransformerConfig, dtype: DTypeLike = np.float32) -> Transformer:
        """Make a model whose weights have shapes but use no memory; `load_model` then replaces the weights.

        Each weight matrix is a read-only view of a single number, 0. Norm weights are 1.

        Parameters
        ----------
        config : TransformerConfig
            The sizes of the model.
        dtype : dtype
            Type of all weights.

        Returns
        -------
        Transformer
            A model on the host that cannot be trained until its weights are replaced.
        """
        zero = np.zeros((), dtype)
        return cls._build(config, lambda out, in_, writes: np.broadcast_to(zero, (out, in_)), dtype)

    @classmethod
    def _build(
        cls, config: TransformerConfig, matrix: Callable[[int, int, bool], Array], dtype: DTypeLike
    ) -> Transformer:
        """Build the modules. `matrix(out, in, writes)` makes a weight; see `Builder`."""
        builder = Builder(config, matrix, lambda n, value: np.full(n, value, dtype))
        return cls(config, builder.decoder(), builder.head())

    def forward(
        self,
        tokens: Array,
        rng: np.random.Generator | None = None,
        past_key_values: KeyValueCache | None = None,
        attention_mask: Array | None = None,
        context: Context | None = None,
    ) -> tuple[Array, LogitsCache]:
        """Compute the logits of every position.

        Parameters
        ----------
        tokens : ndarray, shape (b, t), integers
            Token ids.
        rng : numpy.random.Generator, optional
            If given, dropout is on, and `rng` draws the dropout masks.
        past_key_values : KeyValueCache, optional
            The new tokens follow the tokens in this cache, and are added to this cache. The backward pass treats the
            cached keys and values as constants.
        attention_mask : ndarray, shape (b, s), bool, optional
            False where a key is padding; s is the number of cached and new tokens together.
        context : Context, optional
            An object with `rng`, `attention_mask`, adapter and positions. The context replaces the arguments `rng` and
            `attention_mask`.

        Returns
        -------
        logits : ndarray, shape (b, t, v)
            Logits in the dtype of the weights.
        cache : tuple
            The input of `backward_from_logits`.

        Raises
        ------
        ValueError
            If `tokens` has the wrong shape, is too long, or contains ids that are out of range.
        """
        context = _one_context(context, rng, attention_mask)
        x, decoder_cache = self.hidden(tokens, context, past_key_values)
        logits, head_cache = self.output_head.forward(x, context)
        return logits, (decoder_cache, head_cache)

    def hidden(self, tokens: Array, context: Context, past: KeyValueCache | None = None) -> tuple[Array, DecoderCache]:
        """Compute the last hidden states, which the head turns into logits.

        Parameters
        ----------
        tokens : ndarray, shape (b, t), integers
            Token ids.
        context : Context
            Dropout, adapter, attention mask and positions of this call.
        past : KeyValueCache, optional
            The cache, as `past_key_values` in `forward`.

        Returns
        -------
        x : ndarray, shape (b, t, d)
            The output of the last norm.
        cache : tuple
            The input of the decoder's backward pass.
        """
        return self.model.forward(*self._decoder_inputs(tokens, context, past), past)

    def read(self, tokens: Array, context: Context, past: KeyValueCache) -> Array:
        """Compute the last hidden states without a cache for a backward pass, and add the tokens to the key/value cache.

        Parameters
        ----------
        tokens : ndarray, shape (b, t), integers
            Token ids.
        context : Context
            Adapter, attention mask and positions of this call.
        past : KeyValueCache
            The cache, as `past_key_values` in `forward`.

        Returns
        -------
        ndarray, shape (b, t, d)
            The output of the last norm.
        """
        return read(self.model, *self._decoder_inputs(tokens, context, past), past)

    def _decoder_inputs(
        self, tokens: Array, context: Context, past: KeyValueCache | None
    ) -> tuple[Array, Array, list[tuple[Array, Array]], Context]:
        """Check the inputs of a call. Return the ids, the positions, the rotary tables of each layer, and the context."""
        ops.checks.check_shape("tokens", tokens, None, None)
        start, limit = len(past) if past else 0, self.config.max_position_embeddings
        if not 1 <= tokens.shape[1] <= limit - start:
            after = f" after {start} in the cache" if start else ""
            raise ValueError(
                f"got a sequence of {tokens.shape[1]} tokens{after}; this model accepts 1 to {limit} in total"
            )
        if past is not None and start and past.batch_size != tokens.shape[0]:
            raise ValueError(
                f"got {tokens.shape[0]} rows of tokens, but past_key_values has {past.batch_size}; use equal numbers"
            )
        weight = self.model.norm.weight.value
        if context.attention_mask is not None:  # an error here leaves the cache unchanged
            ops.checks.check_mask(context.attention_mask, tokens.shape[0], start + tokens.shape[1])
            context = replace(context, attention_mask=move(context.attention_mask, like=weight))
        if context.position_ids is None:
            positions = array_module(weight).arange(start, start + tokens.shape[1])[None]  # (1, t): equal for all rows
        else:
            ops.checks.check_shape("position_ids", context.position_ids, *tokens.shape)
            positions = move(context.position_ids, like=weight)
        kinds = self.config.kinds
        tables = {kind: self._rotary(kind, positions) for kind in set(kinds)}
        rotary = [tables[kind] for kind in kinds]
        return self._ids("tokens", tokens), positions, rotary, context

    def _rotary(self, kind: str, positions: Array) -> tuple[Array, Array]:
        """Return the cosines and sines for the layers of one kind."""
        theta, scaling = self.config.rope(kind)
        dtype = self.model.norm.weight.value.real.dtype
        shared = positions.shape[0] == 1
        positions = positions[0] if shared else positions[:, None]  # (b, 1, t): equal for all heads
        return ops.rotary_tables(positions, self.config.rotary_dim, theta, dtype, scaling)

    def logits(self, x: Array, context: Context) -> Array:
        """Apply the output head.

        Parameters
        ----------
        x : ndarray, shape (…, d)
            Hidden states.
        context : Context
            The context of the call that computed the hidden states.

        Returns
        -------
        ndarray, shape (…, v)
            Logits.
        """
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
        """Compute the mean cross-entropy of the targets, in nats per token.

        Parameters
        ----------
        tokens : ndarray, shape (b, t), integers
            Token ids.
        targets : ndarray, shape (b, t), integers
            The next token at each position: the text shifted by one.
        rng : numpy.random.Generator, optional
            If given, dropout is on, and `rng` draws the dropout masks.
        ignore_index : int
            Targets with this value do not count in the mean.
        context : Context, optional
            As in `forward`.
        past_key_values : KeyValueCache, optional
            As in `forward`. After the backward pass, `take_grad` of this cache returns the gradient of a trainable prefix.

        Returns
        -------
        loss : ndarray, shape ()
            The mean cross-entropy over all targets that count.
        cache : tuple
            The input of one call of `backward`. This call overwrites arrays of the cache.

        Raises
        ------
        ValueError
            If `tokens` and `targets` have different shapes, if ids are out of range, or if no target counts.

        Notes
        -----
        The output head computes no logits for positions that are not counted. If only answers count, most of the
        computation of the head is saved. In a mixed batch, the head computes all positions, because an adapter of the
        head selects rows by the index of the row in the batch.

        If the head is frozen and the logits are large, the logits are computed in blocks of rows, and never exist at the
        same time. With `rng`, as in training, `loss` then computes the gradient of the hidden states too. Without `rng`,
        as in evaluation, `backward` computes the logits a second time.
        """
        ops.checks.check_shape("tokens", tokens, None, None)
        ops.checks.check_shape("targets", targets, *tokens.shape)
        ids = self._ids("targets", targets, ignore_index)
        context = replace(_one_context(context, rng), gradient_checkpointing=self.gradient_checkpointing)
        x, decoder_cache = self.hidden(tokens, context, past_key_values)
        mixed = not isinstance(context.adapter, str | None)  # one adapter per row
        rows, shape = None if mixed else self._counted(targets, ignore_index), x.shape
        if not mixed:
            x, ids = x.reshape(-1, shape[-1]), ids.reshape(-1)  # (b, t, d) → (b·t, d), (b, t) → (b·t,)
        if rows is not None:
            x, ids = x[rows], ids[rows]  # the n counted positions
        cache: BlocksCache | WholeCache
        if not mixed and works_in_blocks(self.linear_head) and block_rows(len(x), self.config.vocab_size) < len(x):
            follows = context.rng is not None and self.model.reaches(decoder_cache)  # a backward pass
            loss, cache = loss_in_blocks_forward(self.output_head, x, ids, ignore_index, follows)
        else:
            logits, head_cache = self.output_head.forward(x, context)
            loss, loss_cache = ops.cross_entropy_forward(logits, ids, ignore_index, overwrite=True)
            cache = loss_cache, head_cache
        return loss, (cache, rows, shape, decoder_cache)

    def backward(self, cache: LossCache, dloss: float = 1.0) -> None:
        """Add dloss · ∂L/∂θ to the gradient of each trainable parameter.

        Parameters
        ----------
        cache : tuple
            The cache that `loss` returned. A cache can be used only once.
        dloss : float
            Factor that multiplies the loss, for example 1/n when n batches are accumulated.
        """
        kept, rows, shape, decoder_cache = cache
        reaches = self.model.reaches(decoder_cache)
        dx: Array | None = None
        if not isinstance(kept, BlocksCache):
            loss_cache, head_cache = kept
            dlogits = ops.cross_entropy_backward(dloss, loss_cache)
            dx = self.output_head.backward(dlogits, head_cache, need_dx=reaches)
        elif reaches:
            dx = loss_in_blocks_backward(dloss, kept, self.output_head)
        if dx is not None and rows is not None:
            counted, dx = dx, array_module(dx).zeros(shape, dx.dtype)
            dx.reshape(-1, shape[-1])[rows] = counted  # positions that do not count get no gradient from the head
        if dx is not None:
            self.model.backward(dx.reshape(shape), decoder_cache)

    def gradient_checkpointing_enable(self) -> None:
        """Turn gradient checkpointing on: in `loss`, each block keeps only its input.

        `backward` computes the forward pass of each block again, with the same dropout masks. The gradients are bitwise
        equal to the gradients without checkpointing. The activations need less memory, and a step takes longer.

        Examples
        --------
        >>> import lora_np as ln
        >>> model = ln.load_model("tiny")
        >>> model.gradient_checkpointing_enable()
        >>> model.gradient_checkpointing
        True
        """
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Turn gradient checkpointing off.

        Examples
        --------
        >>> import lora_np as ln
        >>> model = ln.load_model("tiny")
        >>> model.gradient_checkpointing_enable()
        >>> model.gradient_checkpointing_disable()
        >>> model.gradient_checkpointing
        False
        """
        self.gradient_checkpointing = False

    def backward_from_logits(self, dlogits: Array, cache: LogitsCache) -> None:
        """Add the gradients of any loss, given the derivative of the loss with respect to the logits.

        Parameters
        ----------
        dlogits : ndarray, shape (b, t, v)
            The derivative of the loss with respect to the logits.
        cache : tuple
            The cache that `forward` returned. A cache can be used only once.
        """
        decoder_cache, head_cache = cache
        dx = self.output_head.backward(dlogits, head_cache, need_dx=self.model.reaches(decoder_cache))
        if dx is not None:
            self.model.backward(dx, decoder_cache)

    def _counted(self, targets: Array, ignore_index: int) -> Array | None:
        """Return the indices of the counted targets, on the device of the weights.

        Return None if all targets count, if no target counts, or if the targets are on a GPU.
        """
        if not isinstance(targets, np.ndarray):
            return None
        rows = array_module(targets).flatnonzero(targets != ignore_index)
        return move(rows, like=self.model.norm.weight.value) if 0 < rows.size < targets.size else None

    def _ids(self, name: str, ids: Array, ignore: int | None = None) -> Array:
        """Check the ids, then copy them to the device of the weights."""
        ops.checks.check_ids(name, ids, self.config.vocab_size, ignore)
        return move(ids, like=self.model.norm.weight.value)

    @property
    def output_head(self) -> Linear | SoftcappedHead:
        """The output head, with the soft cap of the logits if the model has one."""
        cap = self.config.final_logit_softcapping
        return self.linear_head if cap is None else SoftcappedHead(self.linear_head, cap)

    @property
    def linear_head(self) -> Linear:
        """The linear layer of the output head. A tied head and the embedding share one parameter, so both add to its gradient."""
        if hasattr(self, "lm_head"):
            return self.lm_head
        head = Linear.__new__(Linear)
        head.weight = self.model.embed_tokens.weight
        return head


def _one_context(
    context: Context | None, rng: np.random.Generator | None, attention_mask: Array | None = None
) -> Context:
    """Return the given context, or make a context from `rng` and `attention_mask`.

    Raises ValueError if a context is given together with `rng` or `attention_mask`.
    """
    if context is not None and (rng is not None or attention_mask is not None):
        raise ValueError("got a context together with rng or attention_mask; set rng and attention_mask in the context")
    return context or Context(rng, attention_mask=attention_mask)
