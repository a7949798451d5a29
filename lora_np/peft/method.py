"""The interface of adapter methods. Each method has its own file and one line in registry.py.

`Method` is the interface, with operations that add, restore and delete an adapter. `LayerMethod` implements
this interface for methods with an Adapter object in each linear layer (adapter.py). `AdapterHost` is the part of
a PeftModel that an adapter method reads and changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from ..nn import Linear, Module, Parameter
from ..nn.targets import available, is_target, select_targets
from ..transformer import Transformer
from .adapted_linear import AdaptedLinear
from .adapter import Adapter
from .choices import Choice
from .config import PeftConfig
from .cost import AdapterCost, PrefixCost
from .files import (
    COMMON_SETTINGS,
    DISABLED_SETTINGS,
    PREFIX,
    check_arrays,
    check_settings,
    check_targets,
    portable_targets,
    to_python,
)
from .placement import adapt, adaptable_layers, adapted_layers, remove

T = TypeVar("T")


class AdapterHost(Module):
    """The part of a PeftModel that the adapter methods read and change.

    This part consists of the base model, the prefix encoders, the configurations, and the storage dtype.
    """

    def __init__(self, model: Transformer, adapter_dtype: np.dtype | None = None) -> None:
        self.model = model
        self.prompt_encoder: dict[str, Any] = {}  # adapter name → module that computes its prefix
        self.peft_config: dict[str, PeftConfig] = {}
        self.adapter_dtype = adapter_dtype  # None: the dtype of the base

    @property
    def storage_dtype(self) -> np.dtype:
        """The dtype in which adapters are stored."""
        return np.dtype(self.adapter_dtype or next(p.value.dtype for _, p in self.model.named_parameters()))


class Method:
    """The interface of an adapter method. A method has no state; the PeftModel holds the adapters.

    `config_type`: the class of the method's configurations.
    `peft_type`: the name of the method in adapter_config.json.
    `recorded_fields`: fields of the configuration that change the meaning of the tensors. The weights file contains a
    copy of these fields. Loading can then detect that the two files of an adapter come from different saves.
    `mergeable`: True if the method's adapters can be written as changes ΔW of weights.
    `extra_fields`: fields of the configuration that PEFT does not have. The weights file contains these fields.
    """

    config_type: ClassVar[type[PeftConfig]]
    peft_type: ClassVar[str]
    recorded_fields: ClassVar[tuple[str, ...]] = ()
    mergeable: ClassVar[bool] = False
    extra_fields: ClassVar[tuple[str, ...]] = ()
    fixed_settings: ClassVar[Mapping[str, Any]] = COMMON_SETTINGS  # constant settings of the file
    accepted_keys: ClassVar[tuple[str, ...]] = ()  # further keys that a file can have
    in_peft: ClassVar[bool] = True  # False: PEFT does not have this method
    choices: ClassVar[Mapping[str, Choice]] = {}  # names for `train --method`
    example: ClassVar[PeftConfig | None] = None  # used by the tests of all methods; ΔW ≠ 0

    def add(self, host: AdapterHost, name: str, config: Any, seed: int) -> None:
        """Add a new adapter with random numbers from `seed`.

        If an error is raised, the model is unchanged.
        """
        raise NotImplementedError

    def restore(self, host: AdapterHost, name: str, config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a saved adapter.

        Raises ValueError with the name of a tensor that is missing, unexpected or of a wrong shape. After an error, the
        model is unchanged.
        """
        raise NotImplementedError

    def delete(self, host: AdapterHost, name: str) -> None:
        """Remove an adapter and everything that only this adapter uses."""
        raise NotImplementedError

    def parameters(self, host: AdapterHost, name: str) -> Iterator[Parameter]:
        """Yield the parameters of an adapter, including frozen parameters."""
        raise NotImplementedError

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """Return the tensors for the adapter's file, as a dictionary from keys to arrays in host memory."""
        raise NotImplementedError

    def set_trainable(self, host: AdapterHost, name: str, trainable: bool) -> None:
        """Unfreeze the adapter `name`; if `trainable` is False, freeze the adapter and delete its gradients."""
        for p in self.parameters(host, name):
            p.trainable = trainable
            if not trainable:
                p.grad = None

    def check_mixable(self, name: str, config: Any) -> None:
        """Raise ValueError if rows of this adapter cannot share a batch with rows of other adapters."""
        raise ValueError(f"{name!r} has a {type(config).__name__}; rows with this adapter cannot be in a mixed batch")

    def file_config(self, config: Any) -> Any:
        """Return the configuration of the saved adapter, which can differ from the configuration used in training."""
        return config

    def settings(self, config: Any, model: Transformer) -> dict[str, Any]:
        """Return the content of adapter_config.json for an adapter of `model`."""
        config = self.file_config(config)
        values = {field.name: to_python(getattr(config, field.name)) for field in fields(config)}
        path = config.base_model_name_or_path
        return {
            **self.fixed_settings,
            "peft_type": self.peft_type,
            **values,
            "base_model_name_or_path": path and os.fspath(path),
        }

    def convert(
        self, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Transformer
    ) -> tuple[Mapping[str, Any], Mapping[str, np.ndarray]]:
        """Return the settings and tensors of a file in the forms that `config` and `restore` expect.

        By default, the settings and tensors are returned unchanged.

        Raises ValueError if the file needs something that is not in the file.
        """
        return settings, arrays

    def config(self, settings: Mapping[str, Any]) -> Any:
        """Return the configuration for the settings of an adapter_config.json.

        Raises ValueError or TypeError; the message names the wrong setting.
        """
        known = {field.name for field in fields(self.config_type)}
        check_settings(settings, {*known, *self.accepted_keys}, self.in_peft)
        return self.config_type(**{key: settings[key] for key in known if settings.get(key) is not None})

    def costs(self, config: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, AdapterCost]:
        """Return a dictionary of the costs of all layers' adapters, with layer names as keys.

        `shapes` maps the name of each linear layer to the shape (out, in) of its weight.
        """
        return {}

    def prefix_cost(self, config: Any, layers: int, kv: int) -> PrefixCost | None:
        """Return the cost of a prefix for `layers` layers with keys of `kv` features; None for methods without a prefix."""
        return None


