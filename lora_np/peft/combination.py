"""Several adapters of one layer made one: the combination types of PEFT's `add_weighted_adapter`.

(B M)(M⁻¹A) equals B A for every invertible M, so one ΔW has many pairs of factors. A type that combines the A's and the B's
separately depends on which pair each adapter stores. With cᵢ = wᵢsᵢ and the target Σ cᵢBᵢAᵢ:

    cat                     B = [B₁ … Bₙ], A = [c₁A₁; …; cₙAₙ]          the target itself, of rank Σ rᵢ
    svd                     B A = the best rank r of the target         off by its discarded singular values
    linear                  B = Σ √|cᵢ| Bᵢ, A = Σ ±√|cᵢ| Aᵢ             off by the cross terms BᵢAⱼ
    magnitude_prune         as linear, of the largest numbers of each factor
    dare_linear             as linear, of random numbers of each factor, scaled up (Yu et al. 2023, arXiv 2311.03099)
    ties, dare_ties         pruned so, then only where signs agree (Yadav et al. 2023, arXiv 2306.01708)
    …_svd                   the same on the ΔWᵢ instead of the factors, then the best rank r

Source: PEFT, `add_weighted_adapter` in peft/tuners/lora/model.py, and peft/utils/merge_utils.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from ..backend import to_host
from ..nn import Module
from .files import portable_targets
from .lora.config import LoraConfig
from .lora.layer import LoraAdapter
from .placement import adapted_layers

PRUNED = ("ties", "dare_ties", "dare_linear", "magnitude_prune")
COMBINATION_TYPES = ("cat", "svd", "linear", *PRUNED, *(f"{name}_svd" for name in PRUNED))


@dataclass(frozen=True)
class Combination:
    """How adapters become one, with PEFT's names.

    combination_type: one of COMBINATION_TYPES. svd_rank: the rank of the new adapter, for the types with an svd; by default
    the largest rank of the given adapters. svd_clamp: the numbers of U Σ and Vᵀ are clipped to ± this quantile, computed
    over each number and its negative. density: the share of
    numbers that ties, dare and magnitude_prune keep. majority_sign_method: the sign of the "total" of the numbers wins, or
    the one of higher "frequency". seed: draws what dare keeps.

    Raises ValueError for a value out of range, or for an option that this combination type does not use.
    """

    combination_type: str = "svd"
    svd_rank: int | None = None
    svd_clamp: float | None = None
    density: float | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    seed: int = 0

    def __post_init__(self) -> None:
        kind = self.combination_type
        if kind not in COMBINATION_TYPES:
            raise ValueError(f"combination_type = {kind!r}; expected one of {', '.join(COMBINATION_TYPES)}")
        if kind.removesuffix("_svd") in PRUNED and (self.density is None or not 0 < self.density <= 1):
            raise ValueError(f"density = {self.density}; {kind} needs 0 < density ≤ 1, the share of numbers to keep")
        if self.svd_rank is not None and (int(self.svd_rank) != self.svd_rank or self.svd_rank < 1):
            raise ValueError(f"svd_rank = {self.svd_rank}; expected a whole number of at least 1")
        if self.svd_clamp is not None and not 0.5 < self.svd_clamp <= 1:
            raise ValueError(f"svd_clamp = {self.svd_clamp}; expected 0.5 < svd_clamp ≤ 1")
        if self.majority_sign_method not in ("total", "frequency"):
            raise ValueError(f"majority_sign_method = {self.majority_sign_method!r}; expected 'total' or 'frequency'")
        useless = [] if kind.endswith("svd") else ["svd_rank", "svd_clamp"]
        useless += [] if kind.removesuffix("_svd") in PRUNED else ["density"]
        for name in useless:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} = {getattr(self, name)} means nothing to combination_type={kind!r}")


class WeightedFactors(NamedTuple):
    """What one adapter brings to one layer: its weight, its s, A (r, in) and B (out, r) in float64."""

    weight: float
    scaling: float
    A: np.ndarray
    B: np.ndarray


def combine(
    parts: Sequence[WeightedFactors], how: Combination, r: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) of one layer, with s = 1. `r` is the rank of the types with an svd; where fewer directions exist, all of them.

    Raises ValueError where ranks differ and the type adds factors up.
    """
    kind = how.combination_type.removesuffix("_svd")
    if kind == "cat":
        return concatenate_factors(parts)
    if kind == "svd":
        return truncate(*svd_of_product(*concatenate_factors(parts)), r, how.svd_clamp)
    if how.combination_type.endswith("_svd"):
        deltas = [part.scaling * (part.B @ part.A) for part in parts]
        mixed = weighted_sum(deltas, [part.weight for part in parts], how, rng)
        return truncate(*np.linalg.svd(mixed, full_matrices=False), r, how.svd_clamp)
    if len({part.A.shape[0] for part in parts}) > 1:
        raise ValueError(
            f"{kind} adds factors up, and these have the ranks {[part.A.shape[0] for part in parts]}; "
            "cat and the types with an svd take any"
        )
    c = [part.weight * part.scaling for part in parts]
    A = weighted_sum([part.A for part in parts], [math.copysign(math.sqrt(abs(x)), x) for x in c], how, rng)
    B = weighted_sum([part.B for part in parts], [math.sqrt(abs(x)) for x in c], how, rng)
    return A, B


