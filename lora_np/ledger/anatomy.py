"""A model as a training step meets it: which layer reads what, what is trained, and where the backward stops.

Each block is twice the same figure, and a Half is one of them:

    x → norm → layers that read → attention, or the MLP's activation → the layer that writes → + x
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..targets import OUTPUT_HEAD, select_targets
from .architecture import Architecture, LinearShape, architecture_of
from .parameters import ADAPTER_MARK, check_rank

if TYPE_CHECKING:
    from ..transformer import Transformer


METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class Layer:
    """A linear layer in a step: W (out, in), frozen or trained, and an adapter of rank r where r > 0."""

    name: str
    out: int
    in_: int
    trained: bool  # W itself gets a gradient
    r: int = 0
    trainable: bool = False  # anything here is: W, a bias, A or B
    dropout: bool = False  # on the adapter's input
    A_trained: bool = True  # of an adapter; LoRA-FA freezes A, and needs no x for dA
    quantized: bool = False  # W is stored in fewer bits, and decoded for each product
    widened: bool = False  # A and B are stored in 16 bits, and copied to float32 for each product


@dataclass(frozen=True)
class Half:
    """Half a block: a norm, the layers that read what it makes, and the one that writes back to the residual stream."""

    norm_trained: bool
    reads: tuple[Layer, ...]
    writes: Layer
    is_attention: bool

    @property
    def reads_trainable(self) -> bool:
        return any(layer.trainable for layer in self.reads)

    @property
    def trainable(self) -> bool:
        return self.norm_trained or self.reads_trainable or self.writes.trainable


@dataclass(frozen=True)
class Anatomy:
    """All that a training step's arithmetic and memory depend on, the number of tokens apart."""

    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    embedding_trained: bool
    blocks: tuple[tuple[Half, Half], ...]  # (attention, MLP)
    norm_trained: bool
    head: Layer

    def walk(self) -> list[tuple[Half, bool]]:
        """(half, whether its reading layers must give dx), from the embedding up.

        A gradient is computed down to the lowest trainable parameter: a layer's dx where something below it trains.
        """
        below, steps = self.embedding_trained, []
        for half in (half for block in self.blocks for half in block):
            steps.append((half, below or half.norm_trained))
            below = below or half.trainable
        return steps

    def layers(self) -> list[Layer]:
        """Every linear layer, from below, the head last."""
        return [layer for half, _ in self.walk() for layer in (*half.reads, half.writes)] + [self.head]

    @property
    def trainable_below_the_head(self) -> bool:
        return self.embedding_trained or self.norm_trained or any(half.trainable for half, _ in self.walk())


def anatomy(
    model: Any, method: str | None = None, r: int | None = None, target_modules: str | Collection[str] | None = None
) -> Anatomy:
    """The anatomy of a published model (a name or an Architecture) under `method`, or of a live one as it stands.

    method: "full", everything is trained; "lora", adapters of rank r beside the layers that target_modules means (see
    targets.py); "qlora", the same over blocks whose matrices are quantised. None means lora where r is given and full
    otherwise. A live Transformer or PeftModel takes no settings.

    Raises ValueError for an unknown model, method or target module, and for settings without a use; TypeError for what
    is no model.
    """
    if isinstance(model, str):
        model = architecture_of(model)
    if not isinstance(model, Architecture):
        if (method, r, target_modules) != (None, None, None):
            raise ValueError("a live model is taken as it stands: call get_peft_model first, and give no settings.")
        return live_anatomy(model)
    method = method or ("full" if r is None and target_modules is None else "lora")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; the ledger knows {', '.join(METHODS)}.")
    if method == "full" and (r is not None or target_modules is not None):
        raise ValueError("method 'full' trains every parameter: it has no r and no target_modules.")
    if method != "full" and (r is None or target_modules is None):
        raise ValueError(f'method {method!r} needs r and target_modules, for example r=8, target_modules="all-linear".')
    full = method == "full"
    chosen = set()
    if not full:
        check_rank(r)
        chosen = set(select_targets(list(model.linear_layers()), target_modules))

    def layer(name: str, shape: LinearShape) -> Layer:
        rank = r if name in chosen else 0
        quantized = method == "qlora" and name != OUTPUT_HEAD
        return Layer(name, shape.out, shape.in_, full, rank, trainable=full or rank > 0, quantized=quantized)

    def half(i: int, shapes: list[LinearShape]) -> Half:
        *reads, writes = (layer(f"{model.block.format(i)}.{shape.name}", shape) for shape in shapes)
        return Half(full, tuple(reads), writes, is_attention=shapes is attention)

    mlp = [shape for shape in model.linears if shape.name.startswith("mlp.")]
    attention = [shape for shape in model.linears if shape not in mlp]
    return Anatomy(
        model.name,
        model.hidden,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.vocabulary,
        embedding_trained=full,
        blocks=tuple((half(i, attention), half(i, mlp)) for i in range(model.layers)),
        norm_trained=full,
        head=layer(OUTPUT_HEAD, model.head),
    )