class LayerMethod(Method):
    """A method that adds one Adapter object to each targeted layer."""

    fixed_settings: ClassVar[Mapping[str, Any]] = {**COMMON_SETTINGS, **DISABLED_SETTINGS}
    layer_name_fields: ClassVar[tuple[str, ...]] = (
        "target_modules",
    )  # fields of the configuration that contain layer names

    def targets(self, config: Any, names: list[str], strict: bool = True) -> list[str]:
        """Return the names of the layers to adapt, in the order of `names`.

        With `strict=True`, raises ValueError if a target matches no layer.
        """
        if strict:
            return select_targets(names, config.target_modules)
        return [name for name in names if is_target(name, config.target_modules)]

    def for_layer(self, config: Any, layer: str) -> Any:
        """Return the configuration of one layer."""
        return config

    def check(self, host: AdapterHost, config: Any, layers: Mapping[str, Linear]) -> None:
        """Raise ValueError or RuntimeError if the method cannot adapt these layers."""

    def draw(self, config: Any, base: Linear, rng: np.random.Generator, dtype: np.dtype | None) -> Adapter:
        """Return a new adapter for one layer.

        Random numbers are drawn in host memory, so they are the same on every device.
        """
        raise NotImplementedError

    def shapes(self, config: Any, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of one layer's tensors, in the order in which `build` expects the tensors.

        A key of the dictionary is the last part of the tensor's key in the file.
        """
        raise NotImplementedError

    def build(self, config: Any, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None) -> Adapter:
        """Return the adapter of one layer with the given tensors, in the order of `shapes`."""
        raise NotImplementedError

    def cost(self, config: Any, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Return the cost of one layer's adapter. Raises ValueError if the method does not define a cost."""
        raise ValueError(
            f"{type(self).__name__} does not define the cost of a training step for a {type(config).__name__}; "
            "load the model and use costs.count(model), which counts the parameters"
        )

    def cost_of(self, adapter: Adapter) -> AdapterCost:
        """Return the cost of an existing adapter."""
        parameters = [p for _, p in adapter.named_parameters()]
        return self.cost(adapter.config, adapter.trainable, any(p.value.itemsize == 2 for p in parameters))

    def costs(self, config: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, AdapterCost]:
        """Return a dictionary of the costs of all layers' adapters, with layer names as keys."""
        return {name: self.cost(self.for_layer(config, name)) for name in self.targets(config, list(shapes))}

    def add(self, host: AdapterHost, name: str, config: Any, seed: int) -> None:
        """Add a new adapter to each targeted layer."""
        every = adaptable_layers(host.model)
        layers = {layer: every[layer] for layer in self.targets(config, list(every))}
        self.check(host, config, layers)
        self.insert(host, name, self.draw_all(config, layers, np.random.default_rng(seed), host.adapter_dtype))

    def draw_all(
        self, config: Any, layers: Mapping[str, Linear], rng: np.random.Generator, dtype: np.dtype | None
    ) -> Iterable[tuple[str, Adapter]]:
        """Yield the name and the new adapter of each layer, in the order of `layers`.

        The random numbers of all layers come from one generator.
        """
        return ((layer, self.draw(self.for_layer(config, layer), base, rng, dtype)) for layer, base in layers.items())

    def restore(self, host: AdapterHost, name: str, config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a saved adapter. Raises ValueError for an unexpected or missing tensor, or a wrong shape."""
        every = adaptable_layers(host.model)
        layers = {layer: every[layer] for layer in self.targets(config, list(every), strict=False)}
        if not layers:
            raise ValueError(f"{config.target_modules!r:.200} matches no linear layer; {available(list(every))}")
        expected = self.expected_shapes(config, layers)
        check_arrays(self.arrays_to_check(arrays, expected.keys(), host.model), expected, host.storage_dtype)
        self.check(host, config, layers)
        self.insert(host, name, self.build_all(config, layers, arrays, host.adapter_dtype))

    def expected_shapes(self, config: Any, layers: Mapping[str, Linear]) -> dict[str, tuple[int, ...]]:
        """Return a dictionary of the shapes of all tensors, with the keys of the file."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, base in layers.items():
            found |= self.with_file_keys(
                layer, self.shapes(self.for_layer(config, layer), base.out_features, base.in_features)
            )
        return found

    def with_file_keys(self, layer: str, tensors: Mapping[str, T]) -> dict[str, T]:
        """Return the tensors of a layer, or the shapes of these tensors, with the keys of the file."""
        return {f"{PREFIX}{layer}.{tensor}": x for tensor, x in tensors.items()}

    def arrays_to_check(
        self, arrays: Mapping[str, np.ndarray], expected: Iterable[str], model: Module
    ) -> Mapping[str, np.ndarray]:
        """Return the arrays that `restore` compares with the expected shapes; by default all arrays."""
        return arrays

    def build_all(
        self, config: Any, layers: Mapping[str, Linear], arrays: Mapping[str, np.ndarray], dtype: np.dtype | None
    ) -> Iterable[tuple[str, Adapter]]:
        """Yield the name and the adapter of each layer, built from the tensors of the file."""
        for layer, base in layers.items():
            own = self.for_layer(config, layer)
            keys = self.with_file_keys(layer, self.shapes(own, base.out_features, base.in_features))
            yield layer, self.build(own, base, [arrays[key] for key in keys], dtype)

    def insert(self, host: AdapterHost, name: str, adapters: Iterable[tuple[str, Adapter]]) -> None:
        """Insert the given adapters into their layers."""
        made = dict(adapters)
        for layer_name, layer in adapt(host.model, made):
            layer.adapters[name] = made[layer_name]

    def delete(self, host: AdapterHost, name: str) -> None:
        """Remove the adapter from every layer. A layer without adapters becomes a Linear again."""
        remove(host.model, name)

    def layers(self, host: AdapterHost, name: str) -> dict[str, AdaptedLinear]:
        """Return the layers that have this adapter, by name."""
        return adapted_layers(host.model, name)

    def parameters(self, host: AdapterHost, name: str) -> Iterator[Parameter]:
        """Yield the parameters of the adapter in all layers.

        A parameter that several layers share is yielded only once.
        """
        seen: set[int] = set()
        for layer in self.layers(host, name).values():
            for _, p in layer.adapters[name].named_parameters():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield p

    def set_trainable(self, host: AdapterHost, name: str, trainable: bool) -> None:
        """Unfreeze the adapter, except the parameters in `frozen`; if `trainable` is False, freeze all parameters."""
        for layer in self.layers(host, name).values():
            layer.adapters[name].set_trainable(trainable)

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """Return the tensors of all layers, as a dictionary from PEFT's keys to arrays in host memory."""
        found: dict[str, np.ndarray] = {}
        for layer_name, layer in self.layers(host, name).items():
            found |= self.with_file_keys(layer_name, layer.adapters[name].tensors())
        return found

    def settings(self, config: Any, model: Transformer) -> dict[str, Any]:
        """Return the content of adapter_config.json, with `target_modules` that select the same layers in PEFT."""
        found = super().settings(config, model)
        named: dict[str, Any] = {
            key: portable_targets(found[key], model) for key in self.layer_name_fields if key in found
        }
        if "fan_in_fan_out" in found:  # True for GPT-2's Conv1D, which stores weights as (in, out)
            named["fan_in_fan_out"] = model.config.family.gpt2
        return found | named

    def config(self, settings: Mapping[str, Any]) -> Any:
        """Check `target_modules`, and return the configuration for the settings of an adapter_config.json."""
        if "target_modules" in {field.name for field in fields(self.config_type)}:
            check_targets(settings.get("target_modules"))
        return super().config(settings)