def concatenate_factors(parts: Sequence[WeightedFactors]) -> tuple[np.ndarray, np.ndarray]:
    """A (Σr, in) = [c₁A₁; …] and B (out, Σr) = [B₁ …]: B A is the target Σ cᵢBᵢAᵢ, exactly."""
    A = np.concatenate([part.weight * part.scaling * part.A for part in parts])
    return A, np.concatenate([part.B for part in parts], axis=1)


def weighted_sum(
    tensors: Sequence[np.ndarray], weights: Sequence[float], how: Combination, rng: np.random.Generator
) -> np.ndarray:
    """Σ wᵢxᵢ of what pruning leaves; with ties, at each place the mean over those whose sign won there.

    A negative weight turns its tensor over before the signs are counted: −1 of x and 1 of −x are the same request. As in
    PEFT the size of a weight does not vote.
    """
    w = np.reshape(weights, (-1, *[1] * tensors[0].ndim))
    x = np.stack([prune(tensor, how, rng) for tensor in tensors]) * np.where(w < 0, -1, 1)
    if "ties" not in how.combination_type:
        return (np.abs(w) * x).sum(axis=0)
    votes = x if how.majority_sign_method == "total" else np.sign(x)
    agree = np.sign(x) == np.where(votes.sum(axis=0) >= 0, 1, -1)
    return (np.abs(w) * x * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def prune(x: np.ndarray, how: Combination, rng: np.random.Generator) -> np.ndarray:
    """The share `density` of x's numbers, the others 0: random ones with dare, over density, else the largest."""
    if how.density is None:
        return x
    if "dare" in how.combination_type:
        return x * (rng.random(x.shape) < how.density) / how.density
    kept = np.argsort(-np.abs(x), axis=None, kind="stable")[: int(how.density * x.size)]
    pruned = np.zeros_like(x)
    pruned.flat[kept] = x.flat[kept]
    return pruned


def svd_of_product(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U, σ, Vᵀ of B A without its (out, in) numbers: B = Q_B R_B and Aᵀ = Q_A R_A leave a small R_B R_Aᵀ to decompose."""
    Q_B, R_B = np.linalg.qr(B)
    Q_A, R_A = np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, s, Vt @ Q_A.T


def truncate(
    U: np.ndarray, s: np.ndarray, Vt: np.ndarray, r: int, clamp: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """A = Vᵀ and B = U Σ, of the r largest σ. Off by √(σ²_{r+1} + …), the least possible (Eckart and Young 1936)."""
    A, B = Vt[:r], U[:, :r] * s[:r]
    if clamp is None:
        return A, B
    numbers = np.concatenate([A.ravel(), B.ravel()])
    # With both signs of each number: an SVD chooses the signs of its vectors freely.
    bound = np.quantile(np.concatenate([numbers, -numbers]), clamp)
    return A.clip(-bound, bound), B.clip(-bound, bound)


def product_norm(A: np.ndarray, B: np.ndarray) -> float:
    """‖B A‖ in the Frobenius norm: that of R_B R_Aᵀ, as in `svd_of_product`."""
    R_A: Any = np.linalg.qr(A.T, mode="r")  # R alone, which NumPy's types take for Q and R
    return float(np.linalg.norm(np.linalg.qr(B, mode="r") @ R_A.T))


@dataclass(frozen=True)
class MergeReport:
    """How far a new adapter is from what was asked for: ‖ΔW − Σ wᵢΔWᵢ‖ / ‖Σ wᵢΔWᵢ‖ in the Frobenius norm.

    errors: layer → its own error. error: that of all layers together. ranks: layer → rank.
    """

    combination_type: str
    errors: dict[str, float]
    error: float
    ranks: dict[str, int]

    def __str__(self) -> str:
        worst = max(self.errors, key=lambda name: self.errors[name])
        ranks = " to ".join(str(r) for r in sorted({min(self.ranks.values()), max(self.ranks.values())}))
        return (
            f"{self.combination_type}: {len(self.errors)} layers of rank {ranks}, ΔW off by {self.error:.2g} of "
            f"‖Σ wᵢΔWᵢ‖ (at worst {self.errors[worst]:.2g}, in {worst})"
        )


def check_combinable(name: str, config: Any) -> None:
    """Raise ValueError for an adapter whose ΔW is not s·B A."""
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{name!r} has a {type(config).__name__}; LoRA's adapters alone are combined")
    if config.use_dora:
        raise ValueError(
            f"{name!r} is DoRA: its ΔW depends on W and is no product of two factors; combine plain LoRA adapters"
        )


def combine_adapters(
    model: Module,
    configs: Mapping[str, LoraConfig],
    weights: Sequence[tuple[str, float]],
    how: Combination,
    dtype: np.dtype | None = None,
) -> tuple[LoraConfig, dict[str, LoraAdapter], MergeReport]:
    """The configuration, the adapter of each layer and the report of Σ w·ΔW, in each layer over the adapters that it has.

    Computed on the host in float64, stored in the base's dtype or in `dtype`. Raises ValueError naming the layer where ranks
    differ and may not. `model` stays as it is.
    """
    wrapped, layers, factors = adapted_layers(model), {}, {}
    for name, layer in wrapped.items():
        here = [(w, one) for adapter, w in weights if isinstance(one := layer.adapters.get(adapter), LoraAdapter)]
        if here:
            layers[name] = [
                WeightedFactors(w, one.config.scaling, *(to_host(p.value).astype(float) for p in one.learned))
                for w, one in here
            ]
    rng = np.random.default_rng(how.seed)
    r = how.svd_rank or max(part.A.shape[0] for parts in layers.values() for part in parts)
    for name, parts in layers.items():
        stored = dtype or wrapped[name].base_layer.weight.value.dtype
        try:
            A, B = combine(parts, how, r, rng)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        factors[name] = A.astype(stored), B.astype(stored)
    config = combined_config(
        model, [configs[name] for name, _ in weights], {name: len(A) for name, (A, _) in factors.items()}
    )
    adapters = {
        name: LoraAdapter.build(config.for_layer(name), wrapped[name].base_layer, pair, dtype)
        for name, pair in factors.items()
    }
    return config, adapters, measure_errors(layers, factors, how)


def combined_config(model: Module, sources: Sequence[LoraConfig], ranks: Mapping[str, int]) -> LoraConfig:
    """α = r in each layer, so s = 1: not rsLoRA, whatever the sources were, for there s would be √r."""
    targets = [portable_targets(config.target_modules, model) for config in sources]
    if all(isinstance(entries, list) for entries in targets):
        union = list(dict.fromkeys(entry for entries in targets for entry in entries))
    else:
        union = list(ranks)  # an expression has no list to be joined to
    r = max(ranks.values())
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != r}
    base = sources[0].base_model_name_or_path
    return LoraConfig(
        r=r,
        lora_alpha=r,
        target_modules=union,
        lora_dropout=sources[0].lora_dropout,
        rank_pattern=others,
        alpha_pattern=others,
        base_model_name_or_path=base,
    )


def measure_errors(
    layers: Mapping[str, Sequence[WeightedFactors]],
    factors: Mapping[str, tuple[np.ndarray, np.ndarray]],
    how: Combination,
) -> MergeReport:
    """The report on `factors` as they are stored, rounding included."""
    off, wanted = {}, {}
    for name, parts in layers.items():
        A, B = (x.astype(float) for x in factors[name])
        wanted[name] = product_norm(*concatenate_factors(parts))
        off[name] = product_norm(*concatenate_factors([*parts, WeightedFactors(-1.0, 1.0, A, B)]))
    return MergeReport(
        how.combination_type,
        {name: _ratio(off[name], wanted[name]) for name in layers},
        _ratio(math.hypot(*off.values()), math.hypot(*wanted.values())),
        {name: A.shape[0] for name, (A, _) in factors.items()},
    )


def _ratio(error: float, size: float) -> float:
    """error / size, where nothing was asked for 0 if nothing came."""
    return error / size if size else math.inf if error else 0.0
