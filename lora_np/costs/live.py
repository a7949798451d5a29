"""A live model: its parameters, the bytes of its arrays, and the anatomy of a step with its active adapter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any

from ..nn import Linear, Module, Parameter, RMSNorm, Trainable
from ..nn.targets import OUTPUT_HEAD
from ..peft import AdaptedLinear, PeftModel
from ..peft.cost import AdapterCost, PrefixCost
from ..peft.method import LayerMethod
from ..peft.placement import adapted_layers
from ..peft.registry import method_of
from ..quantization import Quantized4bit
from ..transformer import Transformer
from ..transformer.decoder import MLP, Attention, Block
from .structure import Layer, ModelStructure, Sublayer, check_cost_known


class LiveModel:
    """A Transformer or a PeftModel; any other Module has parameters to count, and no step."""

    def __init__(self, model: Module) -> None:
        self.model = model

    def parameters(self) -> tuple[int, int, int]:
        """(numbers of the base, numbers added to it, numbers trained). Raises ValueError where there are none."""
        parameters = [p for _, p in self.model.named_parameters()]
        total, trained = total_size(parameters), total_size(p for p in parameters if p.trainable)
        if total == 0:
            raise ValueError(f"this {type(self.model).__name__} has no parameters, so there is nothing to count.")
        added = total_size(adapter_parameters(self.model))
        return total - added, added, trained

    def fixed_bytes(self, slots: int) -> dict[str, int]:
        """The bytes of `Memory` that do not depend on the batch, from the arrays; an inactive adapter's too."""
        parameters = [p for _, p in self.model.named_parameters()]
        adapter = sum(p.value.nbytes for p in adapter_parameters(self.model))
        trained = [p for p in parameters if p.trainable]
        gradients = sum(p.value.size * p.compute_dtype.itemsize for p in trained)
        others = sum(stored_bytes(module) for _, module in self.model.named_modules())
        return {
            "weights": sum(p.value.nbytes for p in parameters) + others - adapter,
            "adapter": adapter,
            "gradients": gradients,
            "optimizer": slots * gradients,
            "master": sum(p.value.size * p.compute_dtype.itemsize for p in trained if p.value.dtype != p.compute_dtype),
        }

    @property
    def itemsize(self) -> int:
        """The bytes of a number that is computed: those of the embedding's."""
        return self.transformer.model.embed_tokens.weight.value.itemsize

    @property
    def transformer(self) -> Transformer:
        """The model, or the base in a PeftModel. Raises TypeError for another Module."""
        model = self.model.model if isinstance(self.model, PeftModel) else self.model
        if not isinstance(model, Transformer):
            raise TypeError(f"a step is of a Transformer or a PeftModel, got {type(model).__name__}")
        return model

    def adapter_costs(self) -> tuple[dict[str, AdapterCost], PrefixCost | None]:
        """What the active adapter adds to a step: layer → cost, and a prefix. Merged into the weights, it adds nothing.

        Raises ValueError where its method does not say.
        """
        if not isinstance(self.model, PeftModel) or self.model.active_adapter is None:
            return {}, None
        active = self.model.active_adapter
        config, encoder = self.model.peft_config[active], self.model.prompt_encoder.get(active)
        method, layers = method_of(config), adapted_layers(self.model.model, active)
        adapters, prefix = {}, encoder.cost() if encoder else None
        if isinstance(method, LayerMethod):
            adapters = {name: method.cost_of(layer.adapters[active]) for name, layer in layers.items()}
        check_cost_known(config, adapters, prefix)
        return {name: cost for name, cost in adapters.items() if not layers[name].merged}, prefix

    def structure(self) -> ModelStructure:
        """What a step's arithmetic and memory depend on."""
        transformer, (adapters, prefix) = self.transformer, self.adapter_costs()
        decoder, config = transformer.model, transformer.config
        prefix_trained = prefix is not None and prefix.trained

        def layer(name: str, module: Any) -> Layer:
            base = module.base_layer if isinstance(module, AdaptedLinear) else module
            weight = base.weight if isinstance(base, Linear) else None
            trained = weight is not None and weight.trainable
            quantized = stored_bytes(base) > 0 if weight is None else isinstance(weight.value, Quantized4bit)
            out, in_ = module.out_features, module.in_features
            return Layer(name, out, in_, trained, adapters.get(name), module.trainable, quantized)

        def sublayer(path: str, norm: RMSNorm, module: Attention | MLP) -> Sublayer:
            *reads, writes = (layer(f"{path}.{name}", child) for name, child in module.children())
            is_attention = isinstance(module, Attention)
            return Sublayer(norm.weight.trainable, tuple(reads), writes, is_attention, is_attention and prefix_trained)

        def sublayers(path: str, block: Block) -> tuple[Sublayer, Sublayer]:
            first = sublayer(f"{path}.self_attn", block.input_layernorm, block.self_attn)
            return first, sublayer(f"{path}.mlp", block.post_attention_layernorm, block.mlp)

        return ModelStructure(
            type(self.model).__name__,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.vocab_size,
            decoder.embed_tokens.weight.trainable,
            tuple(sublayers(f"model.layers.{i}", block) for i, block in enumerate(decoder.layers)),
            decoder.norm.weight.trainable,
            layer(OUTPUT_HEAD, transformer.output_head),
            prefix,
        )


@singledispatch
def stored_bytes(module: Module) -> int:
    """The bytes of the weights that a module stores, and that are not Parameters: 0, where no other is registered.

    A layer that stores its weights in a way of its own registers what it takes; a step then decodes them for each product:

        @costs.stored_bytes.register
        def _(layer: Ternary) -> int:
            return layer.codes.nbytes
    """
    return 0


def adapter_parameters(model: Module | Trainable) -> list[Parameter]:
    """The parameters of a live model's adapters. A PeftModel knows them; a base has those in its layers."""
    if isinstance(model, PeftModel):
        return list(model.adapter_parameters())
    modules = model.named_modules() if isinstance(model, Module) else ()
    layers = [module for _, module in modules if isinstance(module, AdaptedLinear)]
    parameters = (p for layer in layers for adapter in layer.adapters.values() for _, p in adapter.named_parameters())
    return list({id(p): p for p in parameters}.values())


def total_size(parameters: Iterable[Parameter]) -> int:
    """How many numbers these parameters have."""
    return sum(p.value.size for p in parameters)
