"""VeRA: one pair of random factors for all layers, and two trained vectors a layer (Kopiczko et al. 2023, arXiv 2310.11454).

    y = base(x) + b ∘ ((d ∘ (x̃ Aᵀ)) Bᵀ),   ΔW = Λ_b B Λ_d A        x̃ = drop(x) while training

A (r, in_max) and B (out_max, r) are as large as the largest layer asks; each takes its first columns and rows. What trains is
d (r,) and b (out,): r + out numbers a layer in place of LoRA's r·(in + out). b starts at 0, and so does ΔW.

PEFT draws A and B from `projection_prng_key` with PyTorch's generator, which is not here; so a file holds them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ops
from ..backend import Array, move, to_host
from ..costs import Vera
from ..nn import EVALUATION, Context, Linear, Module, Parameter
from ..nn.targets import available, is_target, plain_targets, select_targets
from .checks import check_number, check_whole
from .files import KIND, PREFIX, WRITTEN_OFF, check_targets, plain, portable_targets, refuse_others, some
from .lora.mixed import AdapterRows
from .method import Method
from .placement import adaptable_layers, unwrap, wrap, wrapped_by
from .wrapper import WeightWrapper

if TYPE_CHECKING:
    from .model import PeftModel

PROJECTIONS = ("base_model.vera_A", "base_model.vera_B")  # what PEFT calls the shared factors in a file
VECTORS = ("vera_lambda_d", "vera_lambda_b")
OFF = {"layers_to_transform": None, "layers_pattern": None}


@dataclass(frozen=True)
class VeraConfig:
    """What to adapt and how, with PEFT's names and meanings.

    r: the rank of ΔW; larger than LoRA's, for it costs little.
    target_modules: as `LoraConfig` has it.
    vera_dropout: the probability of dropping an input of the bypass while training.
    d_initial: what every number of d starts as.
    init_weights: False, d normal and b = 1, so that the adapter is not the identity at the start (for tests).
    projection_prng_key: the seed of A and B.
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range, TypeError for an r or a key that is not an integer, a number that is none, an
    init_weights that is no bool or targets that are no names.
    """

    r: int = 256
    target_modules: str | Collection[str] = ("q_proj", "v_proj")
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    init_weights: bool = True
    projection_prng_key: int = 0
    base_model_name_or_path: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "target_modules", plain_targets(self.target_modules))
        check_whole("r", self.r, "the rank is a whole number")
        check_whole("projection_prng_key", self.projection_prng_key)
        for name in ("vera_dropout", "d_initial"):
            check_number(name, getattr(self, name))
        if self.r < 1:
            raise ValueError(f"r = {self.r}; the rank must be at least 1")
        if not 0 <= self.vera_dropout < 1:
            raise ValueError(f"vera_dropout = {self.vera_dropout}; expected 0 ≤ vera_dropout < 1")
        if not math.isfinite(self.d_initial):
            raise ValueError(f"d_initial = {self.d_initial}; expected a finite number")
        if not isinstance(self.init_weights, bool):
            raise TypeError(f"init_weights = {self.init_weights!r}; expected True or False")


class VeraLinear(WeightWrapper):
    """The bypass around `base_layer`, a module with Linear's contract, for the adapter that the call names.

    `vera_A[name]` (r, in_max) and `vera_B[name]` (out_max, r) are the same two Parameters in every layer of the adapter, and
    frozen; `vera_lambda_d[name]` (r,) and `vera_lambda_b[name]` (out,) are this layer's own.
    """

    def __init__(self, base_layer: Linear) -> None:
        super().__init__(base_layer)
        self.vera_A: dict[str, Parameter] = {}
        self.vera_B: dict[str, Parameter] = {}
        self.vera_lambda_d: dict[str, Parameter] = {}
        self.vera_lambda_b: dict[str, Parameter] = {}

    def put_adapter(
        self, name: str, config: VeraConfig, A: Parameter, B: Parameter, d: np.ndarray, b: np.ndarray
    ) -> None:
        """Take the shared Parameters A and B, and this layer's vectors d (r,) and b (out,), as an adapter."""
        self.vera_A[name], self.vera_B[name] = A, B
        self.vera_lambda_d[name] = Parameter(move(d.astype(A.value.dtype), A.value))
        self.vera_lambda_b[name] = Parameter(move(b.astype(A.value.dtype), A.value))
        self.configs[name] = config

    def delete_adapter(self, name: str) -> None:
        """Forget an adapter, if it is here."""
        for kept in (self.vera_A, self.vera_B, self.vera_lambda_d, self.vera_lambda_b, self.configs):
            kept.pop(name, None)

    def on_paper(self, name: str) -> Vera:
        """As the ledger has it."""
        d, config = self.vera_lambda_d[name], self.configs[name]
        return Vera(d.trainable, d.value.itemsize == 2, config.r, config.vera_dropout > 0)

    def factors(self, name: str, dtype: Any) -> tuple[Array, Array, Array, Array]:
        """A (r, in), B (out, r), d and b to compute with: those of 16 bits as copies in `dtype`."""
        A, B = self.vera_A[name].value[:, : self.in_features], self.vera_B[name].value[: self.out_features]
        stored = A, B, self.vera_lambda_d[name].value, self.vera_lambda_b[name].value
        return tuple(x.astype(dtype) if x.dtype.itemsize == 2 else x for x in stored)

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Any]:
        """x (…, in) → y (…, out). Raises RuntimeError for an adapter while another one is merged into the weight."""
        name = context.adapter
        mixed = isinstance(name, AdapterRows)
        self.check_call(name, mixed)
        if mixed and name.segments.keys() & self.configs.keys():
            raise ValueError("VeRA has no mixed batches: give its rows a batch of their own")
        y, base_cache = self.base_layer.forward(x, context)
        if name not in self.configs or self.merged:
            return y, (base_cache, None, None, None)
        dropped, mask = ops.dropout_forward(x, self.configs[name].vera_dropout, context.rng)
        delta, vera_cache = ops.vera_forward(dropped, *self.factors(name, x.dtype))
        y += delta
        return y, (base_cache, name, mask, vera_cache)

    def backward(self, dy: Array, cache: Any, need_dx: bool = True) -> Array | None:
        """dy (…, out) → dx (…, in), or None where nothing below needs it: the sum of both paths', as in LoraLinear."""
        base_cache, name, mask, vera_cache = cache
        dx = self.base_layer.backward(dy, base_cache, need_dx)
        if name is None:
            return dx
        d, b = self.vera_lambda_d[name], self.vera_lambda_b[name]
        if not (d.trainable or b.trainable or need_dx):
            return None
        dx_bypass, dd, db = ops.vera_backward(dy, vera_cache, need_dx)
        for parameter, gradient in ((d, dd), (b, db)):
            if parameter.trainable:
                parameter.add_grad(gradient)
        if need_dx:
            dx += ops.dropout_backward(dx_bypass, mask)
        return dx

    def delta_weight(self, name: str) -> Array:
        """ΔW = Λ_b B Λ_d A (out, in)."""
        A, B, d, b = self.factors(name, self.linear.weight.value.dtype)
        return (b[:, None] * B) @ (d[:, None] * A)


