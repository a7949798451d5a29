"""The FLOPs of all matrix products of one training step.

One multiplication and one addition are two FLOPs.

These are the matrix products for N tokens, a weight W (out, in) and an adapter with A (r, in) and B (out, r):

    forward        x Wᵀ            2·N·out·in        h = x Aᵀ, h Bᵀ           2·N·r·(in + out)
    backward, dx   dy W            2·N·out·in        dh = dy B, dh A          2·N·r·(in + out)
    backward, dW   dyᵀ x           2·N·out·in        dB = dyᵀ h, dA = dhᵀ x   2·N·r·(in + out)

Full fine-tuning computes the three products on the left. LoRA computes all products except dyᵀ x. For a square W
(n, n), LoRA needs 2n² + 6nr multiply-adds per token, and full fine-tuning needs 3n² (Schulman 2025, "LoRA Without
Regret"). Norms, softmax, activations and the optimizer are not counted, because they use each number once. A matrix
product uses each number about a thousand times.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..peft.config import PeftConfig
from ..peft.cost import Products, linear_products
from .resolve import Model, resolve_model, with_usage_in_errors
from .structure import Layer


@dataclass(frozen=True)
class Flops:
    """The floating-point operations (FLOPs) of one training step.

    Parameters
    ----------
    tokens : int
        Number of tokens, batch·seq.
    linear : Products
        Products with the weights W of the blocks.
    adapter : Products
        Products with the adapters' matrices.
    attention : Products
        The products q kᵀ and p v of the attention.
    head : Products
        Products with the output head, which turns hidden states into logits.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> step = costs.flops("llama-2-7b", LoraConfig(r=8), batch=1, seq=512)
    >>> f"{step.total / step.tokens / 1e9:.1f} GFLOP per token"
    '26.8 GFLOP per token'
    """

    tokens: int
    linear: Products = field(default_factory=Products)
    adapter: Products = field(default_factory=Products)
    attention: Products = field(default_factory=Products)
    head: Products = field(default_factory=Products)

    @property
    def products(self) -> Products:
        """The FLOPs of all matrix products together."""
        return self.linear + self.adapter + self.attention + self.head

    @property
    def total(self) -> int:
        """All FLOPs of the step."""
        return self.products.total

    def __str__(self) -> str:
        """Return a table with the GFLOP (10⁹ FLOPs) of each part and the GFLOP per token."""
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
    """Count the floating-point operations of one training step.

    Only the gradients that the trained parameters need are computed and counted. Two things are not counted: the
    decoding of quantised matrices, and the second forward pass of gradient checkpointing.

    Parameters
    ----------
    model : str, Architecture, Transformer or PeftModel
        As in `memory`.
    config : PeftConfig or None
        As in `memory`.
    batch, seq : int
        Number of sequences, and number of tokens per sequence. The loss is computed for every token.
    quantize : {"nf4", "fp4", "int4"} or None
        As in `memory`.
    attention_block : int
        Number of queries in a block. Each query is multiplied with all keys up to the last position of its block. The
        value 1 counts the seq·(seq + 1)/2 scores that causal attention needs, `ops.attention.BLOCK` counts the scores
        that this library computes, and `seq` counts all seq² scores.

    Returns
    -------
    Flops
        The FLOPs by part; `print` shows them as a table.

    Raises
    ------
    ValueError
        If `batch`, `seq` or `attention_block` is below 1, or if `memory` raises ValueError for these arguments.
    TypeError
        As in `memory`.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> full = costs.flops("llama-2-7b", batch=1, seq=512)
    >>> lora = costs.flops("llama-2-7b", LoraConfig(r=16, target_modules="all-linear"), batch=1, seq=512)
    >>> f"{lora.total / full.total:.2f}"
    '0.67'
    """
    if min(batch, seq, attention_block) < 1:
        raise ValueError(f"batch {batch}, seq {seq}, attention_block {attention_block}; expected at least 1 for each")
    structure, tokens = resolve_model(model, config, quantize).structure(), batch * seq
    linear, attention = Products(), Products()
    adapter = structure.prefix.products if structure.prefix else Products()
    for sublayer, need_dx in structure.sublayers():
        inner = need_dx or sublayer.inner_trainable  # whether the output layer computes dx
        layers = [(layer, need_dx) for layer in sublayer.input_layers] + [(sublayer.output_layer, inner)]
        for layer, need in layers:
            linear += weight_products(layer, tokens, need)
            adapter += adapter_products(layer, tokens, need)
        if sublayer.is_attention:  # q kᵀ and p v; backward dp, dv, dq and dk
            scores = causal_scores(seq, attention_block, structure.virtual_tokens, sublayer.window)
            scores *= structure.heads * batch
            attention += Products(4 * structure.head_dim * scores, 8 * structure.head_dim * scores * inner)
    need = structure.trainable_below_the_head
    adapter += adapter_products(structure.head, tokens, need)
    return Flops(tokens, linear, adapter, attention, weight_products(structure.head, tokens, need))


def weight_products(layer: Layer, tokens: int, need_dx: bool) -> Products:
    """Return the FLOPs of the base layer's products: x Wᵀ, dy W if dx is needed, and dyᵀ x if W is trained."""
    return linear_products(tokens, layer.out, layer.in_, need_dx, layer.trained)


def adapter_products(layer: Layer, tokens: int, need_dx: bool) -> Products:
    """Return the FLOPs of the layer's adapter; zero without an adapter."""
    return layer.adapter.products(tokens, layer.out, layer.in_, need_dx) if layer.adapter else Products()


def causal_scores(seq: int, block: int = 1, prefix: int = 0, window: int | None = None) -> int:
    """Return the number of attention scores of one head and one sequence. The prefix's keys come before all other keys.

    For each query, the scores of all keys up to the last position of its block are counted. With a sliding window, the
    keys before the window of the block's first query are not counted.
    """
    total = 0
    for start in range(0, seq, block):
        stop = min(start + block, seq)
        first = 0 if window is None else max(0, prefix + start + 1 - window)
        total += (stop - start) * (prefix + stop - first)
    return total
