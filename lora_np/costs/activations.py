"""The number of floats that the forward pass of this library saves for the backward pass.

N = batch·seq is the number of tokens. d is the width of the residual stream, and f is the width of the MLP. A token has
q = heads·head_dim query features and kv = kv_heads·head_dim key features. V is the number of tokens in the vocabulary.
A norm multiplies each token by a factor ρ. e is the exponential of an attention score.

    each sublayer            x and ρ of its norm                  N·(d + 1)
                             outputs of its input layers          N·(q + 2·kv), or N·2f
                             x of layers with a dW or dA          N·d once for all input layers; N·q or N·f for the output layer
                             the adapters' own values             AdapterCost.saved_for_backward
    attention, in addition   the scores e and 1/Σe                heads·(5/8 of seq² per sequence, at 256 tokens) + N·heads
                             o, if the output layer saves no x    N·q
                             keys and values of a prefix          2·v·kv per sequence for v virtual tokens; v more scores per query
    other families           x and ρ of norms of q and k, and of the norm of the output; tanh of capped scores and of capped
                             logits; tanh of GELU in an MLP without a gate
    final norm, head, loss   x and ρ of the norm, the logits, two numbers per token for the loss
                                                                  N·(d + 1) + N·V + 2·N
                             with a frozen head and many logits, dx in place of the logits: transformer/head_loss.py
                                                                  N·(d + 1) + N·d
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.attention import BLOCK
from ..transformer.head_loss import block_rows
from .flops import causal_scores
from .structure import Layer, ModelStructure, Sublayer


@dataclass(frozen=True)
class TrainingStep:
    """One training step of a model on `batch` sequences of `seq` tokens."""

    structure: ModelStructure
    batch: int
    seq: int

    @property
    def tokens(self) -> int:
        """The number of tokens N = batch·seq."""
        return self.batch * self.seq

    def saved(self, checkpointing: bool = False) -> int:
        """Return the number of floats that the forward pass saves.

        With checkpointing, each block saves only its input.
        """
        tables = self.seq * self.structure.rotary_floats  # cos and sin, once for all layers of one kind
        prefix = self.structure.prefix.saved_for_backward if self.structure.prefix else 0
        once = self.saved_by_head() + tables + prefix + self.structure.saved_once
        if checkpointing:
            return once + len(self.structure.blocks) * self.tokens * self.structure.hidden
        return once + sum(map(self.saved_by_block, self.structure.blocks))

    def saved_by_block(self, block: tuple[Sublayer, Sublayer]) -> int:
        """Return the number of floats that the two sublayers of a block save, inputs included."""
        return sum(map(self.saved_by_sublayer, block))

    def saved_by_sublayer(self, sublayer: Sublayer) -> int:
        """Return the number of floats that one sublayer saves; the module's docstring lists the arrays."""
        N, d, width = self.tokens, self.structure.hidden, sublayer.output_layer.in_
        saved = N * (d + 1 + sublayer.saved_per_token) + sum(N * layer.out for layer in sublayer.input_layers)
        saved += self.saved_inputs(sublayer.input_layers, d) + self.saved_inputs((sublayer.output_layer,), width)
        if sublayer.is_attention:
            saved += N * width * (not sublayer.output_layer.keeps_x)  # o, which is also the output layer's x
            saved += N * self.structure.heads  # 1/Σe
            saved += self.batch * self.structure.heads * self.scores(sublayer.window) * (1 + sublayer.softcapped)
            if prefix := self.structure.prefix:  # replaces the N keys and N values that were counted above
                saved += 2 * self.batch * prefix.kv * (prefix.cache_capacity(self.seq) - self.seq)
        return saved

    def scores(self, window: int | None) -> int:
        """Return the number of attention scores of one head and one sequence, computed in blocks of BLOCK queries."""
        return causal_scores(self.seq, BLOCK, self.structure.virtual_tokens, window)

    def saved_inputs(self, layers: tuple[Layer, ...], width: int) -> int:
        """Return the number of floats that layers with a common input x save: x, if needed, and the adapters'
        values."""
        N = self.tokens
        shared = N * width * any(layer.keeps_x for layer in layers)
        adapters = (layer.adapter.saved_for_backward(N, layer.out, layer.in_) for layer in layers if layer.adapter)
        return shared + sum(adapters)

    def saved_by_head(self) -> int:
        """Return the number of floats that the final norm, the output head and the loss save.

        The logits are included, unless the loss is computed in blocks of rows.
        """
        N, d = self.tokens, self.structure.hidden
        if self.rows_of_logits < N:
            return N * (d + 1) + N * d
        logits = N * self.structure.vocabulary * (1 + self.structure.capped_logits)
        return N * (d + 1) + self.saved_inputs((self.structure.head,), d) + logits + 2 * N

    @property
    def rows_of_logits(self) -> int:
        """The number of tokens whose logits exist at the same time."""
        return block_rows(self.tokens, self.structure.vocabulary) if self.structure.head_in_blocks else self.tokens