class VeraMethod(Method):
    """A VeraLinear around each targeted layer, while it has an adapter."""

    peft_type = "VERA"
    decisive = ("target_modules", "r")
    mergeable = True

    def add(self, peft_model: PeftModel, name: str, config: VeraConfig, seed: int) -> None:
        """A and B are drawn by the configuration's key, on the host; d and b by `seed`, where they are drawn at all.

        A is uniform in ±√(6/in_max) and B in ±√(6/r), Kaiming's bounds for a ReLU, as in PEFT. Raises ValueError for a target
        module that is not there.
        """
        layers = adaptable_layers(peft_model.model)
        names = select_targets(list(layers), config.target_modules)
        out_max, in_max = largest(layers, names)
        rng, r = np.random.default_rng(config.projection_prng_key), config.r
        A, B = (rng.uniform(-1, 1, shape) * math.sqrt(6 / shape[1]) for shape in ((r, in_max), (out_max, r)))
        rng, vectors = np.random.default_rng(seed), {}
        for layer in names:
            d, b = np.full(r, config.d_initial), np.zeros(layers[layer].out_features)
            if not config.init_weights:
                d, b = rng.standard_normal(r), np.ones_like(b)
            vectors[layer] = d, b
        put(peft_model, name, config, (A, B), vectors)

    def restore(self, peft_model: PeftModel, name: str, config: VeraConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """Every array must have its place, and every place its array, of the right shape."""
        layers = adaptable_layers(peft_model.model)
        names = [layer for layer in layers if is_target(layer, config.target_modules)]
        if not names:
            raise ValueError(f"{config.target_modules!r} matches no linear layer; {available(list(layers))}")
        out_max, in_max = largest(layers, names)
        shapes = dict(zip(PROJECTIONS, [(config.r, in_max), (out_max, config.r)], strict=True))
        for layer in names:
            shapes |= dict(zip(keys(layer), [(config.r,), (layers[layer].out_features,)], strict=True))
        if missing := sorted(shapes.keys() - arrays.keys()):
            hint = "; A and B are saved with `save_projection=True`" if PROJECTIONS[0] in missing else ""
            raise ValueError(f"{some(missing)} is missing{hint}")
        if extra := sorted(arrays.keys() - shapes.keys()):
            raise ValueError(f"no place for {some(extra)} in this model with target_modules {config.target_modules!r}")
        for key, shape in shapes.items():
            if arrays[key].shape != shape or arrays[key].dtype.kind != "f":
                found = f"shape {arrays[key].shape} and dtype {arrays[key].dtype}"
                raise ValueError(f"{key} has {found}; this model and configuration have floats of shape {shape} there")
        vectors = {layer: tuple(arrays[key] for key in keys(layer)) for layer in names}
        put(peft_model, name, config, tuple(arrays[key] for key in PROJECTIONS), vectors)

    def delete(self, peft_model: PeftModel, name: str) -> None:
        """Forget its numbers, and unwrap the layers that have no other."""
        layers = vera_layers(peft_model.model)
        for layer in layers.values():
            layer.delete_adapter(name)
        unwrap(peft_model.model, [path for path, layer in layers.items() if not layer.configs], VeraLinear)

    def parameters(self, peft_model: PeftModel, name: str) -> Iterator[Parameter]:
        """A and B once, and each layer's d and b."""
        layers = [layer for layer in vera_layers(peft_model.model).values() if name in layer.configs]
        for layer in layers[:1]:
            yield from (layer.vera_A[name], layer.vera_B[name])
        for layer in layers:
            yield from (layer.vera_lambda_d[name], layer.vera_lambda_b[name])

    def set_trainable(self, peft_model: PeftModel, name: str, trainable: bool) -> None:
        """d and b: A and B stay as they were drawn."""
        A, B, *vectors = self.parameters(peft_model, name)
        for p in (A, B, *vectors):
            p.trainable = trainable and p is not A and p is not B
            if not p.trainable:
                p.grad = None

    def arrays(self, peft_model: PeftModel, name: str) -> dict[str, np.ndarray]:
        """A (r, in_max) and B (out_max, r) once, and each layer's d (r,) and b (out,), by PEFT's keys."""
        found = {}
        for layer_name, layer in vera_layers(peft_model.model).items():
            if name in layer.configs:
                kept = layer.vera_A, layer.vera_B, layer.vera_lambda_d, layer.vera_lambda_b
                names = *PROJECTIONS, *keys(layer_name)
                found |= {key: to_host(numbers[name].value) for key, numbers in zip(names, kept, strict=True)}
        return found

    def settings(self, config: VeraConfig, model: Module) -> dict[str, Any]:
        """As PEFT's adapter_config.json has it."""
        path = config.base_model_name_or_path
        own = {field.name: plain(getattr(config, field.name)) for field in fields(config)}
        own |= {"target_modules": portable_targets(config, model), "base_model_name_or_path": path and os.fspath(path)}
        return {**KIND, **WRITTEN_OFF, **OFF, "peft_type": self.peft_type, "save_projection": True, **own}

    def config(self, settings: Mapping[str, Any]) -> VeraConfig:
        """The way back."""
        known = {field.name for field in fields(VeraConfig)}
        refuse_others(settings, {*known, "save_projection"})
        check_targets(settings.get("target_modules"))
        return VeraConfig(**{key: settings[key] for key in known if settings.get(key) is not None})


def put(
    peft_model: PeftModel,
    name: str,
    config: VeraConfig,
    projections: tuple[np.ndarray, np.ndarray],
    vectors: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    """Give each layer the shared factors and its own vectors, from the host."""
    like = peft_model.model.model.norm.weight.value
    dtype = peft_model.adapter_dtype or like.dtype
    A, B = (Parameter(move(x.astype(dtype), like), trainable=False) for x in projections)
    for layer_name, layer in wrap(peft_model.model, vectors, VeraLinear):
        layer.put_adapter(name, config, A, B, *vectors[layer_name])


def vera_layers(model: Module) -> dict[str, VeraLinear]:
    """name → every layer wrapped by VeRA."""
    return {name: layer for name, (_, layer) in wrapped_by(model, VeraLinear).items()}


def largest(layers: Mapping[str, Any], names: Sequence[str]) -> tuple[int, int]:
    """(out_max, in_max) over the named layers: the two may come from different ones."""
    return max(layers[name].out_features for name in names), max(layers[name].in_features for name in names)


def keys(layer: str) -> list[str]:
    """The names of a layer's two vectors in a file."""
    return [f"{PREFIX}{layer}.{vector}" for vector in VECTORS]
