"""Inserts adapters into linear layers and removes them. A Linear with adapters is wrapped in an AdaptedLinear."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, cast

from ..nn import Linear, Module, replace_module
from ..nn.targets import OUTPUT_HEAD
from ..transformer import Transformer
from .adapted_linear import AdaptedLinear
from .trained_copy import embedding_name


def adaptable_layers(model: Module) -> dict[str, Linear]:
    """Return a dictionary of all linear layers by name, in the model's order.

    For an AdaptedLinear, the dictionary contains the Linear inside the AdaptedLinear. A head that is tied to the embedding
    is a linear layer too, as in PEFT.
    """
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            found[path.removesuffix(".base_layer")] = module
    if OUTPUT_HEAD not in found and isinstance(model, Transformer):
        found[OUTPUT_HEAD] = model.linear_head
    return found


def is_tied(model: Module, name: str) -> bool:
    """Return True if `name` is the embedding or the head of the model, and these two share one weight."""
    return (
        name in (OUTPUT_HEAD, embedding_name(model))
        and isinstance(model, Transformer)
        and model.config.tie_word_embeddings
    )


def adapted_layers(model: Module, adapter_name: str | None = None) -> dict[str, AdaptedLinear]:
    """Return a dictionary of the layers with adapters by name, in the model's order.

    If `adapter_name` is given, only layers with this adapter are returned.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}
    return {n: layer for n, layer in found.items() if adapter_name is None or adapter_name in layer.adapters}


def adapt(model: Module, names: Iterable[str]) -> Iterator[tuple[str, AdaptedLinear]]:
    """Yield the name and the AdaptedLinear of each named layer. A layer without adapters is wrapped first.

    The layer is a Linear or, for a TrainedCopy, also an Embedding or an RMSNorm. If the embedding is wrapped and the
    head shares the weight of the embedding, the head becomes a module of its own with the same Parameter. A merge then
    does not change the head.
    """
    modules = dict(model.named_modules())
    for name in names:
        if name == embedding_name(model) and is_tied(model, name) and OUTPUT_HEAD not in modules:
            list(adapt(model, [OUTPUT_HEAD]))
            modules = dict(model.named_modules())
        layer: Any = modules[name] if name in modules else cast(Transformer, model).linear_head
        if not isinstance(layer, AdaptedLinear):
            layer = AdaptedLinear(layer)
            layer.tied = is_tied(model, name)
            replace_module(model, name, layer)
        yield name, layer


def remove(model: Module, adapter_name: str | None = None) -> None:
    """Remove one adapter, or all adapters, from every layer.

    A layer that has no adapter left becomes a Linear again.
    """
    layers = adapted_layers(model)
    for layer in layers.values():
        if adapter_name is None:
            layer.adapters.clear()
        else:
            layer.adapters.pop(adapter_name, None)
    embedding = layers.get(embedding_name(model))
    for name, layer in layers.items():
        if not layer.adapters and not (name == OUTPUT_HEAD and layer.tied and embedding and embedding.adapters):
            replace_module(model, name, layer.base_layer)
    head = getattr(model, OUTPUT_HEAD, None)
    if is_tied(model, OUTPUT_HEAD) and isinstance(head, Linear):
        tie_or_untie(cast(Transformer, model))


def tie_or_untie(model: Transformer) -> None:
    """Delete the head if it still has the weight of the embedding; otherwise, mark the two weights as not tied.

    The weights differ if an adapter was merged into the head or into the embedding.
    """
    if model.lm_head.weight is model.model.embed_tokens.weight:
        del model.lm_head
    else:
        model.config = replace(model.config, tie_word_embeddings=False)
