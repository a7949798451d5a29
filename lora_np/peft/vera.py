"""VeRA: one pair of random factors for all layers, and two trained vectors per layer (Kopiczko et al. 2023, arXiv 2310.11454).

    y = base(x) + b ∘ ((d ∘ (x̃ Aᵀ)) Bᵀ),   ΔW = Λ_b B Λ_d A        x̃ = drop(x) while training

A (r, in_max) and B (out_max, r) are as large as the largest layer requires; each layer takes its first columns and rows.
The trained parameters are d (r,) and b (out,): r + out numbers per layer, where LoRA trains r·(in + out). b starts at 0, so
ΔW starts at 0.

PEFT draws A and B from `projection_prng_key` with PyTorch's generator. lora_np does not have it, so a file contains A and B.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array, to_host
from ..nn import Linear, Parameter
from ..ops.vera import VeraCache
from .adapter import Bypass, parameter_like, upcast
from .choices import TARGETS, Choice, Option
from .config import TargetedConfig, check_number, check_probability, check_rank, check_whole
from .cost import AdapterCost, Products
from .files import check_arrays
from .method import AdapterHost, LayerMethod

PROJECTIONS = ("base_model.vera_A", "base_model.vera_B")  # what PEFT calls the shared factors in a file


@dataclass(frozen=True, kw_only=True)
class VeraConfig(TargetedConfig):
    """What to adapt and how, with PEFT's names and meanings.

    r: the rank of ΔW; larger than LoRA's, for it costs little.
    target_modules: as `LoraConfig` has it.
    vera_dropout: the probability of dropping an input of the bypass while training.
    d_initial: what every number of d starts as.
    init_weights: False, d normal and b = 1, so that the adapter is not the identity at the start (for tests).
    projection_prng_key: the seed of A and B.
    base_model_name_or_path: what the adapter was made for; saved with it, and otherwise unused.

    Raises ValueError for a value out of range, TypeError for a value of a wrong type.
    """

    r: int = 256
    target_modules: str | Collection[str] = ("q_proj", "v_proj")
    vera_dropout: float = 0.0
    d_initial: float = 0.1
    init_weights: bool = True
    projection_prng_key: int = 0
    base_model_name_or_path: str | os.PathLike[str] | None = None

    switches = ("init_weights",)

    def check(self) -> None:
        """Raise ValueError or TypeError for a field out of range, naming it."""
        check_rank("r", self.r)
        check_whole("projection_prng_key", self.projection_prng_key)
        check_probability("vera_dropout", self.vera_dropout)
        check_number("d_initial", self.d_initial)
        if not math.isfinite(self.d_initial):
            raise ValueError(f"d_initial = {self.d_initial}; expected a finite number")


class VeraAdapter(Bypass):
    """A (r, in_max) and B (out_max, r), frozen, the same Parameters in every layer; d (r,) and b (out,), this layer's own."""

    config: VeraConfig
    mergeable = True
    frozen = ("vera_A", "vera_B")

    def __init__(
        self, config: VeraConfig, base: Linear, A: Parameter, B: Parameter, d: Parameter, b: Parameter
    ) -> None:
        self.config = config
        self.in_features, self.out_features = base.in_features, base.out_features
        self.vera_A, self.vera_B, self.vera_lambda_d, self.vera_lambda_b = A, B, d, b

    @property
    def learned(self) -> tuple[Parameter, ...]:
        return self.vera_lambda_d, self.vera_lambda_b

    @property
    def dropout(self) -> float:
        return self.config.vera_dropout

    def factors(self, dtype: DTypeLike) -> tuple[Array, Array, Array, Array]:
        """A (r, in), B (out, r), d and b to compute with, in `dtype` where they are stored in 16 bits."""
        A, B = self.vera_A.value[:, : self.in_features], self.vera_B.value[: self.out_features]
        d, b = self.vera_lambda_d.value, self.vera_lambda_b.value
        return upcast(dtype, A), upcast(dtype, B), upcast(dtype, d), upcast(dtype, b)

    def delta_forward(self, x: Array) -> tuple[Array, VeraCache]:
        """x (…, in) → b ∘ ((d ∘ (x Aᵀ)) Bᵀ) (…, out)."""
        return ops.vera_forward(x, *self.factors(x.dtype))

    def delta_backward(self, dy: Array, cache: VeraCache, need_dx: bool) -> tuple[Array | None, ...]:
        """dδ (…, out) → dx, dd, db."""
        return ops.vera_backward(dy, cache, need_dx)

    def delta_weight(self, base: Linear) -> Array:
        """ΔW = Λ_b B Λ_d A (out, in)."""
        A, B, d, b = self.factors(base.weight.value.dtype)
        return (b[:, None] * B) @ (d[:, None] * A)


