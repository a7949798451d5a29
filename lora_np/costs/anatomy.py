"""The anatomy of a published model under a method, on paper, and of a live model as it stands."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..nn.targets import OUTPUT_HEAD
from .adaptation import Adaptation
from .architecture import Architecture, LinearShape, architecture_of
from .body import Anatomy, Half, Layer

if TYPE_CHECKING:
    from ..transformer import Transformer


def anatomy(
    model: Any,
    method: str | None = None,
    r: int | None = None,
    target_modules: str | Collection[str] | None = None,
    virtual_tokens: int | None = None,
    bottleneck_size: int | None = None,
) -> Anatomy:
    """The anatomy of a published model (a name or an Architecture) under a method, or of a live one as it stands.

    The settings are those of `Adaptation`; a live Transformer or PeftModel takes none.

    Raises ValueError for an unknown model, method or target module, and for settings without a use; TypeError for what
    is no model.
    """
    settings = method, r, target_modules, virtual_tokens, bottleneck_size
    if isinstance(model, str):
        model = architecture_of(model)
    if isinstance(model, Architecture):
        return paper_anatomy(model, Adaptation(*settings))
    if any(setting is not None for setting in settings):
        raise ValueError("a live model is taken as it stands: call get_peft_model first, and give no settings.")
    return live_anatomy(model)


def paper_anatomy(model: Architecture, adaptation: Adaptation) -> Anatomy:
    """Of a published model."""
    full, adapters, prefix = adaptation.method == "full", adaptation.adapters(model), adaptation.prefix(model)

    def layer(name: str, shape: LinearShape) -> Layer:
        quantized = adaptation.method == "qlora" and name != OUTPUT_HEAD
        adapter = adapters.get(name)
        return Layer(
            name, shape.out, shape.in_, full, adapter, trainable=full or adapter is not None, quantized=quantized
        )

    def half(i: int, shapes: tuple[LinearShape, ...], is_attention: bool) -> Half:
        *reads, writes = (layer(f"{model.block.format(i)}.{shape.name}", shape) for shape in shapes)
        return Half(full, tuple(reads), writes, is_attention, past_trained=is_attention and prefix is not None)

    return Anatomy(
        model.name,
        model.hidden,
        model.heads,
        model.kv_heads,
        model.head_dim,
        model.vocabulary,
        embedding_trained=full,
        blocks=tuple((half(i, model.attention, True), half(i, model.mlp, False)) for i in range(model.layers)),
        norm_trained=full,
        head=layer(OUTPUT_HEAD, model.head),
        prefix=prefix,
    )


def live_anatomy(model: Any) -> Anatomy:
    """Of a Transformer, or of a PeftModel with its active adapter.

    Wrappers and a prefix say `on_paper` what they are. Raises ValueError where they do not, TypeError for what is no model.
    """
    transformer: Transformer = model if hasattr(model, "hidden") else getattr(model, "model", None)
    if not hasattr(transformer, "hidden"):
        raise TypeError(f"expected a model's name, an Architecture or a model, not {type(model).__name__}.")
    active = getattr(model, "active_adapter", None)
    encoder = getattr(model, "prompt_encoder", {}).get(active)
    prefix = encoder.on_paper() if encoder else None
    said = [prefix] if prefix else []
    said += [m.on_paper(active) for _, m in transformer.named_modules() if active in getattr(m, "configs", ())]
    if active is not None and (not said or None in said):
        kind = type(model.peft_config[active]).__name__
        raise ValueError(
            f"the ledger does not know what a step of a {kind} computes and holds, which the active adapter has. "
            "Its parameters are counted by count(model)."
        )

    def layer(name: str, module: Any) -> Layer:
        base, adapter = module, None
        while hasattr(base, "base_layer"):  # wrapper around wrapper; at most one is active
            if active in base.configs and not getattr(base, "merged", None):  # merged into W it costs nothing
                adapter = base.on_paper(active)
            base = base.base_layer
        weight = getattr(base, "weight", None)  # a quantised layer may have none that trains
        return Layer(
            name,
            module.out_features,
            module.in_features,
            weight is not None and getattr(weight, "trainable", False),
            adapter,
            trainable=module.trainable,
            quantized=hasattr(base, "nbytes"),
        )

    def half(norm: Any, module: Any, prefix_: str, names: list[str]) -> Half:
        *reads, writes = (layer(f"{prefix_}.{name}", getattr(module, name)) for name in names)
        is_attention = "q_proj" in names
        past_trained = is_attention and prefix is not None and prefix.trained
        return Half(norm.weight.trainable, tuple(reads), writes, is_attention, past_trained)

    decoder, config = transformer.model, transformer.config
    blocks = []
    for i, block in enumerate(decoder.layers):
        path, attention = f"model.layers.{i}", ["q_proj", "k_proj", "v_proj", "o_proj"]
        mlp = ["gate_proj", "up_proj", "down_proj"]
        blocks.append(
            (
                half(block.input_layernorm, block.self_attn, f"{path}.self_attn", attention),
                half(block.post_attention_layernorm, block.mlp, f"{path}.mlp", mlp),
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
        prefix,
    )