def live_anatomy(model: Any) -> Anatomy:
    """The same of a Transformer, or of a PeftModel with its active adapter, if that is LoRA's.

    Raises ValueError for an adapter of another method, TypeError for anything else.
    """
    transformer: Transformer = model if hasattr(model, "hidden") else getattr(model, "model", None)
    if not hasattr(transformer, "hidden"):
        raise TypeError(f"expected a model's name, an Architecture or a model, not {type(model).__name__}.")
    active = getattr(model, "active_adapter", None)
    if active is not None:
        own = set(map(id, model.adapter_parameters(active)))
        if any(id(p) in own and ADAPTER_MARK not in name for name, p in model.named_parameters()):
            kind = type(model.peft_config[active]).__name__
            raise ValueError(
                f"a step's memory and FLOPs are counted for LoRA and for full fine-tuning; the active adapter has a {kind}. "
                "Its parameters are counted by count(model)."
            )

    def layer(name: str, linear: Any) -> Layer:
        while hasattr(linear, "base_layer") and not hasattr(linear, "lora_A"):
            linear = linear.base_layer  # another method's wrapper, which is not active
        base = getattr(linear, "base_layer", linear)
        factor = None if getattr(linear, "merged", None) else getattr(linear, "lora_A", {}).get(active)
        weight = getattr(base, "weight", None)  # a quantised layer may have none that trains
        if factor is not None and linear.configs[active].use_dora:
            raise ValueError(f"{name} has DoRA, of which the ledger counts the parameters alone: count(model)")
        return Layer(
            name,
            linear.out_features,
            linear.in_features,
            trained=weight is not None and getattr(weight, "trainable", False),
            r=0 if factor is None else factor.value.shape[0],
            trainable=linear.trainable,
            dropout=factor is not None and linear.configs[active].lora_dropout > 0,
            A_trained=factor is None or factor.trainable,
            quantized=hasattr(base, "nbytes"),
            widened=factor is not None and factor.value.itemsize == 2,
        )

    def half(norm: Any, module: Any, prefix: str, names: list[str]) -> Half:
        *reads, writes = (layer(f"{prefix}.{name}", getattr(module, name)) for name in names)
        return Half(norm.weight.trainable, tuple(reads), writes, is_attention="q_proj" in names)

    decoder, config = transformer.model, transformer.config
    blocks = []
    for i, block in enumerate(decoder.layers):
        prefix, attention = f"model.layers.{i}", ["q_proj", "k_proj", "v_proj", "o_proj"]
        mlp = ["gate_proj", "up_proj", "down_proj"]
        blocks.append(
            (
                half(block.input_layernorm, block.self_attn, f"{prefix}.self_attn", attention),
                half(block.post_attention_layernorm, block.mlp, f"{prefix}.mlp", mlp),
            )
        )
    return Anatomy(
        type(model).__name__,
        config.hidden_size,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.head_dim,
        config.vocab_size,
        decoder.embed_tokens.weight.trainable,
        tuple(blocks),
        decoder.norm.weight.trainable,
        layer(OUTPUT_HEAD, transformer._head),
    )
