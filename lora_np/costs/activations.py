"""What a forward keeps for its backward: a number of floats, counted from the caches of this library.

For N = batch·seq tokens, a residual stream of width d, q = heads·head_dim features of queries, kv = kv_heads·head_dim of
keys, an MLP of width f, and V tokens in the vocabulary:

    each sublayer block      x and ρ of its norm             N·(d + 1)
                         what its reading layers made    N·(q + 2·kv), or N·2f
                         x of a layer with dW or dA      N·d for all that read the norm, N·q or N·f for the one that writes
                         what an adapter adds            AdapterCost.kept
    attention besides    o, the scores e, and 1/Σe       N·q + heads·(5/8 of seq² a sequence, at 256 tokens) + N·heads
                         a prefix's keys and values      2·v·kv a sequence, for v virtual tokens, and v more scores a query
    the top              x and ρ of the last norm, the logits, two numbers a token of the loss
                                                         N·(d + 1) + N·V + 2·N
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ops.attention import BLOCK
from .flops import causal_scores
from .structure import Layer, ModelStructure, Sublayer


@dataclass(frozen=True)
class TrainingStep:
    """One training step of a model: `batch` sequences of `seq` tokens."""

    structure: ModelStructure
    batch: int
    seq: int

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    def saved(self, checkpointing: bool = False) -> int:
        """All that the forward keeps; with checkpointing, of each block its input alone."""
        tables = 2 * self.seq * self.structure.head_dim  # rotary cos and sin, once for all layers
        once = (
            self.saved_by_head() + tables + (self.structure.prefix.saved_for_backward if self.structure.prefix else 0)
        )
        if checkpointing:
            return once + len(self.structure.blocks) * self.tokens * self.structure.hidden
        return once + sum(map(self.saved_by_block, self.structure.blocks))

    def saved_by_block(self, block: tuple[Sublayer, Sublayer]) -> int:
        """Both halves of a block, their inputs among it."""
        return sum(map(self.saved_by_sublayer, block))

    def saved_by_sublayer(self, sublayer: Sublayer) -> int:
        """As the table above has it."""
        N, d, width = self.tokens, self.structure.hidden, sublayer.output_layer.in_
        kept = N * (d + 1) + sum(N * layer.out for layer in sublayer.input_layers)
        kept += self.saved_inputs(sublayer.input_layers, d) + self.saved_inputs((sublayer.output_layer,), width)
        if sublayer.is_attention:
            kept += N * width + N * self.structure.heads  # o and 1/Σe
            kept += self.batch * self.structure.heads * self.scores()
            if 1 in (self.structure.heads, self.seq) and sublayer.output_layer.keeps_x:
                kept -= N * width  # (b, h, t, d) → (b, t, h·d) is then no copy: the layer that writes keeps o itself
            if self.structure.prefix:  # in place of the N keys and N values that were counted
                kept += 2 * self.batch * self.structure.prefix.kv * (self.structure.prefix.room(self.seq) - self.seq)
        return kept

    def scores(self) -> int:
        """Those of one head over one sequence, BLOCK queries at a time."""
        return causal_scores(self.seq, BLOCK) + self.seq * self.structure.virtual_tokens

    def saved_inputs(self, layers: tuple[Layer, ...], width: int) -> int:
        """The x of layers that read the same x, once for all of them, and what each adapter keeps of its own."""
        N = self.tokens
        shared = N * width * any(layer.keeps_x for layer in layers)
        return shared + sum(
            layer.adapter.saved_for_backward(N, layer.out, layer.in_) for layer in layers if layer.adapter
        )

    def saved_by_head(self) -> int:
        """The last norm, the head and the loss, in whose cache the logits are."""
        N, d = self.tokens, self.structure.hidden
        return N * (d + 1) + self.saved_inputs((self.structure.head,), d) + N * self.structure.vocabulary + 2 * N
