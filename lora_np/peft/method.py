"""What PeftModel requires of a method, and the host that a method works on. A method is one file and one line of registry.py.

class Method         the interface: add, restore, delete, … an adapter of one kind
class LayerMethod    all of it for methods whose adapters are objects in the linear layers (adapter.py)
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
    """What a method may touch of a PeftModel: the base, modules beside it, the configurations, and the storage dtype."""

    def __init__(self, model: Transformer, adapter_dtype: np.dtype | None = None) -> None:
        self.model = model
        self.prompt_encoder: dict[str, Any] = {}  # adapter → what computes its prefix
        self.peft_config: dict[str, PeftConfig] = {}
        self.adapter_dtype = adapter_dtype  # None: the base's


class Method:
    """The interface of an adapter method. A method has no state; the PeftModel holds the adapters.

    config_type: the class of its configuration. peft_type: its name in adapter_config.json. recorded_fields: fields that change
    what the tensors mean. The weights file stores a copy of them; loading compares both copies, and so detects files of two saves.
    mergeable: whether its adapters are changes ΔW of weights. own: the fields of its configuration that PEFT does not have; the
    weights file stores them.
    """

    config_type: ClassVar[type[PeftConfig]]
    peft_type: ClassVar[str]
    recorded_fields: ClassVar[tuple[str, ...]] = ()
    mergeable: ClassVar[bool] = False
    extra_fields: ClassVar[tuple[str, ...]] = ()
    fixed_settings: ClassVar[Mapping[str, Any]] = COMMON_SETTINGS  # what the file says besides the configuration
    accepted_keys: ClassVar[tuple[str, ...]] = ()  # keys that a file may have besides the configuration's
    choices: ClassVar[Mapping[str, Choice]] = {}  # its names for `train --method`
    example: ClassVar[PeftConfig | None] = None  # its adapter is not the identity: the tests of all methods take it

    def add(self, host: AdapterHost, name: str, config: Any, seed: int) -> None:
        """Add a new adapter, drawn by `seed`. Raises before anything has changed."""
        raise NotImplementedError

    def restore(self, host: AdapterHost, name: str, config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Add the adapter that `arrays` holds. Raises ValueError naming what does not fit, before anything has changed."""
        raise NotImplementedError

    def delete(self, host: AdapterHost, name: str) -> None:
        """Remove an adapter, and whatever was there for it alone."""
        raise NotImplementedError

    def parameters(self, host: AdapterHost, name: str) -> Iterator[Parameter]:
        """Its parameters, frozen or not."""
        raise NotImplementedError

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """The tensors of its file by their keys, on the host."""
        raise NotImplementedError

    def set_trainable(self, host: AdapterHost, name: str, trainable: bool) -> None:
        """Make the parameters of the adapter `name` trainable, or freeze them and delete their gradients."""
        for p in self.parameters(host, name):
            p.trainable = trainable
            if not trainable:
                p.grad = None

    def check_mixable(self, name: str, config: Any) -> None:
        """Raise ValueError unless its rows can share a batch with those of other adapters."""
        raise ValueError(f"{name!r} has a {type(config).__name__}: its rows need a batch of their own")

    def file_config(self, config: Any) -> Any:
        """The configuration that describes the saved adapter, where it is another one than that of training."""
        return config

    def settings(self, config: Any, model: Transformer) -> dict[str, Any]:
        """The content of adapter_config.json, for an adapter of `model`."""
        config = self.file_config(config)
        values = {field.name: to_python(getattr(config, field.name)) for field in fields(config)}
        path = config.base_model_name_or_path
        return {
            **self.fixed_settings,
            "peft_type": self.peft_type,
            **values,
            "base_model_name_or_path": path and os.fspath(path),
        }

    def config(self, settings: Mapping[str, Any]) -> Any:
        """The configuration that `settings` wrote. Raises ValueError or TypeError naming what is unknown or out of range."""
        known = {field.name for field in fields(self.config_type)}
        check_settings(settings, {*known, *self.accepted_keys})
        return self.config_type(**{key: settings[key] for key in known if settings.get(key) is not None})

    def costs(self, config: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, AdapterCost]:
        """layer → what its adapter adds to a step, in a model whose linear layers have these (out, in)."""
        return {}

    def prefix_cost(self, config: Any, layers: int, kv: int) -> PrefixCost | None:
        """What its prefix adds, in a model of `layers` layers whose keys have `kv` features; None for methods without one."""
        return None


