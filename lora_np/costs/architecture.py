"""Architectures of published models: the shape (out, in) of every matrix.

Parameters, bytes and FLOPs are computed from these shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..nn.targets import OUTPUT_HEAD
from ..transformer import TransformerConfig


@dataclass(frozen=True)
class LinearShape:
    """The shape of one linear layer y = x Wᵀ + b.

    Parameters
    ----------
    name : str
        Name within the block, such as "self_attn.q_proj".
    out, in_ : int
        Shape of W, (out, in).
    bias : bool
        True if the layer has a bias b (out,).

    Examples
    --------
    >>> from lora_np.costs import LinearShape
    >>> LinearShape("mlp.c_fc", out=8, in_=3, bias=True).parameters
    32
    """

    name: str
    out: int
    in_: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """The number of parameters: out·in, plus `out` if the layer has a bias."""
        return self.out * self.in_ + (self.out if self.bias else 0)


@dataclass(frozen=True)
class Architecture:
    """A decoder-only Transformer: embeddings, equal blocks, a final norm and an output head.

    Each block has two norms and the linear layers of `linears`.

    Parameters
    ----------
    name : str
        Name of the model, for example "llama-2-7b".
    layers : int
        Number of blocks.
    hidden : int
        Width d of the residual stream.
    heads, kv_heads : int
        Number of query heads, and number of key/value heads. In grouped-query attention, kv_heads < heads.
    vocabulary : int
        Number of tokens in the vocabulary.
    block : str
        Name of a block, with {} in place of its index: "model.layers.{}".
    linears : tuple of LinearShape
        The linear layers of one block. Within the attention and within the MLP, the output layer comes last.
    norm_vectors : int
        Number of vectors of length d per norm: RMSNorm has 1 (gain), LayerNorm has 2 (gain and bias).
    positions : int
        Number of rows of a learned position embedding; 0 for rotary embeddings.
    tied : bool
        True if the output head shares the matrix of the token embedding. The matrix is then counted once.
    config : TransformerConfig or None
        The configuration from which `architecture_from_config` made this architecture; None for other architectures.
    block_norms : int or None
        Number of parameters of all norms in one block; None means two norms with `norm_vectors` vectors each.

    Examples
    --------
    >>> from lora_np import costs
    >>> model = costs.MODELS["smollm2-135m"]
    >>> model.layers, model.head_dim, f"{model.parameters:,}"
    (30, 64, '134,515,008')
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    block: str
    linears: tuple[LinearShape, ...]
    norm_vectors: int
    positions: int = 0
    tied: bool = False
    config: TransformerConfig | None = None
    block_norms: int | None = None

    @property
    def head_dim(self) -> int:
        """The number of features per attention head."""
        return self.hidden // self.heads if self.config is None else self.config.head_dim

    @property
    def head(self) -> LinearShape:
        """The shape of the output head's weight W, (vocabulary, d)."""
        return LinearShape(OUTPUT_HEAD, self.vocabulary, self.hidden)

    @property
    def mlp(self) -> tuple[LinearShape, ...]:
        """The linear layers of a block's MLP. The last layer writes to the residual stream."""
        return tuple(linear for linear in self.linears if linear.name.startswith("mlp."))

    @property
    def attention(self) -> tuple[LinearShape, ...]:
        """The linear layers of a block's attention.

        The last layer writes to the residual stream.
        """
        return tuple(linear for linear in self.linears if linear not in self.mlp)

    def linear_layers(self) -> dict[str, LinearShape]:
        """Return the shape of every linear layer by its full name.

        Returns
        -------
        dict of str to LinearShape
            The layers of the first block, then of the second block, and so on; the output head is the last entry.
        """
        blocks = {
            f"{self.block.format(i)}.{linear.name}": linear for i in range(self.layers) for linear in self.linears
        }
        return blocks | {OUTPUT_HEAD: self.head}

    @property
    def embedding_parameters(self) -> int:
        """The number of parameters of the token and position embeddings."""
        return (self.vocabulary + self.positions) * self.hidden

    @property
    def block_linear_parameters(self) -> int:
        """The number of parameters (including biases) of all linear layers that "all-linear" selects."""
        return self.layers * sum(linear.parameters for linear in self.linears)

    @property
    def norm_parameters(self) -> int:
        """The number of parameters of all norms: the norms of the blocks and the final norm."""
        norm = self.norm_vectors * self.hidden
        return self.layers * (2 * norm if self.block_norms is None else self.block_norms) + norm

    @property
    def head_parameters(self) -> int:
        """The number of parameters of the output head; 0 if it shares the token embedding's matrix."""
        return 0 if self.tied else self.head.parameters

    @property
    def parameters(self) -> int:
        """The number of parameters of the model, without adapters."""
        return self.embedding_parameters + self.block_linear_parameters + self.norm_parameters + self.head_parameters


def llama(
    name: str, layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocabulary: int, tied: bool = False
) -> Architecture:
    """Return the architecture of a Llama-like model (Llama, Mistral, SmolLM2).

    These models have RMSNorm, rotary position embeddings and a gated MLP. They have no biases. The layers have the
    names of transformers' LlamaForCausalLM.

    Parameters
    ----------
    name : str
        Name of the model.
    layers, hidden, heads, kv_heads : int
        As in `Architecture`. The number of features per head is `hidden` divided by `heads`.
    ffn : int
        Width of the MLP.
    vocabulary : int
        Number of tokens in the vocabulary.
    tied : bool
        True if the output head shares the token embedding's matrix.

    Returns
    -------
    Architecture
        The architecture. Pass it to `count`, `flops`, `memory` or `report`.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.llama("tiny", 2, hidden=8, heads=2, kv_heads=1, ffn=16, vocabulary=32).parameters
    1704
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
    """Return the architecture of a GPT-2-like model.

    These models have biases, LayerNorm, learned positions, an MLP of width 4d and a tied output head.

    Parameters
    ----------
    name : str
        Name of the model.
    layers, hidden, heads : int
        As in `Architecture`.
    positions : int
        Number of rows of the learned position embedding.
    fused : bool
        If True, one matrix c_attn (3d, d) computes queries, keys and values, and the layers have the names of
        transformers' GPT2LMHeadModel. If False, the attention has q_proj, k_proj, v_proj and o_proj of shape (d, d).
        The LoRA paper counts adapters of these four matrices for GPT-3, whose code is not public.

    Returns
    -------
    Architecture
        The architecture. Pass it to `count`, `flops`, `memory` or `report`.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.gpt("gpt-2", layers=12, hidden=768, heads=12, positions=1024, fused=True).parameters
    124439808
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
    """Return the architecture of a published model.

    Parameters
    ----------
    name : str
        A key of `MODELS`.

    Returns
    -------
    Architecture
        `MODELS[name]`.

    Raises
    ------
    ValueError
        If the name is unknown. The message lists the known names.

    Examples
    --------
    >>> from lora_np import costs
    >>> costs.architecture_of("gpt-2").layers
    12
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; use one of {', '.join(MODELS)}")
    return MODELS[name]