@dataclass(frozen=True)
class VeraCost(AdapterCost):
    """Of y + b ∘ ((d ∘ (x Aᵀ)) Bᵀ). Kept for the backward: h = x Aᵀ."""

    r: int = 256
    dropout: bool = False

    frozen_description = "A and B, the same in all layers"
    name = "VeRA"

    def title(self, out: int) -> str:
        return f"VeRA of rank {self.r}"

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """d and b."""
        return [self.r, out]

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """A and B once, as large as the largest layer requires."""
        return self.r * sum(map(max, zip(*shapes, strict=True)))

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """x Aᵀ and (d ∘ h) Bᵀ; back through B for dd, through A for dx, and dyᵀ (d ∘ h) for db."""
        with_A, with_B = 2 * N * self.r * in_, 2 * N * self.r * out
        if not (self.trained or need_dx):
            return Products(with_A + with_B)
        return Products(with_A + with_B, with_B + with_A * need_dx, with_B)

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """h (N, r); with dropout the mask; of 16 bits this layer's A, B, d and b in float32."""
        return N * self.r + self.dropout * N * in_ + self.half_precision * (self.r * (in_ + out) + self.r + out)

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """d ∘ h, and the bypass that comes of it."""
        return N * self.r + N * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Beside the frozen path's dx: d ∘ h and dyᵀ (d ∘ h); or b ∘ dy and dk; or dk and the bypass's dx, and that ∘ mask."""
        dx, h = need_dx * N * in_, N * self.r
        return max(frozen, dx + max(h + out * self.r, N * out + h, 2 * h, h + dx, dx + self.dropout * dx))


OPTIONS = {
    "r": Option(VeraConfig.r, "rank (default {})", type=int),
    "target_modules": TARGETS,
    "vera_dropout": Option(
        VeraConfig.vera_dropout, "dropout probability of the adapter's input (default {:g})", "P", float
    ),
}


class VeraMethod(LayerMethod):
    """A VeraAdapter in each targeted layer, with one A and one B for all of them."""

    config_type = VeraConfig
    peft_type = "VERA"
    recorded_fields = ("target_modules", "r")
    mergeable = True
    fixed_settings: ClassVar[Mapping[str, Any]] = {
        **LayerMethod.fixed_settings,
        "layers_to_transform": None,
        "layers_pattern": None,
        "save_projection": True,
    }
    accepted_keys = ("save_projection",)
    choices: ClassVar[Mapping[str, Choice]] = {"vera": Choice(3e-2, VeraConfig, OPTIONS)}
    example = VeraConfig(r=3, target_modules="all-linear", d_initial=0.125, init_weights=False)

    def draw_all(
        self, config: VeraConfig, layers: Mapping[str, Linear], rng: np.random.Generator, dtype: np.dtype | None
    ) -> Iterable[tuple[str, VeraAdapter]]:
        """A and B are drawn by the configuration's key, on the host; d and b by `rng`, where they are drawn at all.

        A is uniform in ±√(6/in_max) and B in ±√(6/r), Kaiming's bounds for a ReLU, as in PEFT.
        """
        shapes, key, r = (
            projections(config, layers).values(),
            np.random.default_rng(config.projection_prng_key),
            config.r,
        )
        arrays = [key.uniform(-1, 1, shape) * math.sqrt(6 / shape[1]) for shape in shapes]
        vectors = {}
        for name, base in layers.items():
            d, b = np.full(r, config.d_initial), np.zeros(base.out_features)
            if not config.init_weights:
                d, b = rng.standard_normal(r), np.ones_like(b)
            vectors[name] = d, b
        return self.share_projections(config, layers, arrays, vectors, dtype)

    def build_all(
        self, config: VeraConfig, layers: Mapping[str, Linear], arrays: Mapping[str, np.ndarray], dtype: np.dtype | None
    ) -> Iterable[tuple[str, VeraAdapter]]:
        """From the file's tensors."""
        shared = [arrays[key] for key in PROJECTIONS]
        vectors = {
            name: tuple(
                arrays[key]
                for key in self.with_file_keys(name, self.shapes(config, base.out_features, base.in_features))
            )
            for name, base in layers.items()
        }
        return self.share_projections(config, layers, shared, vectors, dtype)

    def share_projections(
        self,
        config: VeraConfig,
        layers: Mapping[str, Linear],
        shared: list[np.ndarray],
        vectors: Mapping[str, tuple[np.ndarray, ...]],
        dtype: np.dtype | None,
    ) -> Iterable[tuple[str, VeraAdapter]]:
        """(layer, its adapter), all with the same Parameters A and B."""
        A, B = (parameter_like(next(iter(layers.values())), x, dtype) for x in shared)
        A.trainable = B.trainable = False
        for name, base in layers.items():
            yield name, VeraAdapter(config, base, A, B, *(parameter_like(base, x, dtype) for x in vectors[name]))

    def shapes(self, config: VeraConfig, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """d (r,) and b (out,)."""
        return {"vera_lambda_d": (config.r,), "vera_lambda_b": (out,)}

    def expected_shapes(self, config: VeraConfig, layers: Mapping[str, Linear]) -> dict[str, tuple[int, ...]]:
        """A and B once, and each layer's d and b."""
        return projections(config, layers) | super().expected_shapes(config, layers)

    def restore(self, host: AdapterHost, name: str, config: VeraConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """PEFT can leave A and B out of a file; here they must be in it."""
        check_arrays(
            {}, {key: () for key in PROJECTIONS if key not in arrays}, "; A and B are saved with `save_projection=True`"
        )
        super().restore(host, name, config, arrays)

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """A (r, in_max) and B (out_max, r) once, and each layer's d (r,) and b (out,), by PEFT's keys."""
        found = super().arrays(host, name)
        shared = next(iter(self.layers(host, name).values())).adapters[name]
        assert isinstance(shared, VeraAdapter)
        own = {key: x for key, x in found.items() if not key.endswith(("vera_A", "vera_B"))}
        return dict(zip(PROJECTIONS, (to_host(shared.vera_A.value), to_host(shared.vera_B.value)), strict=True)) | own

    def cost(self, config: VeraConfig, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Of one layer."""
        return VeraCost(trained, half_precision, int(config.r), config.vera_dropout > 0)


def projections(config: VeraConfig, layers: Mapping[str, Linear]) -> dict[str, tuple[int, int]]:
    """key → shape of A (r, in_max) and B (out_max, r); the two maxima may come from different layers."""
    out_max, in_max = (max(getattr(base, side) for base in layers.values()) for side in ("out_features", "in_features"))
    return dict(zip(PROJECTIONS, [(config.r, in_max), (out_max, config.r)], strict=True))
