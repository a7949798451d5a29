"""What adapting a model costs, counted exactly: for a live model, and on paper for published ones.

    Architecture   every matrix of a model as (out, in), and how often it occurs: all else is derived from it
    MODELS         published configurations by name
    count          parameters: all of them, and those that are trained
    report         the same as a table to read: python -m lora_np params --model llama-2-7b --r 16

An adapter of rank r beside W (out, in) has A (r, in) and B (out, r), so it trains r·(in + out) parameters where full
fine-tuning trains out·in. Everything below adds up such products.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lora_np.targets import OUTPUT_HEAD, select_targets

# --------------------------------------------------------------------------------------------------------------------
# An architecture


@dataclass(frozen=True)
class LinearShape:
    """The shape of one linear layer, y = x Wᵀ + b: W (out, in), and b (out,) where there is a bias."""

    name: str  # within its block, such as "self_attn.q_proj"
    out: int
    in_: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.out * self.in_ + (self.out if self.bias else 0)


@dataclass(frozen=True)
class Architecture:
    """A decoder-only Transformer: embeddings, `layers` equal blocks, a last norm, an output head.

    `hidden` is d, the width of the residual stream. Each block has two norms and the layers of `linears`.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int  # fewer than heads under grouped-query attention
    vocabulary: int
    block: str  # the name of a block, with {} for its number: "model.layers.{}"
    linears: tuple[LinearShape, ...]
    norm_vectors: int  # of length d in one norm: RMSNorm has a gain; LayerNorm a gain and a bias
    positions: int = 0  # rows of a learned table of positions; rotary embeddings need none
    tied: bool = False  # the head's matrix is the token embedding itself, and is counted once

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def head(self) -> LinearShape:
        return LinearShape(OUTPUT_HEAD, self.vocabulary, self.hidden)

    def linear_layers(self) -> dict[str, LinearShape]:
        """Every linear layer by its full name, block after block, the output head last."""
        blocks = {
            f"{self.block.format(i)}.{linear.name}": linear for i in range(self.layers) for linear in self.linears
        }
        return blocks | {OUTPUT_HEAD: self.head}

    @property
    def embedding_parameters(self) -> int:
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def block_linear_parameters(self) -> int:
        """The linear layers of all blocks, biases included: what "all-linear" reaches."""
        return self.layers * sum(linear.parameters for linear in self.linears)

    @property
    def norm_parameters(self) -> int:
        return (2 * self.layers + 1) * self.norm_vectors * self.hidden

    @property
    def head_parameters(self) -> int:
        return 0 if self.tied else self.head.parameters

    @property
    def parameters(self) -> int:
        """All parameters of the model, without any adapter."""
        return self.embedding_parameters + self.block_linear_parameters + self.norm_parameters + self.head_parameters


def llama(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, tied: bool = False
) -> Architecture:
    """The Llama family, Mistral and SmolLM2 included: no biases, RMSNorm, rotary positions, a gated MLP of width ffn.

    Keys and values have kv_heads heads of hidden/heads features each. Names as in transformers' LlamaForCausalLM.
    """
    kv = kv_heads * hidden // heads
    linears = (
        LinearShape("self_attn.q_proj", hidden, hidden),
        LinearShape("self_attn.k_proj", kv, hidden),
        LinearShape("self_attn.v_proj", kv, hidden),
        LinearShape("self_attn.o_proj", hidden, hidden),
        LinearShape("mlp.gate_proj", ffn, hidden),
        LinearShape("mlp.up_proj", ffn, hidden),
        LinearShape("mlp.down_proj", hidden, ffn),
    )
    return Architecture(
        name, layers, hidden, heads, kv_heads, vocabulary, "model.layers.{}", linears, norm_vectors=1, tied=tied
    )


