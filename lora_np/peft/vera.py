"""VeRA: one pair of random factors for all layers, and two trained vectors per layer (Kopiczko et al. 2023, arXiv 2310.11454).

    y = base(x) + b ∘ ((d ∘ (x̃ Aᵀ)) Bᵀ),   ΔW = Λ_b B Λ_d A        x̃ = drop(x) while training

The matrices A (r, in_max) and B (out_max, r) are large enough for all layers: in_max and out_max are the largest input
and output sizes. Each layer uses the first `in` columns of A and the first `out` rows of B. The trained parameters are
d (r,) and b (out,): r + out numbers per layer. LoRA trains r·(in + out) numbers. The vector b starts at 0, so ΔW starts
at 0.

PEFT draws A and B with PyTorch's generator from the seed `projection_prng_key`. lora_np does not have this generator,
so lora_np writes A and B into the file.
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

PROJECTIONS = ("base_model.vera_A", "base_model.vera_B")  # PEFT's names of the shared matrices in a file


@dataclass(frozen=True, kw_only=True)
class VeraConfig(TargetedConfig):
    """The configuration of VeRA, with PEFT's names and meanings.

    Parameters
    ----------
    task_type : str or None, default None
        None or "CAUSAL_LM".
    inference_mode : bool, default False
        Must be False. To freeze an adapter, call `PeftModel.set_adapter(name, inference_mode=True)`.
    bias : str or None, default "none"
        Must be "none" or None: biases stay frozen.
    fan_in_fan_out : bool, default False
        Must be False: weights have shape (out, in).
    modules_to_save, exclude_modules, layers_to_transform, layers_pattern : collection or None, default None
        Must be None or empty. To exclude modules or to select layers, use a regular expression in `target_modules`.
    r : int, default 256
        Rank of ΔW. The rank can be larger than in LoRA, because only r + out numbers are trained per layer.
    target_modules : str or collection of str, default ("q_proj", "v_proj")
        As in `LoraConfig`.
    vera_dropout : float, default 0.0
        Dropout probability of the bypass's input in training, 0 ≤ p < 1.
    d_initial : float, default 0.1
        Initial value of every element of d.
    init_weights : bool, default True
        True: b = 0, so ΔW = 0 at the start. False (for tests): d is random, from a normal distribution, and b = 1.
    projection_prng_key : int, default 0
        Seed of the shared matrices A and B.
    base_model_name_or_path : str, path or None, default None
        Name of the base model. The name is saved with the adapter and has no other effect.

    Raises
    ------
    ValueError
        If a value is out of range.
    TypeError
        If a value has a wrong type.

    Examples
    --------
    >>> import lora_np as ln
    >>> [ln.costs.count("llama-2-7b", config).trainable for config in (ln.VeraConfig(r=256), ln.LoraConfig(r=8))]
    [278528, 4194304]
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
        """Check all fields. Raises ValueError or TypeError; the message names the wrong field."""
        check_rank("r", self.r)
        check_whole("projection_prng_key", self.projection_prng_key)
        check_probability("vera_dropout", self.vera_dropout)
        check_number("d_initial", self.d_initial)
        if not math.isfinite(self.d_initial):
            raise ValueError(f"d_initial = {self.d_initial}; expected a finite number")


class VeraAdapter(Bypass):
    """The VeRA adapter of one layer, with its own vectors d (r,) and b (out,).

    All layers share the frozen matrices A (r, in_max) and B (out_max, r).
    """

    config: VeraConfig
    mergeable = True
    mixable = True
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
        """Return A (r, in), B (out, r), d and b for this layer, upcast to `dtype` if they are stored in 16 bits."""
        A, B = self.vera_A.value[:, : self.in_features], self.vera_B.value[: self.out_features]
        d, b = self.vera_lambda_d.value, self.vera_lambda_b.value
        return upcast(dtype, A), upcast(dtype, B), upcast(dtype, d), upcast(dtype, b)

    def delta_forward(self, x: Array) -> tuple[Array, VeraCache]:
        """Compute b ∘ ((d ∘ (x Aᵀ)) Bᵀ) (…, out) for x (…, in)."""
        return ops.vera_forward(x, *self.factors(x.dtype))

    def delta_backward(self, dy: Array, cache: VeraCache, need_dx: bool) -> tuple[Array | None, ...]:
        """Return dx, dd and db for dδ (…, out)."""
        return ops.vera_backward(dy, cache, need_dx)

    def delta_weight(self, base: Linear) -> Array:
        """Return ΔW = Λ_b B Λ_d A (out, in)."""
        A, B, d, b = self.factors(base.weight.value.dtype)
        return (b[:, None] * B) @ (d[:, None] * A)


