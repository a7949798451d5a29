"""Combines several LoRA adapters into one: the combination types of PEFT's `add_weighted_adapter`.

(B M)(M⁻¹A) equals B A for every invertible M, so one ΔW has many pairs of factors. Some combination types combine the
matrices Aᵢ and the matrices Bᵢ separately. Their result therefore depends on the pair that each adapter stores. The
target of all types is Σ cᵢBᵢAᵢ, where cᵢ = wᵢsᵢ is the weight times the scaling of adapter i:

    cat                     B = [B₁ … Bₙ], A = [c₁A₁; …; cₙAₙ]          exactly the target, of rank Σ rᵢ
    svd                     B A = best approximation of rank r          error: the discarded singular values
    linear                  B = Σ √|cᵢ| Bᵢ, A = Σ ±√|cᵢ| Aᵢ             error: the cross terms BᵢAⱼ
    magnitude_prune         linear, with the largest elements of each factor
    dare_linear             linear, with random elements of each factor, rescaled (Yu et al. 2023, arXiv 2311.03099)
    ties, dare_ties         pruned like these two, then averaged over equal signs (Yadav et al. 2023, arXiv 2306.01708)
    …_svd                   the same with the ΔWᵢ instead of the factors, then the best approximation of rank r

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
from ..nn.targets import is_target
from .files import portable_targets
from .lora.config import LoraConfig
from .lora.layer import LoraAdapter
from .placement import adaptable_layers, adapted_layers

PRUNED = ("ties", "dare_ties", "dare_linear", "magnitude_prune")
COMBINATION_TYPES = ("cat", "svd", "linear", *PRUNED, *(f"{name}_svd" for name in PRUNED))


@dataclass(frozen=True)
class Combination:
    """The options of `add_weighted_adapter`, with PEFT's names.

    `combination_type`: one of COMBINATION_TYPES.
    `svd_rank`: rank of the new adapter, for types with an SVD. Default: the largest rank of the source adapters.
    `svd_clamp`: elements of U Σ and Vᵀ are clipped to [−q, q]; q is the quantile `svd_clamp` of the elements and their
    negatives.
    `density`: for ties, dare and magnitude_prune types, the fraction of the elements that are kept.
    `majority_sign_method`: for ties types, "total" uses the sign of the sum, and "frequency" uses the more frequent
    sign.
    `seed`: for dare types, the seed of the random choice of the kept elements.

    Raises ValueError for a value out of range, and for an option that does not apply to the combination type.
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
            raise ValueError(
                f"density = {self.density}; {kind} needs the fraction of elements to keep, 0 < density ≤ 1"
            )
        if self.svd_rank is not None and (int(self.svd_rank) != self.svd_rank or self.svd_rank < 1):
            raise ValueError(f"svd_rank = {self.svd_rank}; expected a whole number of at least 1")
        if self.svd_clamp is not None and not 0.5 < self.svd_clamp <= 1:
            raise ValueError(f"svd_clamp = {self.svd_clamp}; expected 0.5 < svd_clamp ≤ 1")
        if self.majority_sign_method not in ("total", "frequency"):
            raise ValueError(f"majority_sign_method = {self.majority_sign_method!r}; expected 'total' or 'frequency'")
        unused = [] if kind.endswith("svd") else ["svd_rank", "svd_clamp"]
        unused += [] if kind.removesuffix("_svd") in PRUNED else ["density"]
        for name in unused:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no effect with combination_type={kind!r}; leave it out"
                )


class WeightedFactors(NamedTuple):
    """A source adapter in one layer: its weight, its scaling s, and the float64 arrays A (r, in) and B (out, r)."""

    weight: float
    scaling: float
    A: np.ndarray
    B: np.ndarray


def combine(
    parts: Sequence[WeightedFactors], how: Combination, r: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors A and B of the combined adapter in one layer, for the scaling s = 1.

    For combination types with an SVD, the new rank is `r`, or the number of singular values if that number is smaller.

    Raises ValueError if the combination type adds factors and the ranks of the factors differ.
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
            f"combination_type={kind!r} needs adapters of equal rank, got ranks {[part.A.shape[0] for part in parts]}; "
            "use 'cat', 'svd' or a '…_svd' type"
        )
    c = [part.weight * part.scaling for part in parts]
    A = weighted_sum([part.A for part in parts], [math.copysign(math.sqrt(abs(x)), x) for x in c], how, rng)
    B = weighted_sum([part.B for part in parts], [math.sqrt(abs(x)) for x in c], how, rng)
    return A, B