def gpt(name: str, layers: int, hidden: int, heads: int, positions: int, fused: bool) -> Architecture:
    """The GPT-2 family: biases, LayerNorm, learned positions, a plain MLP of width 4d, a tied head.

    Names as in transformers' GPT2LMHeadModel, where one matrix c_attn (3d, d) makes queries, keys and values. GPT-3
    has no public code: with fused=False its attention gets q_proj, k_proj, v_proj and o_proj of (d, d), the four
    matrices W_q, W_k, W_v, W_o whose adapters the LoRA paper counts.
    """
    if fused:
        attention = (
            LinearShape("attn.c_attn", 3 * hidden, hidden, bias=True),
            LinearShape("attn.c_proj", hidden, hidden, bias=True),
        )
    else:
        attention = tuple(LinearShape(f"attn.{letter}_proj", hidden, hidden, bias=True) for letter in "qkvo")
    mlp = (
        LinearShape("mlp.c_fc", 4 * hidden, hidden, bias=True),
        LinearShape("mlp.c_proj", hidden, 4 * hidden, bias=True),
    )
    return Architecture(
        name,
        layers,
        hidden,
        heads,
        kv_heads=heads,
        vocabulary=50_257,
        block="transformer.h.{}",
        linears=attention + mlp,
        norm_vectors=2,
        positions=positions,
        tied=True,
    )


# Sources: each model's config.json on the Hugging Face Hub; GPT-3: Brown et al. 2020, table 2.1.
MODELS: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        gpt("gpt-2", layers=12, hidden=768, heads=12, positions=1024, fused=True),
        llama("smollm2-135m", 30, hidden=576, heads=9, kv_heads=3, ffn=1536, vocabulary=49_152, tied=True),
        llama("llama-2-7b", 32, hidden=4096, heads=32, kv_heads=32, ffn=11_008, vocabulary=32_000),
        llama("mistral-7b", 32, hidden=4096, heads=32, kv_heads=8, ffn=14_336, vocabulary=32_000),
        llama("llama-3-8b", 32, hidden=4096, heads=32, kv_heads=8, ffn=14_336, vocabulary=128_256),
        llama("llama-2-13b", 40, hidden=5120, heads=40, kv_heads=40, ffn=13_824, vocabulary=32_000),
        llama("llama-2-70b", 80, hidden=8192, heads=64, kv_heads=8, ffn=28_672, vocabulary=32_000),
        llama("llama-3-70b", 80, hidden=8192, heads=64, kv_heads=8, ffn=28_672, vocabulary=128_256),
        gpt("gpt-3-175b", layers=96, hidden=12_288, heads=96, positions=2048, fused=False),
    )
}


def architecture_of(name: str) -> Architecture:
    """The published configuration called `name`. Raises ValueError with the known names."""
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; the ledger knows {', '.join(MODELS)}.")
    return MODELS[name]


# --------------------------------------------------------------------------------------------------------------------
# What each method adds


def lora_parameters(out: int, in_: int, r: int) -> int:
    """A (r, in) and B (out, r) beside one W (out, in): r·(in + out). Source: Hu et al. 2021, section 4.1.

    Raises ValueError where r is not a whole number of at least 1.
    """
    if not isinstance(r, int) or r < 1:
        raise ValueError(f"the rank r is {r!r}; it must be a whole number of at least 1.")
    return r * (in_ + out)


def prefix_parameters(virtual_tokens: int, layers: int, kv_heads: int, head_dim: int) -> int:
    """A trained key and a trained value for each virtual token in each layer: v·2L·(kv_heads·head_dim).

    Without the reparameterising MLP, which is thrown away after training. Source: Li and Liang 2021, section 4.
    """
    return virtual_tokens * 2 * layers * kv_heads * head_dim


def houlsby_parameters(d: int, m: int) -> int:
    """One bottleneck adapter d → m → d with both biases: 2md + d + m. A block holds two of them.

    The block's LayerNorms come on top where they are trained as well. Source: Houlsby et al. 2019, section 2.1.
    """
    return 2 * m * d + d + m


# --------------------------------------------------------------------------------------------------------------------
# Counting

ADAPTER_MARK = "lora_"  # in the name of every parameter that LoRA adds: …q_proj.lora_A.weight


@dataclass(frozen=True)
class Count:
    """How many parameters a model has, and how many of them are trained."""

    base: int  # the model without its adapter
    total: int  # the model with it
    trainable: int

    @property
    def frozen(self) -> int:
        return self.total - self.trainable

    @property
    def share(self) -> float:
        """trainable / total, the adapter counted in both, as PEFT prints it."""
        return self.trainable / self.total

    @property
    def reduction(self) -> float:
        """base / trainable: how many times fewer parameters are trained than by full fine-tuning."""
        return self.base / self.trainable if self.trainable else math.inf

    def __str__(self) -> str:
        """One line in the words of PEFT's print_trainable_parameters."""
        return (
            f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {100 * self.share:.4f}"
        )


