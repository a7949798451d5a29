"""PeftModel: a frozen base with adapters in it, and the calls that train, switch off and merge them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import ledger, ops
from ..backend import Array
from ..nn import Context, Linear, Module, Parameter
from ..targets import select_targets
from ..transformer import Transformer
from .lora import LoraConfig, LoraLinear

PREFIX = "base_model.model."  # what PEFT puts before every name of the base


def get_peft_model(model: Transformer, config: LoraConfig, adapter_name: str = "default", seed: int = 0) -> PeftModel:
    """Freeze `model`, put a LoraLinear in the place of each targeted Linear, and return the PeftModel that trains them.

    The model is changed in place, as in PEFT, and shares its weights with the PeftModel. Called directly it still
    answers as the base alone; call the PeftModel for the adapter. `seed` draws the factors A.

    Raises ValueError for a target module that is not there (the message lists those that are), TypeError for a model or
    config of another kind, before anything is changed.
    """
    if not isinstance(model, Transformer):
        raise TypeError(f"get_peft_model takes a Transformer without adapters, got {type(model).__name__}")
    if not isinstance(config, LoraConfig):
        raise TypeError(f"expected a LoraConfig, got {type(config).__name__}")
    linears = {name: m for name, m in model.named_modules() if isinstance(m, Linear)}
    if any(isinstance(m, LoraLinear) for _, m in model.named_modules()):
        raise ValueError(
            "this model carries an adapter already; start from a fresh one, or merge_and_unload() it first"
        )
    targets = select_targets(list(linears), config.target_modules)
    model.freeze()
    rng = np.random.default_rng(seed)
    for name in targets:
        wrapper = LoraLinear(linears[name])
        wrapper.add_adapter(adapter_name, config, rng)
        replace_module(model, name, wrapper)
    return PeftModel(model, config, adapter_name)


def replace_module(root: Module, name: str, new: Module) -> None:
    """Put `new` where the dotted `name` points."""
    *path, last = name.split(".")
    parent: Any = root
    for step in path:
        parent = parent[int(step)] if isinstance(parent, list) else getattr(parent, step)
    setattr(parent, last, new)


class PeftModel(Module):
    """The base and its adapter as one model, with the Transformer's own calls: forward, loss, backward, named_parameters."""

    def __init__(self, model: Transformer, config: LoraConfig, adapter_name: str) -> None:
        self.model = model
        self.peft_config = {adapter_name: config}
        self.active_adapter: str | None = adapter_name

    @property
    def config(self) -> Any:
        """The base's TransformerConfig."""
        return self.model.config

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Under PEFT's names: base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight, …"""
        for name, p in self.model.named_parameters():
            suffix = ".weight" if ".lora_A." in name or ".lora_B." in name else ""
            yield PREFIX + name + suffix, p

    def forward(self, tokens: Array, rng: np.random.Generator | None = None) -> tuple[Array, Any]:
        """tokens (b, t) → logits (b, t, v), with the active adapter. `rng` turns dropout on."""
        return self.model.forward(tokens, context=Context(rng, self.active_adapter))

    def loss(
        self,
        tokens: Array,
        targets: Array,
        rng: np.random.Generator | None = None,
        ignore_index: int = ops.IGNORE_INDEX,
    ) -> tuple[Array, Any]:
        """Mean cross-entropy in nats a token, with the active adapter. `rng` turns dropout on."""
        context = Context(rng, self.active_adapter)
        return self.model.loss(tokens, targets, ignore_index=ignore_index, context=context)

    def backward(self, cache: Any, dloss: float = 1.0) -> None:
        """Adds the gradients of A and B. Raises RuntimeError while merged: the bypass is then not part of the forward."""
        if self.merged:
            raise RuntimeError("the adapter is merged into the weights: unmerge_adapter() before training it")
        self.model.backward(cache, dloss)

    def lora_layers(self) -> list[LoraLinear]:
        """Every wrapped layer, in forward order."""
        return [m for _, m in self.model.named_modules() if isinstance(m, LoraLinear)]

    def print_trainable_parameters(self) -> None:
        """Print PEFT's line: trainable params: … || all params: … || trainable%: …"""
        print(ledger.count(self))

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """`with peft_model.disable_adapter():` runs the base alone; afterwards everything is as before, errors included."""
        active, merged = self.active_adapter, self.merged
        if merged:
            self.unmerge_adapter()
        self.active_adapter = None
        try:
            yield
        finally:
            self.active_adapter = active
            if merged:
                self.merge_adapter()

    @property
    def merged(self) -> bool:
        """Whether the adapter's ΔW is added into the base's weights."""
        return any(layer.merged for layer in self.lora_layers())

    def merge_adapter(self) -> None:
        """W ← W + s·B A in every adapted layer: from now on a forward costs what the base costs."""
        if self.active_adapter is None:
            raise RuntimeError("the adapter is disabled: leave `disable_adapter` before merging it")
        for layer in self.lora_layers():
            layer.merge(self.active_adapter)

    def unmerge_adapter(self) -> None:
        """W ← W − s·B A: back to base and bypass, up to rounding (about 1e-7 of W in float32)."""
        for layer in self.lora_layers():
            layer.unmerge()

    def merge_and_unload(self) -> Transformer:
        """Merge for good and take the wrappers out: a plain Transformer of the base's shape. This PeftModel is then spent."""
        self.merge_adapter()
        for name, module in list(self.model.named_modules()):
            if isinstance(module, LoraLinear):
                replace_module(self.model, name, module.base_layer)
        return self.model
