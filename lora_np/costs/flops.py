"""The arithmetic of one training step, product by product: a multiplication and an addition are two operations (FLOPs).

For N tokens through W (out, in), with an adapter A (r, in), B (out, r) beside it:

    forward        x Wᵀ            2·N·out·in        h = x Aᵀ, h Bᵀ       2·N·r·(in + out)
    backward, dx   dy W            2·N·out·in        dh = dy B, dh A      2·N·r·(in + out)
    backward, dW   dyᵀ x           2·N·out·in        dB = dyᵀ h, dA = dhᵀ x   2·N·r·(in + out)

Full fine-tuning does the left column; LoRA drops its last line and adds the right column. For a square W (n, n) that is
2n² + 6nr multiply-adds a token in place of 3n² (Schulman 2025, "LoRA Without Regret"). Norms, softmax, activations and the
optimizer are not counted: they touch each number once, where a product uses it a thousand times.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..peft.config import PeftConfig
from ..peft.cost import Products, linear_products
from .resolve import Model, resolve_model, with_usage_in_errors
from .structure import Layer


@dataclass(frozen=True)
class Flops:
    """What one training step computes, in floating point operations."""

    tokens: int
    linear: Products = field(default_factory=Products)  # the blocks' W
    adapter: Products = field(default_factory=Products)  # A and B, or what else was added, wherever it is
    attention: Products = field(default_factory=Products)  # q kᵀ and p v
    head: Products = field(default_factory=Products)  # hidden states → logits

    @property
    def products(self) -> Products:
        """All of them together."""
        return self.linear + self.adapter + self.attention + self.head

    @property
    def total(self) -> int:
        return self.products.total

    def __str__(self) -> str:
        """A table in GFLOP (10⁹), and the sum for each token."""
        parts = {"linear layers, W": self.linear, "adapters": self.adapter, "attention": self.attention}
        parts |= {"output head": self.head, "sum": self.products}
        lines = [f"{'GFLOP':<20}{'forward':>14}{'backward, dx':>14}{'backward, dW':>14}{'sum':>14}"]
        for name, p in parts.items():
            lines.append(f"{name:<20}" + "".join(f"{n / 1e9:>14,.3f}" for n in (p.forward, p.dx, p.dW, p.total)))
        return "\n".join([*lines, f"{self.total / self.tokens / 1e9:,.4f} GFLOP for each of {self.tokens:,} tokens"])


@with_usage_in_errors
def flops(
    model: Model,
    config: PeftConfig | None = None,
    *,
    batch: int,
    seq: int,
    quantize: str | None = None,
    attention_block: int = 1,
) -> Flops:
    """The floating point operations of one training step on `batch` sequences of `seq` tokens, all of them predicted.

        flops("llama-2-7b", LoraConfig(r=16, target_modules="all-linear"), batch=2, seq=2048)
        flops(peft_model, batch=2, seq=256)                             a live model as it is

    model, config, quantize: as in `memory`. Only matrix products count: the decoding of a quantised matrix costs 0
        here. A gradient that no trained parameter needs is not computed, so it is not counted. The second forward of
        gradient checkpointing is not counted either.
    attention_block: how many queries go through attention together, over the keys that the last of them sees. 1 counts
        what causality needs, seq·(seq + 1)/2 scores; `ops.attention.BLOCK` what this library computes; seq all scores.

    Raises ValueError for a number below 1, and as `memory` does.
    """
    if min(batch, seq, attention_block) < 1:
        raise ValueError(f"batch {batch}, seq {seq}, attention_block {attention_block}: expected at least 1 of each")
    body, tokens = resolve_model(model, config, quantize).structure(), batch * seq
    scores = body.heads * batch * (causal_scores(seq, attention_block) + seq * body.virtual_tokens)
    linear, attention = Products(), Products()
    adapter = body.prefix.products if body.prefix else Products()
    for sublayer, need_dx in body.sublayers():
        inner = need_dx or sublayer.inner_trainable  # the gradient between the layers that read and the one that writes
        layers = [(layer, need_dx) for layer in sublayer.input_layers] + [(sublayer.output_layer, inner)]
        for layer, need in layers:
            linear += weight_products(layer, tokens, need)
            adapter += adapter_products(layer, tokens, need)
        if sublayer.is_attention:  # q kᵀ and p v; backward dp, dv, dq and dk
            attention += Products(4 * body.head_dim * scores, 8 * body.head_dim * scores * inner)
    need = body.trainable_below_the_head
    adapter += adapter_products(body.head, tokens, need)
    return Flops(tokens, linear, adapter, attention, weight_products(body.head, tokens, need))


def weight_products(layer: Layer, tokens: int, need_dx: bool) -> Products:
    """x Wᵀ, dy W where it is needed, dyᵀ x where W is trained: 2·N·out·in each."""
    return linear_products(tokens, layer.out, layer.in_, need_dx, layer.trained)


def adapter_products(layer: Layer, tokens: int, need_dx: bool) -> Products:
    """What the layer's adapter multiplies, if it has one."""
    return layer.adapter.products(tokens, layer.out, layer.in_, need_dx) if layer.adapter else Products()


def causal_scores(seq: int, block: int = 1) -> int:
    """Scores of one head over one sequence, where `block` queries at a time see the keys up to the last of them."""
    starts = range(0, seq, block)
    return sum((min(start + block, seq) - start) * min(start + block, seq) for start in starts)
