"""A model on paper: every matrix as (out, in), and how often it occurs. All else in the ledger is derived from it."""

from __future__ import annotations

from dataclasses import dataclass

from ..nn.targets import OUTPUT_HEAD


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

    @property
    def mlp(self) -> tuple[LinearShape, ...]:
        """A block's layers of its MLP, the one that writes to the residual stream last."""
        return tuple(linear for linear in self.linears if linear.name.startswith("mlp."))

    @property
    def attention(self) -> tuple[LinearShape, ...]:
        """The others, those of its attention, in the same order."""
        return tuple(linear for linear in self.linears if linear not in self.mlp)

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
    attention: tuple[LinearShape, ...]
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


# Sources: each model's config.json on the Hugging Face Hub; Llama 65B: Touvron et al. 2023, table 2; GPT-3: Brown et al.
# 2020, table 2.1.
MODELS: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        gpt("gpt-2", layers=12, hidden=768, heads=12, positions=1024, fused=True),
        llama("smollm2-135m", 30, hidden=576, heads=9, kv_heads=3, ffn=1536, vocabulary=49_152, tied=True),
        llama("llama-65b", 80, hidden=8192, heads=64, kv_heads=64, ffn=22_016, vocabulary=32_000),
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