@dataclass(frozen=True)
class VeraCost(AdapterCost):
    """The cost of y + b ∘ ((d ∘ (x Aᵀ)) Bᵀ). The backward pass needs h = x Aᵀ."""

    r: int = 256
    dropout: bool = False

    frozen_description = "A and B, the same in all layers"
    name = "VeRA"

    def title(self, out: int) -> str:
        return f"VeRA of rank {self.r}"

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Return the sizes of the trained arrays, d and b."""
        return [self.r, out]

    def frozen(self, shapes: Collection[tuple[int, int]]) -> int:
        """Return the number of elements of A and B.

        All layers share A and B, so A and B are counted once, with the size that the largest layers require.
        """
        return self.r * sum(map(max, zip(*shapes, strict=True)))

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Return the FLOPs of x Aᵀ and (d ∘ h) Bᵀ, and of their gradients.

        The backward pass multiplies by B for dd, multiplies by A for dx, and computes dyᵀ (d ∘ h) for db.
        """
        with_A, with_B = 2 * N * self.r * in_, 2 * N * self.r * out
        if not (self.trained or need_dx):
            return Products(with_A + with_B)
        return Products(with_A + with_B, with_B + with_A * need_dx, with_B)

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Return the number of saved floats.

        The saved arrays are h (N, r), the dropout mask, and float32 copies of parameters stored in 16 bits.
        """
        return N * self.r + self.dropout * N * in_ + self.half_precision * (self.r * (in_ + out) + self.r + out)

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """Return the number of temporary floats of d ∘ h and of the bypass's output."""
        return N * self.r + N * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Return the peak number of temporary floats.

        The peak is the larger of two numbers. The first number counts the temporary floats of the frozen
        layer. The second number counts the floats of the frozen layer's dx and of the bypass's temporary arrays.
        """
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
    """VeRA: a VeraAdapter in each targeted layer; all layers share one A and one B."""

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
        """Yield the name and the new adapter of each layer.

        A and B are drawn with the seed `projection_prng_key`, in host memory.

        As in PEFT, A is uniform in ±√(6/in_max) and B is uniform in ±√(6/r), which are Kaiming's bounds for a ReLU. The
        vectors d and b are constant; if `init_weights` is False, d is drawn with `rng`.
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
        """Yield the name and the adapter of each layer, built from the tensors of the file."""
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
        """Yield the name and the adapter of each layer. All adapters share the Parameters A and B."""
        A, B = (parameter_like(next(iter(layers.values())), x, dtype) for x in shared)
        A.trainable = B.trainable = False
        for name, base in layers.items():
            yield name, VeraAdapter(config, base, A, B, *(parameter_like(base, x, dtype) for x in vectors[name]))

    def check_mixable(self, name: str, config: VeraConfig) -> None:
        """Do nothing, because rows of VeRA and of other adapters can share a batch."""

    def shapes(self, config: VeraConfig, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of d (r,) and b (out,)."""
        return {"vera_lambda_d": (config.r,), "vera_lambda_b": (out,)}

    def expected_shapes(self, config: VeraConfig, layers: Mapping[str, Linear]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of A and B, and of each layer's d and b."""
        return projections(config, layers) | super().expected_shapes(config, layers)

    def restore(self, host: AdapterHost, name: str, config: VeraConfig, arrays: Mapping[str, np.ndarray]) -> None:
        """Add a saved adapter. Raises ValueError if the file does not contain A and B, which PEFT can omit."""
        check_arrays(
            {},
            {key: () for key in PROJECTIONS if key not in arrays},
            host.storage_dtype,
            "; save the adapter with `save_projection=True`, so that the file contains A and B",
        )
        super().restore(host, name, config, arrays)

    def arrays(self, host: AdapterHost, name: str) -> dict[str, np.ndarray]:
        """Return a dictionary with PEFT's keys: A (r, in_max), B (out_max, r), and each layer's d (r,) and b (out,)."""
        found = super().arrays(host, name)
        shared = next(iter(self.layers(host, name).values())).adapters[name]
        assert isinstance(shared, VeraAdapter)
        own = {key: x for key, x in found.items() if not key.endswith(("vera_A", "vera_B"))}
        return dict(zip(PROJECTIONS, (to_host(shared.vera_A.value), to_host(shared.vera_B.value)), strict=True)) | own

    def cost(self, config: VeraConfig, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Return the cost of one layer's adapter."""
        return VeraCost(trained, half_precision, int(config.r), config.vera_dropout > 0)


def projections(config: VeraConfig, layers: Mapping[str, Linear]) -> dict[str, tuple[int, int]]:
    """Return the shapes of A (r, in_max) and B (out_max, r) by key.

    The sizes in_max and out_max can come from different layers.
    """
    out_max, in_max = (max(getattr(base, side) for base in layers.values()) for side in ("out_features", "in_features"))
    return dict(zip(PROJECTIONS, [(config.r, in_max), (out_max, config.r)], strict=True))