class LayerMethod(Method):
    """A method whose adapters are Adapter objects in linear layers: it says where they go, what they are, and their shapes."""

    fixed_settings: ClassVar[Mapping[str, Any]] = {**COMMON_SETTINGS, **DISABLED_SETTINGS}
    layer_name_fields: ClassVar[tuple[str, ...]] = ("target_modules",)  # fields of its configuration that name layers

    def targets(self, config: Any, names: list[str], strict: bool = True) -> list[str]:
        """The layers among `names` that get an adapter, in their order. `strict`: ValueError for a target that matches none."""
        if strict:
            return select_targets(names, config.target_modules)
        return [name for name in names if is_target(name, config.target_modules)]

    def for_layer(self, config: Any, layer: str) -> Any:
        """The configuration as this layer has it."""
        return config

    def check(self, host: AdapterHost, config: Any, layers: Mapping[str, Linear]) -> None:
        """Raise ValueError or RuntimeError where these layers cannot take such an adapter."""

    def draw(self, config: Any, base: Linear, rng: np.random.Generator, dtype: np.dtype | None) -> Adapter:
        """A new adapter for one layer. The numbers are drawn on the host, so that a seed means the same on every device."""
        raise NotImplementedError

    def shapes(self, config: Any, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """The tensors of one layer in a file: the last part of the key → shape, in the order that `build` takes them."""
        raise NotImplementedError

    def build(self, config: Any, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None) -> Adapter:
        """The adapter of one layer from the tensors of `shapes`."""
        raise NotImplementedError

    def cost(self, config: Any, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """What an adapter of this configuration adds to a layer's step. Raises ValueError where the method does not say."""
        raise ValueError(
            f"{type(self).__name__} does not define the cost of a training step for a {type(config).__name__}; "
            "costs.count(model) counts the parameters of a live model"
        )

    def cost_of(self, adapter: Adapter) -> AdapterCost:
        """The same of an adapter as it is."""
        parameters = [p for _, p in adapter.named_parameters()]
        return self.cost(adapter.config, adapter.trainable, any(p.value.itemsize == 2 for p in parameters))

    def costs(self, config: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, AdapterCost]:
        """layer → the cost of its adapter."""
        return {name: self.cost(self.for_layer(config, name)) for name in self.targets(config, list(shapes))}

    def add(self, host: AdapterHost, name: str, config: Any, seed: int) -> None:
        """Draw an adapter for each targeted layer."""
        every = adaptable_layers(host.model)
        layers = {layer: every[layer] for layer in self.targets(config, list(every))}
        self.check(host, config, layers)
        self.insert(host, name, self.draw_all(config, layers, np.random.default_rng(seed), host.adapter_dtype))

    def draw_all(
        self, config: Any, layers: Mapping[str, Linear], rng: np.random.Generator, dtype: np.dtype | None
    ) -> Iterable[tuple[str, Adapter]]:
        """(layer, new adapter) for each layer, in order: one stream of numbers for all."""
        return ((layer, self.draw(self.for_layer(config, layer), base, rng, dtype)) for layer, base in layers.items())

    def restore(self, host: AdapterHost, name: str, config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Every tensor must have its place, and every place its tensor, of the right shape."""
        every = adaptable_layers(host.model)
        layers = {layer: every[layer] for layer in self.targets(config, list(every), strict=False)}
        if not layers:
            raise ValueError(f"{config.target_modules!r} matches no linear layer; {available(list(every))}")
        expected = self.expected_shapes(config, layers)
        check_arrays(self.arrays_to_check(arrays, expected.keys(), host.model), expected)
        self.check(host, config, layers)
        self.insert(host, name, self.build_all(config, layers, arrays, host.adapter_dtype))

    def expected_shapes(self, config: Any, layers: Mapping[str, Linear]) -> dict[str, tuple[int, ...]]:
        """key → shape of every tensor of the file."""
        found: dict[str, tuple[int, ...]] = {}
        for layer, base in layers.items():
            found |= self.with_file_keys(
                layer, self.shapes(self.for_layer(config, layer), base.out_features, base.in_features)
            )
        return found

    def with_file_keys(self, layer: str, tensors: Mapping[str, T]) -> dict[str, T]:
        """A layer's tensors, or their shapes, by the file's keys."""
        return {f"{PREFIX}{layer}.{tensor}": x for tensor, x in tensors.items()}

    def arrays_to_check(
        self, arrays: Mapping[str, np.ndarray], expected: Iterable[str], model: Module
    ) -> Mapping[str, np.ndarray]:
        """The arrays that are checked against `expected`; by default all."""
        return arrays

    def build_all(
        self, config: Any, layers: Mapping[str, Linear], arrays: Mapping[str, np.ndarray], dtype: np.dtype | None
    ) -> Iterable[tuple[str, Adapter]]:
        """(layer, adapter) for each layer, from the file's tensors."""
        for layer, base in layers.items():
            own = self.for_layer(config, layer)
            keys = self.with_file_keys(layer, self.shapes(own, base.out_features, base.in_features))
            yield layer, self.build(own, base, [arrays[key] for key in keys], dtype)

    def insert(self, host: AdapterHost, name: str, adapters: Iterable[tuple[str, Adapter]]) -> None:
        """Put an adapter into each layer."""
        made = dict(adapters)
        for layer_name, layer in adapt(host.model, made):
            layer.adapters[name] = made[layer_name]

    def delete(self, host: AdapterHost, name: str) -> None:
        """Take it out of every layer; a layer without adapters is the plain Linear again."""
        remove(host.model, name)

    def layers(self, host: AdapterHost, name: str) -> dict[str, AdaptedLinear]:
        """The layers that have this adapter."""
        return adapted_layers(host.model, name)

    def parameters(self, host: AdapterHost, name: str) -> Iterator[Parameter]:
        """The parameters of each layer's adapter; one that layers share comes once."""
        seen: set[int] = set()
        for layer in self.layers(host, name).values():
            for _, p in layer.adapters[name].named_parameters():
                if id(p) not in seen:
                    seen.add(id(p))
                    yield p

    def set_trainable(self, host: AdapterHost, name: str, trainable: bool) -> None:
        """Train all but what its adapters keep frozen, or freeze all."""
        for layer in self.layers(host, name).values():
            layer.adapters[name].set_trainable(trainable)

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """The tensors of each layer, by PEFT's keys."""
        found: dict[str, np.ndarray] = {}
        for layer_name, layer in self.layers(host, name).items():
            found |= self.with_file_keys(layer_name, layer.adapters[name].tensors())
        return found

    def settings(self, config: Any, model: Transformer) -> dict[str, Any]:
        """As PEFT's adapter_config.json has it, with `target_modules` that mean the same layers there."""
        found = super().settings(config, model)
        named = {key: portable_targets(found[key], model) for key in self.layer_name_fields if key in found}
        return found | named

    def config(self, settings: Mapping[str, Any]) -> Any:
        """The way back."""
        if "target_modules" in {field.name for field in fields(self.config_type)}:
            check_targets(settings.get("target_modules"))
        return super().config(settings)
