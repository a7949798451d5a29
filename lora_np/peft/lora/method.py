"""LoRA: two low-rank factors beside a frozen matrix (arXiv 2106.09685); rsLoRA, LoRA-FA, DoRA and PiSSA are settings of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...backend import to_host
from ...nn import Linear, Module
from ...transformer import Transformer
from ..adapter import Adapter
from ..choices import TARGETS, Choice, Option
from ..cost import AdapterCost
from ..files import is_base_weight
from ..method import AdapterHost, LayerMethod
from . import pissa
from .config import LoraConfig, first_match
from .dora import DoraAdapter, DoraCost, check_rows
from .file import portable_patterns, readable_init
from .layer import LoraAdapter, LoraCost, draw_factors

OPTIONS = {
    "r": Option(LoraConfig.r, "rank (default {})", type=int),
    "lora_alpha": Option(16, "α: ΔW is multiplied by α/r (default {})", "ALPHA", float),
    "target_modules": TARGETS,
    "lora_dropout": Option(0.0, "dropout probability of the adapter's input (default {:g})", "P", float),
    "use_rslora": Option(False, "multiply ΔW by α/√r instead of α/r, as --method rslora does"),
}
LORAPLUS = {
    "loraplus_lr_ratio": Option(16, "learning rate of B divided by that of A, which is --lr (default {})", "X", float)
}
TENSORS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}  # parameter → PEFT's key, where they differ


class LoraMethod(LayerMethod):
    """A LoraAdapter, or with `use_dora` a DoraAdapter, in each targeted layer."""

    config_type = LoraConfig
    peft_type = "LORA"
    recorded_fields = ("target_modules", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora")
    extra_fields = ("freeze_A", "dora_norm")
    mergeable = True
    # Full fine-tuning's rate and LoRA's are the best of the study "finetuning"; the others were only seen to learn.
    choices: ClassVar[Mapping[str, Choice]] = {
        "lora": Choice(3e-3, LoraConfig, OPTIONS),
        "rslora": Choice(1e-3, LoraConfig, OPTIONS, {"use_rslora": True}),
        "dora": Choice(3e-3, LoraConfig, OPTIONS, {"use_dora": True}),
        "pissa": Choice(1e-3, LoraConfig, OPTIONS, {"init_lora_weights": "pissa"}),
        "lora-fa": Choice(3e-3, LoraConfig, OPTIONS, {"freeze_A": True}),
        "lora+": Choice(1e-3, LoraConfig, OPTIONS, optimizer=LORAPLUS),
    }
    example = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", init_lora_weights=False)

    def targets(self, config: LoraConfig, names: list[str], strict: bool = True) -> list[str]:
        """Raises ValueError for a target or a pattern that matches no layer, unless it is read from a file."""
        layers = super().targets(config, names, strict)
        for key in [*config.rank_pattern, *config.alpha_pattern] if strict else ():
            if not any(first_match({key: True}, layer, False) for layer in layers):
                raise ValueError(f"the pattern {key!r} matches no targeted layer, so it would change nothing")
        return layers

    def for_layer(self, config: LoraConfig, layer: str) -> LoraConfig:
        """With this layer's own r and α."""
        return config.for_layer(layer)

    def check(self, host: AdapterHost, config: LoraConfig, layers: Mapping[str, Linear]) -> None:
        """Raise ValueError for a layer that PiSSA or DoRA cannot begin at, RuntimeError for PiSSA beside other adapters."""
        if config.init_lora_weights == "pissa" and host.peft_config:
            raise RuntimeError(
                "PiSSA changes the base, and there are adapters on it: start from a model without adapters"
            )
        for name, base in layers.items():
            if config.init_lora_weights == "pissa":
                pissa.check_layer(name, base, config.for_layer(name).r)
            if config.use_dora:
                check_rows(name, base)

    def draw(self, config: LoraConfig, base: Linear, rng: np.random.Generator, dtype: np.dtype | None) -> Adapter:
        """A and B as `init_lora_weights` says; with DoRA m, the lengths of the rows of W."""
        if config.init_lora_weights != "pissa":
            return self.build(config, base, [*draw_factors(config, base, rng)], dtype)
        W = to_host(base.weight.value)
        tensors = [*pissa.principal_factors(W, config.r, config.scaling)]
        tensors += [
            np.linalg.norm(W, axis=1)
        ] * config.use_dora  # W = (W − s·B A) + s·B A: the row norms after take_out too
        return self.build(config, base, tensors, dtype)

    def shapes(self, config: LoraConfig, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """A (r, in), B (out, r), with DoRA m (out,)."""
        factors = {"lora_A.weight": (config.r, in_), "lora_B.weight": (out, config.r)}
        return factors | ({"lora_magnitude_vector": (out,)} if config.use_dora else {})

    def build(self, config: LoraConfig, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None) -> Adapter:
        """From A, B and with DoRA m."""
        return (DoraAdapter if config.use_dora else LoraAdapter).build(config, base, tensors, dtype)

    def arrays_to_check(
        self, arrays: Mapping[str, np.ndarray], expected: Iterable[str], model: Module
    ) -> Mapping[str, np.ndarray]:
        """All but weights of the base, which PEFT saves beside an adapter for the head."""
        return {key: x for key, x in arrays.items() if key in expected or not is_base_weight(key, x, model)}

    def cost(self, config: LoraConfig, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """rsLoRA and PiSSA cost what LoRA costs."""
        lora = trained, half_precision, int(config.r), trained and not config.freeze_A, config.lora_dropout > 0
        return DoraCost(*lora, true_norm=config.dora_norm == "true") if config.use_dora else LoraCost(*lora)

    def cost_of(self, adapter: Adapter) -> AdapterCost:
        """With the factors that train now, whatever the configuration says."""
        assert isinstance(adapter, LoraAdapter)
        trains = {"trained": adapter.lora_B.trainable, "A_trained": adapter.lora_A.trainable}
        return replace(super().cost_of(adapter), **trains)

    def add(self, host: AdapterHost, name: str, config: LoraConfig, seed: int) -> None:
        """Draw an adapter for each targeted layer; PiSSA then takes its start out of the base."""
        super().add(host, name, config, seed)
        if config.init_lora_weights == "pissa":
            for layer in self.layers(host, name).values():
                adapter = layer.adapters[name]
                assert isinstance(adapter, LoraAdapter)
                pissa.subtract_from_base(layer, adapter)

    def delete(self, host: AdapterHost, name: str) -> None:
        """Take it out of every layer. What PiSSA took out of the base goes back into it, unless the base is quantised."""
        layers = self.layers(host, name).values()
        started = [(layer, one) for layer in layers if isinstance(one := layer.base_correction, pissa.PissaCorrection)]
        for layer, _ in started:
            layer.check_mergeable()
        for layer, correction in started:
            correction.restore_base(layer.base_layer)
            layer.base_correction = None
        super().delete(host, name)

    def check_mixable(self, name: str, config: LoraConfig) -> None:
        """Raise ValueError for DoRA: A mixed batch computes x Wᵀ once for all rows, and DoRA rescales W."""
        if config.use_dora:
            raise ValueError(f"{name!r} is DoRA, which stretches W itself: its rows need a batch of their own")

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """base_model.model.<layer>.lora_A.weight (r, in), .lora_B.weight (out, r), with DoRA .lora_magnitude_vector (out,).

        Raises RuntimeError where it began as PiSSA and the base was quantised since.
        """
        found: dict[str, np.ndarray] = {}
        for layer_name, layer in self.layers(host, name).items():
            pissa.check_not_quantized(layer_name, layer)
            tensors = {TENSORS.get(key, key): x for key, x in layer.adapters[name].tensors().items()}
            if isinstance(layer.base_correction, pissa.PissaCorrection):
                tensors = layer.base_correction.convert_to_lora(tensors)
            found |= self.with_file_keys(layer_name, tensors)
        return found

    def file_config(self, config: LoraConfig) -> LoraConfig:
        """What began as PiSSA is written for the base as it was, as a LoRA of twice the rank."""
        return pissa.converted_config(config) if config.init_lora_weights == "pissa" else config

    def settings(self, config: LoraConfig, model: Transformer) -> dict[str, Any]:
        """With PEFT's names for the patterns. `own` fields are not PEFT's, and not in its file."""
        found = super().settings(config, model) | portable_patterns(self.file_config(config), model)
        return {key: value for key, value in found.items() if key not in self.extra_fields}

    def config(self, settings: Mapping[str, Any]) -> LoraConfig:
        """From PEFT's file."""
        return super().config(readable_init(settings))
