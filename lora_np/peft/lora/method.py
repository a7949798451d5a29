"""LoRA in a PeftModel: its LoraLinears, put in and taken out, and its folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...nn import Module, Parameter
from ...nn.targets import select_targets
from ..files import KIND, PREFIX
from ..method import Method
from ..placement import adaptable_layers, lora_layers, unwrap, wrap
from .config import LoraConfig, first_match
from .dora import check_rows
from .file import DECISIVE, OWN, TENSORS, Factors, config_from_dict, config_to_dict, place
from .pissa import check_pissa, check_unrounded, config_on_the_original

if TYPE_CHECKING:
    from ..model import PeftModel


class LoraMethod(Method):
    """A LoraLinear in the place of each targeted Linear, while it has an adapter."""

    peft_type = KIND["peft_type"]
    decisive = DECISIVE
    mergeable = True
    own = OWN

    def add(self, peft_model: PeftModel, name: str, config: LoraConfig, seed: int) -> None:
        """Draw A and B for each targeted layer. Raises ValueError for a target or a pattern that matches none."""
        adaptable = adaptable_layers(peft_model.model)
        layers = select_targets(list(adaptable), config.target_modules)
        for key in [*config.rank_pattern, *config.alpha_pattern]:
            if not any(first_match({key: True}, layer, False) for layer in layers):
                raise ValueError(f"the pattern {key!r} matches no targeted layer, so it would change nothing")
        targeted = {layer: adaptable[layer] for layer in layers}
        check_pissa(targeted, config, others=bool(peft_model.peft_config))
        check_rows(targeted, config)
        rng = np.random.default_rng(seed)
        for layer_name, layer in wrap(peft_model.model, layers):
            layer.add_adapter(name, config.for_layer(layer_name), rng, peft_model.adapter_dtype)

    def restore(self, peft_model: PeftModel, name: str, config: LoraConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """Raises as `place` does."""
        self.put_factors(peft_model, name, config, place(arrays, config, peft_model.model))

    def put_factors(self, peft_model: PeftModel, name: str, config: LoraConfig, factors: Factors) -> None:
        """Put A and B in by layer, as `place` and `combine_adapters` give them. Raises as `check_rows` does."""
        adaptable = adaptable_layers(peft_model.model)
        check_rows({layer: adaptable[layer] for layer in factors}, config)
        for layer_name, layer in wrap(peft_model.model, factors):
            layer.put_adapter(name, config.for_layer(layer_name), *factors[layer_name], dtype=peft_model.adapter_dtype)

    def delete(self, peft_model: PeftModel, name: str) -> None:
        """Forget A and B, and unwrap the layers that have no other."""
        layers = lora_layers(peft_model.model)
        if any(layer.start is not None for layer in layers.values()):  # PiSSA's part goes back into the base
            for layer in layers.values():
                layer.check_mergeable()
        for layer in layers.values():
            layer.delete_adapter(name)
        unwrap(peft_model.model, [layer_name for layer_name, layer in layers.items() if not layer.lora_A])

    def parameters(self, peft_model: PeftModel, name: str) -> Iterator[Parameter]:
        """A, B and with DoRA m of each layer."""
        for layer in lora_layers(peft_model.model).values():
            for kept in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
                if name in kept:
                    yield kept[name]

    def set_trainable(self, peft_model: PeftModel, name: str, trainable: bool) -> None:
        """All but an A that LoRA-FA freezes."""
        for layer in lora_layers(peft_model.model).values():
            layer.set_trainable(name, trainable)

    def check_mixable(self, name: str, config: LoraConfig) -> None:
        """Raise ValueError for DoRA: LoRA alone is a bypass over the product that all rows of a mixed batch share."""
        if config.use_dora:
            raise ValueError(f"{name!r} is DoRA, which stretches W itself: its rows need a batch of their own")

    def arrays(self, peft_model: PeftModel, name: str) -> dict[str, np.ndarray]:
        """base_model.model.<layer>.lora_A.weight (r, in), .lora_B.weight (out, r), with DoRA .lora_magnitude_vector (out,).

        Raises RuntimeError where it began as PiSSA and the base was quantised since.
        """
        found = {}
        for layer_name, layer in lora_layers(peft_model.model).items():
            if name in layer.lora_A:
                check_unrounded(layer_name, layer)
                keys = (f"{PREFIX}{layer_name}.{tensor}" for tensor in TENSORS)
                found |= dict(zip(keys, layer.tensors(name), strict=False))
        return found

    def settings(self, config: LoraConfig, model: Module) -> dict[str, Any]:
        """As PEFT has them: see `config_to_dict`. What began as PiSSA is written for the base as it was."""
        return config_to_dict(config_on_the_original(config) if config.init_lora_weights == "pissa" else config, model)

    def config(self, settings: Mapping[str, Any]) -> LoraConfig:
        """See `config_from_dict`."""
        return config_from_dict(settings)