def concatenate_factors(parts: Sequence[WeightedFactors]) -> tuple[np.ndarray, np.ndarray]:
    """Return A (Σr, in) = [c₁A₁; …] and B (out, Σr) = [B₁ …].

    The product B A equals the target Σ cᵢBᵢAᵢ exactly.
    """
    A = np.concatenate([part.weight * part.scaling * part.A for part in parts])
    return A, np.concatenate([part.B for part in parts], axis=1)


def weighted_sum(
    tensors: Sequence[np.ndarray], weights: Sequence[float], how: Combination, rng: np.random.Generator
) -> np.ndarray:
    """Return the weighted sum Σ wᵢxᵢ of the pruned tensors xᵢ.

    The ties types choose one sign for each element, and average over the tensors in which the element has this sign.

    A tensor with a negative weight is negated before signs are compared, so x with weight −1 and −x with weight 1 give
    the same result. As in PEFT, the absolute value of a weight does not influence which sign is chosen.
    """
    w = np.reshape(weights, (-1, *[1] * tensors[0].ndim))
    x = np.stack([prune(tensor, how, rng) for tensor in tensors]) * np.where(w < 0, -1, 1)
    if "ties" not in how.combination_type:
        return (np.abs(w) * x).sum(axis=0)
    votes = x if how.majority_sign_method == "total" else np.sign(x)
    agree = np.sign(x) == np.where(votes.sum(axis=0) >= 0, 1, -1)
    return (np.abs(w) * x * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def prune(x: np.ndarray, how: Combination, rng: np.random.Generator) -> np.ndarray:
    """Keep the fraction `density` of the elements of x, and set the other elements to 0.

    The dare types keep random elements and divide these elements by `density`. Other types keep the elements with the
    largest absolute values.
    """
    if how.density is None:
        return x
    if "dare" in how.combination_type:
        return x * (rng.random(x.shape) < how.density) / how.density
    kept = np.argsort(-np.abs(x), axis=None, kind="stable")[: int(how.density * x.size)]
    pruned = np.zeros_like(x)
    pruned.flat[kept] = x.flat[kept]
    return pruned


def svd_of_product(A: np.ndarray, B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the factors U, σ and Vᵀ of the SVD of B A.

    Because B = Q_B R_B and Aᵀ = Q_A R_A (QR decompositions), only the SVD of the small matrix R_B R_Aᵀ is computed.
    """
    Q_B, R_B = np.linalg.qr(B)
    Q_A, R_A = np.linalg.qr(A.T)
    U, s, Vt = np.linalg.svd(R_B @ R_A.T, full_matrices=False)
    return Q_B @ U, s, Vt @ Q_A.T


def truncate(
    U: np.ndarray, s: np.ndarray, Vt: np.ndarray, r: int, clamp: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return A = Vᵀ and B = U Σ for the r largest singular values σ.

    Without `clamp`, the error √(σ²_{r+1} + …) is the smallest possible error at rank r (Eckart and Young 1936).
    """
    A, B = Vt[:r], U[:, :r] * s[:r]
    if clamp is None:
        return A, B
    numbers = np.concatenate([A.ravel(), B.ravel()])
    # Both signs of each element, because the signs of singular vectors are arbitrary.
    bound = np.quantile(np.concatenate([numbers, -numbers]), clamp)
    return A.clip(-bound, bound), B.clip(-bound, bound)


def product_norm(A: np.ndarray, B: np.ndarray) -> float:
    """Return the Frobenius norm of B A.

    The norm is computed from the small matrix R_B R_Aᵀ of `svd_of_product`, which has the same norm as B A.
    """
    R_A: Any = np.linalg.qr(A.T, mode="r")  # Any: NumPy's type stubs expect Q and R
    return float(np.linalg.norm(np.linalg.qr(B, mode="r") @ R_A.T))


@dataclass(frozen=True)
class MergeReport:
    """The relative error of a combined adapter: ‖ΔW − Σ wᵢΔWᵢ‖ / ‖Σ wᵢΔWᵢ‖, in the Frobenius norm.

    Parameters
    ----------
    combination_type : str
        The combination type, one of `COMBINATION_TYPES`.
    errors : dict of str to float
        Relative error in each layer, by layer name.
    error : float
        Relative error of all layers together.
    ranks : dict of str to int
        Rank of the combined adapter in each layer, by layer name.

    Examples
    --------
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2, init_lora_weights=False))
    >>> peft_model.add_adapter("other", ln.LoraConfig(r=3, init_lora_weights=False), seed=1)
    >>> report = peft_model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "both", combination_type="cat")
    >>> report.error < 1e-6, set(report.ranks.values())
    (True, {5})
    """

    combination_type: str
    errors: dict[str, float]
    error: float
    ranks: dict[str, int]

    def __str__(self) -> str:
        worst = max(self.errors, key=lambda name: self.errors[name])
        ranks = " to ".join(str(r) for r in sorted({min(self.ranks.values()), max(self.ranks.values())}))
        return (
            f"{self.combination_type}: {len(self.errors)} layers of rank {ranks}, relative error of ΔW "
            f"{self.error:.2g} (largest: {self.errors[worst]:.2g} in {worst})"
        )


def check_combinable(name: str, config: Any) -> None:
    """Raise ValueError if the adapter is not plain LoRA, with ΔW = s·B A in each of its layers."""
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{name!r} has a {type(config).__name__}; only LoRA adapters can be combined")
    if config.modules_to_save:
        raise ValueError(
            f"{name!r} has its own {', '.join(config.modules_to_save)}, which is not a product of two factors; combine adapters "
            "without modules_to_save"
        )
    if config.use_dora:
        raise ValueError(
            f"{name!r} is DoRA: its ΔW depends on W and is not a product of two factors; combine plain LoRA adapters"
        )


def combine_adapters(
    model: Module,
    configs: Mapping[str, LoraConfig],
    weights: Sequence[tuple[str, float]],
    how: Combination,
    dtype: np.dtype | None = None,
) -> tuple[LoraConfig, dict[str, LoraAdapter], MergeReport]:
    """Return the new configuration, a dictionary of the new adapters by layer name, and the report on errors.

    In each layer, only the adapters that exist in this layer are combined. The computation uses float64 in host memory.
    The new adapter is stored in `dtype`, by default the dtype of the base. Raises ValueError with the layer's name if
    the type needs equal ranks and the ranks in this layer differ. `model` is not changed.
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
    """Return the configuration of the combined adapter, with α = r in each layer and therefore s = 1.

    The new configuration never uses rsLoRA, because rsLoRA would give s = √r.
    """
    targets = [portable_targets(config.target_modules, model) for config in sources]
    union = list(ranks)
    if all(isinstance(entries, list) for entries in targets):  # a regular expression cannot be joined with a list
        joined = list(dict.fromkeys(entry for entries in targets for entry in entries))
        if {name for name in adaptable_layers(model) if is_target(name, joined)} == ranks.keys():
            union = joined  # else a source leaves out some of the targeted layers
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
    """Return the report on the errors of `factors`, including the errors of rounding to the storage dtype."""
    distances, norms = {}, {}
    for name, parts in layers.items():
        A, B = (x.astype(float) for x in factors[name])
        norms[name] = product_norm(*concatenate_factors(parts))
        distances[name] = product_norm(*concatenate_factors([*parts, WeightedFactors(-1.0, 1.0, A, B)]))
    return MergeReport(
        how.combination_type,
        {name: _ratio(distances[name], norms[name]) for name in layers},
        _ratio(math.hypot(*distances.values()), math.hypot(*norms.values())),
        {name: A.shape[0] for name, (A, _) in factors.items()},
    )


def _ratio(error: float, size: float) -> float:
    """Return error / size. If both are 0, return 0. If only the size is 0, return infinity."""
    return error / size if size else math.inf if error else 0.0
