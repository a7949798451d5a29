"""LoRA: two low-rank factors for a frozen matrix (arXiv 2106.09685), with the variants rsLoRA, LoRA-FA, DoRA and PiSSA."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from ...backend import to_host
from ...nn import Linear, Module
from ...nn.targets import is_target, layer_index
from ...transformer import Transformer
from ..adapter import Adapter
from ..choices import TARGETS, Choice, Option
from ..cost import AdapterCost
from ..files import PREFIX, base_weights, check_arrays, is_base_weight
from ..method import AdapterHost, LayerMethod
from ..placement import adaptable_layers, is_tied
from ..trained_copy import TrainedCopy, modules_to_copy
from . import from_peft, pissa
from .config import LoraConfig, first_match
from .dora import DoraAdapter, DoraCost, check_rows
from .file import portable_patterns, portable_selection
from .layer import LoraAdapter, LoraCost, draw_factors

OPTIONS = {
    "r": Option(LoraConfig.r, "rank (default {})", type=int),
    "lora_alpha": Option(16, "α: ΔW is multiplied by α/r (default {})", "ALPHA", float),
    "target_modules": TARGETS,
    "lora_dropout": Option(0.0, "dropout probability of the adapter's input (default {:g})", "P", float),
    "use_rslora": Option(False, "multiply ΔW by α/√r instead of α/r, as --method rslora does"),
}
LORAPLUS = {
    "loraplus_lr_ratio": Option(
        16, "learning rate of B divided by --lr, the learning rate of A (default {})", "X", float
    )
}
# Settings of PEFT that do not change what a saved adapter computes: settings of the initialisation and of training
WITHOUT_EFFECT = (
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "loftq_config",
    "velora_config",
    "monteclora_config",
    "megatron_core",
    "use_qalora",
    "qalora_group_size",
)
TENSORS = {
    "lora_A": "lora_A.weight",
    "lora_B": "lora_B.weight",
    "modules_to_save.weight": "weight",
}  # parameter → PEFT's key, if they differ


class LoraMethod(LayerMethod):
    """LoRA: each targeted layer gets a LoraAdapter, or a DoraAdapter if `use_dora` is True."""

    config_type = LoraConfig
    peft_type = "LORA"
    recorded_fields = ("target_modules", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "use_dora")
    extra_fields = ("freeze_A", "dora_norm")
    accepted_keys = WITHOUT_EFFECT
    mergeable = True
    # LoRA's learning rate is the best one of the study "finetuning"; the other rates are only known to work.
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
        """Return the names of the targeted layers.

        With `strict=True`, raises ValueError if a target, an excluded module, a block index or a pattern matches no layer.
        """
        super().targets(config, names, strict)
        layers = [name for name in names if config.selects(name)]
        if strict:
            check_selection(config, names)
        for key in [*config.rank_pattern, *config.alpha_pattern] if strict else ():
            if not any(first_match({key: True}, layer, False) for layer in layers):
                raise ValueError(f"the pattern {key!r} matches no targeted layer, so it has no effect")
        return layers

    def for_layer(self, config: LoraConfig, layer: str) -> LoraConfig:
        """Return the configuration of one layer, with the layer's own r and α."""
        return config.for_layer(layer)

    def check(self, host: AdapterHost, config: LoraConfig, layers: Mapping[str, Linear]) -> None:
        """Raise ValueError if PiSSA or DoRA cannot be used in a layer.

        Raises RuntimeError if the model already has adapters and the new adapter uses PiSSA.
        """
        if config.init_lora_weights == "pissa" and host.peft_config:
            raise RuntimeError(
                "PiSSA changes the base, but this model has other adapters; use a model without adapters"
            )
        for name, base in layers.items():
            if config.init_lora_weights == "pissa" and is_tied(host.model, name):
                raise ValueError(f"{name} and the embedding share one weight, so PiSSA would change both")
            if config.init_lora_weights == "pissa":
                pissa.check_layer(name, base, config.for_layer(name).r)
            if config.use_dora:
                check_rows(name, base)

    def draw(self, config: LoraConfig, base: Linear, rng: np.random.Generator, dtype: np.dtype | None) -> Adapter:
        """Return a new adapter, initialised as `init_lora_weights` specifies.

        With DoRA, m contains the row lengths of W.
        """
        if config.init_lora_weights != "pissa":
            return self.build(config, base, [*draw_factors(config, base, rng)], dtype)
        W = to_host(base.weight.value)
        tensors = [*pissa.principal_factors(W, config.r, config.scaling)]
        tensors += [
            np.linalg.norm(W, axis=1)
        ] * config.use_dora  # W = (W − s·B A) + s·B A: PiSSA does not change the row lengths
        return self.build(config, base, tensors, dtype)

    def shapes(self, config: LoraConfig, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of A (r, in) and B (out, r) and, with DoRA, of m (out,)."""
        factors = {"lora_A.weight": (config.r, in_), "lora_B.weight": (out, config.r)}
        return factors | ({"lora_magnitude_vector": (out,)} if config.use_dora else {})

    def build(self, config: LoraConfig, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None) -> Adapter:
        """Return an adapter with the tensors A and B and, with DoRA, m."""
        return (DoraAdapter if config.use_dora else LoraAdapter).build(config, base, tensors, dtype)

    def restore(self, host: AdapterHost, name: str, config: LoraConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a saved adapter, and the modules that were trained in full."""
        check_some_left(config, list(adaptable_layers(host.model)))
        copied = modules_to_copy(host.model, tuple(config.modules_to_save or ()))
        keys = {f"{PREFIX}{path}.weight": path for path in copied}
        weights = {key: x for key, x in arrays.items() if key in keys}
        check_arrays(weights, {key: copied[path].weight.value.shape for key, path in keys.items()}, host.storage_dtype)
        super().restore(host, name, config, {key: x for key, x in arrays.items() if key not in keys})
        self.insert(host, name, ((path, TrainedCopy(copied[path], weights[key])) for key, path in keys.items()))

    def arrays_to_check(
        self, arrays: Mapping[str, np.ndarray], expected: Iterable[str], model: Module
    ) -> Mapping[str, np.ndarray]:
        """Return all arrays except weights of the base.

        If an adapter adapts lm_head, PEFT's file also contains the weight of the base.
        """
        base = base_weights(model)
        return {key: x for key, x in arrays.items() if key in expected or not is_base_weight(key, x, base)}

    def costs(self, config: LoraConfig, shapes: Mapping[str, tuple[int, int]]) -> dict[str, AdapterCost]:
        """Return a dictionary of the costs of all layers' adapters, with layer names as keys.

        Raises ValueError if the adapter trains whole modules.
        """
        check_cost_of_copies(bool(config.modules_to_save))
        return super().costs(config, shapes)

    def cost(self, config: LoraConfig, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Return the cost of one layer's adapter. rsLoRA and PiSSA have the same cost as LoRA."""
        lora = trained, half_precision, int(config.r), trained and not config.freeze_A, config.lora_dropout > 0
        return DoraCost(*lora, true_norm=config.dora_norm == "true") if config.use_dora else LoraCost(*lora)

    def cost_of(self, adapter: Adapter) -> AdapterCost:
        """Return the cost of an existing adapter. Only factors that are not frozen count as trained."""
        check_cost_of_copies(isinstance(adapter, TrainedCopy))
        assert isinstance(adapter, LoraAdapter)
        trains = {"trained": adapter.lora_B.trainable, "A_trained": adapter.lora_A.trainable}
        return replace(super().cost_of(adapter), **trains)

    def add(self, host: AdapterHost, name: str, config: LoraConfig, seed: int) -> None:
        """Add a new adapter to each targeted layer.

        With PiSSA, the initial product s·B A is then subtracted from the base.
        """
        copied = modules_to_copy(host.model, tuple(config.modules_to_save or ()))
        for entry in config.modules_to_save or ():
            if not any(path.endswith(entry) for path in copied):
                raise ValueError(f"modules_to_save: {entry!r} matches no module, so it has no effect")
        super().add(host, name, config, seed)
        self.insert(host, name, {path: TrainedCopy(m, to_host(m.weight.value)) for path, m in copied.items()}.items())
        if config.init_lora_weights == "pissa":
            for layer in self.layers(host, name).values():
                adapter = layer.adapters[name]
                assert isinstance(adapter, LoraAdapter)
                pissa.subtract_from_base(layer, adapter)

    def delete(self, host: AdapterHost, name: str) -> None:
        """Remove the adapter from every layer.

        If PiSSA changed the base, the original base is restored. Raises RuntimeError if the base changed again after
        PiSSA, for example because it was quantised.
        """
        layers = self.layers(host, name)
        for layer_name, layer in layers.items():
            pissa.check_base(layer_name, layer)
        initialised = [
            (layer, one) for layer in layers.values() if isinstance(one := layer.base_correction, pissa.PissaCorrection)
        ]
        for layer, correction in initialised:
            correction.restore_base(layer.base_layer)
            layer.base_correction = None
        super().delete(host, name)

    def check_mixable(self, name: str, config: LoraConfig) -> None:
        """Raise ValueError if the adapter has `modules_to_save`. Rows of LoRA, DoRA and PiSSA can share a batch."""
        if config.modules_to_save:
            raise ValueError(
                f"{name!r} has its own {', '.join(config.modules_to_save)}; rows with this adapter cannot be in a mixed batch"
            )

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """Return the tensors for the file, as a dictionary with PEFT's keys.

        A key consists of base_model.model.<layer> and an ending: .lora_A.weight (r, in), .lora_B.weight (out, r) or,
        with DoRA, .lora_magnitude_vector (out,). Raises RuntimeError if the base changed after PiSSA initialisation.
        """
        found: dict[str, np.ndarray] = {}
        for layer_name, layer in self.layers(host, name).items():
            pissa.check_base(layer_name, layer)
            tensors = {TENSORS.get(key, key): x for key, x in layer.adapters[name].tensors().items()}
            if isinstance(layer.base_correction, pissa.PissaCorrection):
                tensors = layer.base_correction.convert_to_lora(tensors)
            found |= self.with_file_keys(layer_name, tensors)
        return found

    def file_config(self, config: LoraConfig) -> LoraConfig:
        """Return the configuration of the saved adapter.

        An adapter with PiSSA initialisation is saved as a LoRA adapter of twice the rank for the original base.
        """
        return pissa.converted_config(config) if config.init_lora_weights == "pissa" else config

    def settings(self, config: LoraConfig, model: Transformer) -> dict[str, Any]:
        """Return the content of adapter_config.json, with patterns that match the same layers in PEFT.

        The fields in `extra_fields` are left out.
        """
        own = self.file_config(config)
        found = super().settings(config, model) | portable_selection(own, model) | portable_patterns(own, model)
        return {key: value for key, value in found.items() if key not in self.extra_fields}

    def convert(
        self, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Transformer
    ) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Convert the settings and tensors of PEFT's file to the forms that this library uses."""
        return from_peft.convert(settings, arrays, model)


def check_cost_of_copies(copies: bool) -> None:
    """Raise ValueError if an adapter trains whole modules."""
    if copies:
        raise ValueError(
            "the costs of modules_to_save are not defined; load the model and use costs.count(model), which counts the parameters"
        )


def check_selection(config: LoraConfig, names: list[str]) -> None:
    """Raise ValueError if an excluded module or a block index has no effect, or if no layer is selected."""
    targeted = [name for name in names if is_target(name, config.target_modules)]
    excluded = config.exclude_modules or ()
    for entry in [excluded] if isinstance(excluded, str) else excluded:
        if not any(is_target(name, entry if isinstance(excluded, str) else [entry]) for name in targeted):
            raise ValueError(f"exclude_modules: {entry!r} matches no targeted layer, so it has no effect")
    found = (layer_index(name, config.layers_pattern or ()) for name in targeted)
    blocks = {index for index in found if index is not None}
    if missing := sorted(set(config.blocks) - blocks):
        raise ValueError(
            f"layers_to_transform: there is no targeted layer in block {missing[0]}; targeted layers are in the blocks "
            f"{sorted(blocks)}"
        )
    check_some_left(config, names)


def check_some_left(config: LoraConfig, names: list[str]) -> None:
    """Raise ValueError if `target_modules` selects layers, but the other settings exclude all of them."""
    if any(is_target(name, config.target_modules) for name in names) and not any(map(config.selects, names)):
        raise ValueError("exclude_modules, layers_to_transform and modules_to_save leave no layer to adapt")
