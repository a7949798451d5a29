"""LoRA in a PeftModel: its LoraLinears, put in and taken out, and its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backend import to_host
from ..nn import Module, Parameter
from ..targets import select_targets
from .folder import DECISIVE, KIND, PREFIX, Factors, config_from_dict, config_to_dict, place
from .layers import adaptable_layers, lora_layers, unwrap, wrap
from .lora import LoraConfig, first_match
from .method import Method

if TYPE_CHECKING:
    from .model import PeftModel


class LoraMethod(Method):
    """A LoraLinear in the place of each targeted Linear, while it has an adapter."""

    peft_type = KIND["peft_type"]
    decisive = DECISIVE
    mergeable = True
    mixable = True

    def add(self, peft_model: PeftModel, name: str, config: LoraConfig, seed: int) -> None:
        """Draw A and B for each targeted layer. Raises ValueError for a target or a pattern that matches none."""
        layers = select_targets(list(adaptable_layers(peft_model.model)), config.target_modules)
        for key in [*config.rank_pattern, *config.alpha_pattern]:
            if not any(first_match({key: True}, layer, False) for layer in layers):
                raise ValueError(f"the pattern {key!r} matches no targeted layer, so it would change nothing")
        rng = np.random.default_rng(seed)
        for layer_name, layer in wrap(peft_model.model, layers):
            layer.add_adapter(name, config.for_layer(layer_name), rng, peft_model.adapter_dtype)

    def restore(self, peft_model: PeftModel, name: str, config: LoraConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises as `place` does."""
        self.put_factors(peft_model, name, config, place(arrays, config, peft_model.model))

    def put_factors(self, peft_model: PeftModel, name: str, config: LoraConfig, factors: Factors) -> None:
        """Put A and B in by layer, as `place` and `combine_adapters` give them."""
        for layer_name, layer in wrap(peft_model.model, factors):
            layer.put_adapter(name, config.for_layer(layer_name), *factors[layer_name], peft_model.adapter_dtype)

    def delete(self, peft_model: PeftModel, name: str) -> None:
        """Forget A and B, and unwrap the layers that have no other."""
        layers = lora_layers(peft_model.model)
        for layer in layers.values():
            layer.delete_adapter(name)
        unwrap(peft_model.model, [layer_name for layer_name, layer in layers.items() if not layer.lora_A])

    def parameters(self, peft_model: PeftModel, name: str) -> Iterator[Parameter]:
        """A and B of each layer."""
        for layer in lora_layers(peft_model.model).values():
            if name in layer.lora_A:
                yield layer.lora_A[name]
                yield layer.lora_B[name]

    def arrays(self, peft_model: PeftModel, name: str) -> dict[str, np.ndarray]:
        """base_model.model.<layer>.lora_A.weight (r, in) and .lora_B.weight (out, r)."""
        found = {}
        for layer_name, layer in lora_layers(peft_model.model).items():
            if name in layer.lora_A:
                for side, factors in (("A", layer.lora_A), ("B", layer.lora_B)):
                    found[f"{PREFIX}{layer_name}.lora_{side}.weight"] = to_host(factors[name].value)
        return found

    def settings(self, config: LoraConfig, model: Module) -> dict[str, Any]:
        """As PEFT has them: see `config_to_dict`."""
        return config_to_dict(config, model)

    def config(self, settings: Mapping[str, Any]) -> LoraConfig:
        """See `config_from_dict`."""
        return config_from_dict(settings)
