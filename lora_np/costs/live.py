"""A model in memory: its parameters, the bytes of its arrays, and the structure of a training step with its active adapter."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from typing import Any

from ..nn import Linear, Module, Parameter, RMSNorm, Trainable
from ..nn.norms import GemmaRMSNorm
from ..nn.targets import OUTPUT_HEAD
from ..peft import AdaptedLinear, PeftModel
from ..peft.cost import AdapterCost, PrefixCost
from ..peft.method import LayerMethod
from ..peft.placement import adapted_layers
from ..peft.registry import method_of
from ..quantization import Quantized4bit
from ..transformer import Transformer
from ..transformer.decoder import Attention, Block
from ..transformer.gpt2 import GPT2MLP
from ..transformer.head_loss import works_in_blocks
from .structure import Layer, ModelStructure, Sublayer, check_cost_known


class LiveModel:
    """A model with allocated arrays.

    For a Transformer or a PeftModel, all costs are computed; for any other Module, only parameters are counted.
    """

    def __init__(self, model: Module) -> None:
        self.model = model

    def parameters(self) -> tuple[int, int, int]:
        """Return the number of base, adapter and trained parameters.

        Raises ValueError for a model without parameters.
        """
        parameters = [p for _, p in self.model.named_parameters()]
        total, trained = total_size(parameters), total_size(p for p in parameters if p.trainable)
        if total == 0:
            raise ValueError(f"this {type(self.model).__name__} has no parameters to count")
        added = total_size(adapter_parameters(self.model))
        return total - added, added, trained

    def fixed_bytes(self, slots: int) -> dict[str, int]:
        """Return the fields of `Memory` that do not depend on the batch, in bytes.

        Inactive adapters are included.
        """
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
        """Bytes per activation: the bytes of one element of the token embedding."""
        return self.transformer.model.embed_tokens.weight.value.itemsize

    @property
    def transformer(self) -> Transformer:
        """The model, or the base model of a PeftModel. Raises TypeError for any other Module."""
        model = self.model.model if isinstance(self.model, PeftModel) else self.model
        if not isinstance(model, Transformer):
            raise TypeError(f"expected a Transformer or a PeftModel, got {type(model).__name__}")
        return model

    def adapter_costs(self) -> tuple[dict[str, AdapterCost], PrefixCost | None]:
        """Return the costs of the active adapter by layer name, and the cost of the adapter's prefix.

        A merged adapter costs nothing.

        Raises ValueError if the adapter's method does not define its cost.
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
        """Return the structure that determines the FLOPs and the memory of a training step."""
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

        names = {id(module): name for name, module in transformer.named_modules()}

        def sublayer(norm: Any, module: Any, output_norm: Any) -> Sublayer:
            path, is_attention = names[id(module)], isinstance(module, Attention)
            layers = [(n, c) for n, c in module.children() if not isinstance(getattr(c, "base_layer", c), RMSNorm)]
            *reads, writes = (layer(f"{path}.{name}", child) for name, child in layers)
            scores = module.scores if is_attention else {}
            head_norms = [module.q_norm, module.k_norm] if is_attention else []
            heads = config.num_attention_heads + config.num_key_value_heads
            saved = isinstance(output_norm, Module) * (config.hidden_size + 1)
            saved += any(isinstance(n, Module) for n in head_norms) * heads * (config.head_dim + 1)
            saved += isinstance(module, GPT2MLP) * config.intermediate_size
            return Sublayer(
                norm.trainable,
                tuple(reads),
                writes,
                is_attention,
                prefix_trained=is_attention and prefix_trained,
                window=scores.get("window"),
                softcapped="softcap" in scores,
                saved_per_token=saved,
                head_norms_trained=any(n.trainable for n in head_norms),
                output_norm_trained=output_norm.trainable,
            )

        def sublayers(block: Block) -> tuple[Sublayer, Sublayer]:
            attention, mlp = block.sublayers
            return sublayer(*attention), sublayer(*mlp)

        return ModelStructure(
            type(self.model).__name__,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.vocab_size,
            decoder.embedding_trainable,
            tuple(map(sublayers, decoder.layers)),
            decoder.norm.trainable,
            layer(OUTPUT_HEAD, transformer.linear_head),
            prefix,
            rotary_floats=2 * config.rotary_dim * len(set(config.kinds)),
            capped_logits=config.final_logit_softcapping is not None,
            saved_once=sum(m.weight.value.size for _, m in transformer.named_modules() if isinstance(m, GemmaRMSNorm)),
            learned_positions=config.family.gpt2,
            head_in_blocks=works_in_blocks(transformer.linear_head),
        )


@singledispatch
def stored_bytes(module: Module) -> int:
    """Return the bytes that a module uses for weights that are not Parameters.

    A layer class with its own storage format can register a function for its weights, as in the example. `costs` then
    assumes that a training step decodes these weights for each product.

    Parameters
    ----------
    module : Module
        The layer.

    Returns
    -------
    int
        Bytes; 0 if no function is registered for the class of `module`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import costs, nn
    >>> class Ternary(nn.Module):
    ...     codes = np.zeros(10, np.uint8)
    >>> @costs.stored_bytes.register
    ... def _(layer: Ternary) -> int:
    ...     return layer.codes.nbytes
    >>> costs.stored_bytes(Ternary())
    10
    """
    return 0


def adapter_parameters(model: Module | Trainable) -> list[Parameter]:
    """Return the parameters of the adapters of a model in memory, frozen parameters included.

    Parameters
    ----------
    model : Module
        A PeftModel, or a model with adapted layers.

    Returns
    -------
    list of Parameter
        The list contains each parameter once.

    Examples
    --------
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2))
    >>> sum(p.value.size for p in ln.costs.adapter_parameters(peft_model))
    4480
    """
    if isinstance(model, PeftModel):
        return list(model.adapter_parameters())
    modules = model.named_modules() if isinstance(model, Module) else ()
    layers = [module for _, module in modules if isinstance(module, AdaptedLinear)]
    parameters = (p for layer in layers for adapter in layer.adapters.values() for _, p in adapter.named_parameters())
    return list({id(p): p for p in parameters}.values())


def total_size(parameters: Iterable[Parameter]) -> int:
    """Return the total number of elements of all given parameters."""
    return sum(p.value.size for p in parameters)