def count(
    model: Any, r: int | None = None, target_modules: str | Collection[str] | None = None, method: str = "lora"
) -> Count:
    """Count parameters, all and trainable.

        count(peft_model)                              a live model, as it stands
        count("llama-2-7b", 8, ["q_proj", "v_proj"])   a published one with LoRA; an Architecture of your own also works
        count("llama-2-7b", method="full")             the same under full fine-tuning

    A live model has `.named_parameters()` that yields (name, p) with `p.value` and `p.trainable`, a tied weight once.
    `target_modules` is a list, a single suffix, a regular expression or "all-linear" (see targets.py).

    Raises ValueError for an unknown model, method or target module, for r < 1, and for an argument without a use.
    """
    if isinstance(model, str):
        model = architecture_of(model)
    if not isinstance(model, Architecture):
        if (r, target_modules, method) != (None, None, "lora"):
            raise ValueError("a live model is counted as it stands: call get_peft_model first, then count(model).")
        return count_live(model)
    if method == "full":
        if r is not None or target_modules is not None:
            raise ValueError("method 'full' trains every parameter: it has no r and no target_modules.")
        return Count(base=model.parameters, total=model.parameters, trainable=model.parameters)
    if method != "lora":
        raise ValueError(f"unknown method {method!r}; the ledger knows full, lora.")
    if r is None or target_modules is None:
        raise ValueError("method 'lora' needs r and target_modules, for example r=8, target_modules=\"all-linear\".")
    added = sum(lora_parameters(linear.out, linear.in_, r) for linear in targeted(model, target_modules))
    return Count(base=model.parameters, total=model.parameters + added, trainable=added)


def count_live(model: Any) -> Count:
    """Add up the arrays that are there. Raises TypeError where `model` has no parameters to name."""
    if not hasattr(model, "named_parameters"):
        raise TypeError(f"count expects a model's name, an Architecture or a model, not {type(model).__name__}.")
    base = added = trainable = 0
    for name, parameter in model.named_parameters():
        size = parameter.value.size
        if ADAPTER_MARK in name:
            added += size
        else:
            base += size
        if parameter.trainable:
            trainable += size
    if base + added == 0:
        raise ValueError(f"this {type(model).__name__} has no parameters, so there is nothing to count.")
    return Count(base=base, total=base + added, trainable=trainable)


def targeted(architecture: Architecture, target_modules: str | Collection[str]) -> list[LinearShape]:
    """The linear layers that get an adapter, one entry for each layer of each block."""
    layers = architecture.linear_layers()
    return [layers[name] for name in select_targets(list(layers), target_modules)]


# --------------------------------------------------------------------------------------------------------------------
# Reading


def report(name: str, r: int, target_modules: str | Collection[str]) -> str:
    """The adapter of a published model as a table: each kind of layer, the sum, and the adapter file's size.

    The file's size is that of its tensors, in megabytes of 10⁶ bytes; its header adds some kilobytes.
    """
    architecture = architecture_of(name)
    result = count(architecture, r, target_modules)
    lines = [f"{'module':<18}{'W (out, in)':>18}{'layers':>8}{'LoRA, each':>14}{'LoRA, all':>16}"]
    for linear, times in Counter(targeted(architecture, target_modules)).items():
        shape = f"{linear.out:,} × {linear.in_:,}"
        each = lora_parameters(linear.out, linear.in_, r)
        lines.append(f"{linear.name:<18}{shape:>18}{times:>8}{each:>14,}{times * each:>16,}")
    return "\n".join(
        [
            f"{name}: {architecture.parameters:,} parameters, LoRA of rank {r}",
            "",
            *lines,
            "",
            str(result),
            f"{result.reduction:,.1f} times fewer than full fine-tuning trains",
            f"adapter file: {4 * result.trainable / 1e6:,.1f} MB in float32, "
            f"{2 * result.trainable / 1e6:,.1f} MB in 16 bit",
        ]
    )
