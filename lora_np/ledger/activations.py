"""What a forward keeps for its backward, and what the backward holds besides: counted from the caches and locals of this library.

Everything here is a number of floats, for N = batch·seq tokens, d the residual's width, q = heads·head_dim and
kv = kv_heads·head_dim features of queries and of keys, f the MLP's width.

    a half keeps   the norm's x and ρ, N·(d + 1); what its reading layers made, N·(q + 2kv) or N·2f;
                   the norm's output, N·d, where a layer that reads it needs x for dW or dA, and likewise N·q or N·f
                   before the layer that writes; h = x Aᵀ of each adapter, N·r
    attention too  o, N·q; the unnormalised scores e and their row sums
    the loss       the logits, N·v, in whose memory their gradient is built
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..ops.attention import BLOCK
from .anatomy import Anatomy, Half, Layer
from .flops import causal_scores


@dataclass(frozen=True)
class Work:
    """One training step of a model: `batch` sequences of `seq` tokens."""

    body: Anatomy
    batch: int
    seq: int

    @property
    def tokens(self) -> int:
        return self.batch * self.seq

    # ------------------------------------------------------------------------------------------------ kept by the forward

    def half(self, half: Half) -> int:
        """What half a block keeps, its input among it."""
        N, d, out = self.tokens, self.body.hidden, half.writes.in_
        kept = N * (d + 1) + sum(N * layer.out for layer in half.reads) + self.inputs(half.reads, d)
        if not half.is_attention:
            return kept + self.inputs((half.writes,), out)
        scores = self.batch * self.body.heads * causal_scores(self.seq, BLOCK)
        kept += N * out + scores + N * self.body.heads  # o, e and 1/Σe
        merged = self.inputs((half.writes,), out)  # (b, h, t, d) → (b, t, h·d): a copy, unless h or t is 1
        if 1 in (self.body.heads, self.seq) and keeps(half.writes):
            merged -= N * out
        return kept + merged

    def inputs(self, layers: tuple[Layer, ...], width: int) -> int:
        """The x of layers that read the same x, once for all of them, and what each adapter keeps of its own."""
        N = self.tokens
        shared = N * width * any(keeps(layer) for layer in layers)
        masked = sum(2 * N * width for layer in layers if layer.dropout)  # the mask, and x ∘ mask
        return shared + masked + sum(N * layer.r for layer in layers)

    def top(self) -> int:
        """The last norm's x and ρ, the head's input where it is needed, the logits, and two numbers a token for the loss."""
        N, d = self.tokens, self.body.hidden
        return N * (d + 1) + self.inputs((self.body.head,), d) + N * self.body.vocabulary + 2 * N

    def kept(self, checkpointing: bool = False) -> int:
        """All that the forward keeps; with checkpointing, of each block its input alone."""
        tables = 2 * self.seq * self.body.head_dim  # rotary cos and sin, once for all layers
        if checkpointing:
            return self.top() + tables + len(self.body.blocks) * self.tokens * self.body.hidden
        return self.top() + tables + sum(self.half(half) for block in self.body.blocks for half in block)

    # ------------------------------------------------------------------------------------------ held besides, in a backward

    def moments(self) -> Iterator[tuple[int, int]]:
        """(floats held besides what is kept, gradients that are there by then), moment by moment of the step.

        The caller holds the head's dx all along, and a block its dz, which becomes its dx in place: 2·N·d.
        """
        N, d, body = self.tokens, self.body.hidden, self.body
        head = body.head
        yield self.last_forward() - self.top(), 0
        # the head's forward: its input, and a bypass before it is added to the logits
        yield N * d * (not keeps(head)) + N * body.vocabulary * (head.r > 0), 0
        gradients = trained_numbers(head) + d * body.norm_trained
        yield (3 + bypass(head)) * N * d * body.trainable_below_the_head, gradients
        for half, need_dx in reversed(body.walk()):
            if not (need_dx or half.trainable):
                break
            gradients += sum(map(trained_numbers, (*half.reads, half.writes))) + d * half.norm_trained
            moment = self.attention_moment if half.is_attention else self.mlp_moment
            yield 2 * N * d + moment(half, need_dx), gradients
        if body.embedding_trained:  # dE becomes a gradient, or is added to the tied head's
            yield 2 * N * d + body.vocabulary * d, gradients

    def last_forward(self) -> int:
        """The last MLP's input, its f features and its output, as far as they are not kept: the most where only a head trains."""
        N, d, mlp = self.tokens, self.body.hidden, self.body.blocks[-1][-1]
        normed = N * d * (not any(keeps(layer) for layer in mlp.reads))
        return normed + N * mlp.writes.in_ * (not keeps(mlp.writes)) + (1 + (mlp.writes.r > 0)) * N * d

    def largest_trained(self) -> int:
        """Numbers in the largest array that is trained."""
        body = self.body
        sizes = [layer.out * layer.in_ * layer.trained for layer in body.layers()]
        sizes += [layer.r * max(layer.out, layer.in_) * layer.trainable for layer in body.layers()]
        return max(*sizes, body.vocabulary * body.hidden * body.embedding_trained)

    def mlp_moment(self, half: Half, need_dx: bool) -> int:
        """dh, dgate and dup, N·f each, are there while the two dx are computed and added up."""
        N, d, f = self.tokens, self.body.hidden, half.writes.in_
        if not (need_dx or half.reads_trainable):
            return N * half.writes.r
        written = N * f * (1 + bypass(half.writes))
        inner = N * f + sum(N * layer.out for layer in half.reads)
        read = max((i + 1 + bypass(layer)) * N * d for i, layer in enumerate(half.reads)) if need_dx else 0
        return max(written, inner + read, 3 * N * d)

    def attention_moment(self, half: Half, need_dx: bool) -> int:
        """do, dq, dk, dv, and a copy of one of them as rows, while three dx are computed; before that, the scores' gradients.

        The MLP's dx, before its norm and after it, is still there: 2·N·d.
        """
        N, d, q, body = self.tokens, self.body.hidden, half.writes.in_, self.body
        before = 2 * N * d
        if not (need_dx or half.reads_trainable):
            return before + N * half.writes.r
        kv = body.kv_heads * body.head_dim
        gradients = N * (2 * q + 2 * kv)  # do, dq, dk, dv
        scores = gradients + self.scores_moment()
        rotary = gradients + max(2 * N * q, N * (q + 2 * kv))
        read = [N * layer.out + need_dx * N * d * (i + 1 + bypass(layer)) for i, layer in enumerate(half.reads)]
        written = N * q * (1 + bypass(half.writes))
        return before + max(written, scores, rotary, gradients + max(read), 3 * N * d)

    def scores_moment(self) -> int:
        """One block of queries in attention_backward: dz beside that of the block before, or beside its share of dk."""
        body, largest, before = self.body, 0, 0
        for start in range(0, self.seq, BLOCK):
            seen = min(start + BLOCK, self.seq)
            rows = self.batch * body.heads * (seen - start)
            dz, queries = rows * seen, rows * body.head_dim  # as large as a block of do
            share = self.batch * body.kv_heads * seen * body.head_dim
            largest = max(largest, dz + queries + max(before, queries + share))
            before = dz
        return largest


def keeps(layer: Layer) -> bool:
    """Whether a layer needs its x in the backward: for dW, or for dA (with dropout, that is another x)."""
    return layer.trained or (layer.r > 0 and not layer.dropout)


def bypass(layer: Layer) -> int:
    """How many dx an adapter makes before one is added to the frozen path's: none, its own, and that times the mask."""
    return (layer.r > 0) + layer.dropout


def trained_numbers(layer: Layer) -> int:
    """The gradients of W, or of A and B."""
    return layer.out * layer.in_ * layer.trained + layer.r * (layer.in_ + layer.out) * layer.trainable
