"""PeftModel's calls that merge: adapters into the weights and out again, or several into a new one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from ..nn import Module
from ..transformer import Transformer
from .lora.combination import Combination, MergeReport, combine_adapters
from .lora.config import LoraConfig
from .lora.layer import LoraLinear
from .lora.method import LoraMethod
from .merging import check_finite, weight_wrappers
from .placement import lora_layers, unwrap, wrapped_by
from .registry import method_of
from .wrapper import WeightWrapper


class MergeCalls(Module):
    """The part of PeftModel that changes weights; what it stands on, the adapters and which is active, is in model.py."""

    model: Transformer
    peft_config: dict[str, Any]
    active_adapter: str | None
    disabled: bool
    adapter_dtype: Any

    def lora_layers(self) -> list[LoraLinear]:
        """Every wrapped layer, in forward order."""
        return list(lora_layers(self.model).values())

    @property
    def merged_adapters(self) -> tuple[str, ...]:
        """The adapters whose ΔW is added into the base's weights."""
        return next((layer.merged for layer in self._weight_wrappers()), ())

    @property
    def mergeable(self) -> bool:
        """Whether the active adapter is a change of weights, which `merge_adapter` can add into them."""
        return self.active_adapter is not None and method_of(self.peft_config[self.active_adapter]).mergeable

    @property
    def merged(self) -> bool:
        """Whether any adapter is merged."""
        return bool(self.merged_adapters)

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """W ← W + Σ ΔW over these adapters, by default the active one: now a forward costs what the base costs.

        Until `unmerge_adapter` a call with one of them answers with all, and a call with another is refused. What is merged
        already stays so. With DoRA among them each weight is kept as it was, until then: as much memory again.
        Raises ValueError for a name that is not there or of a method that changes no weights or, with `safe_merge`, a sum that
        is not finite, before anything has changed; RuntimeError while others are merged, all are disabled or none is active,
        or where the base is quantised.
        """
        if self.disabled:
            raise RuntimeError("the adapter is disabled: leave `disable_adapter` before merging it")
        if adapter_names is None:
            adapter_names = self.merged_adapters or [name for name in [self.active_adapter] if name]
        names = _each_once(adapter_names)
        if not names:
            raise RuntimeError("no adapter is active: choose the one to merge with set_adapter")
        for name in names:
            self._check_mergeable(name)
        layers = self._weight_wrappers()
        for layer in layers:
            layer.check_mergeable()
        if safe_merge and not self.merged:
            check_finite(self.model, names)
        for layer in reversed(layers):  # from the inside outwards
            layer.merge(*names)

    def unmerge_adapter(self) -> None:
        """W ← W − Σ ΔW: back to base and bypass, up to rounding (about 1e-7 of W in float32); after DoRA to the bit."""
        for layer in self._weight_wrappers():
            layer.unmerge()

    def merge_and_unload(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> Transformer:
        """Merge for good and take all adapters out: a plain Transformer of the base's shape. This PeftModel then has none.

        The arguments and errors are those of `merge_adapter`.
        """
        self.merge_adapter(adapter_names, safe_merge)
        for name, config in self.peft_config.items():
            if not method_of(config).mergeable:
                method_of(config).delete(self, name)
        while layers := wrapped_by(self.model, WeightWrapper):
            unwrap(self.model, layers, WeightWrapper)
        self.peft_config.clear()
        self.active_adapter = None
        return self.model

    def add_weighted_adapter(
        self,
        adapters: Sequence[str],
        weights: Sequence[float],
        adapter_name: str,
        combination_type: str = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
        seed: int = 0,
    ) -> MergeReport:
        """Make a new adapter of several, as near to ΔW = Σ wᵢΔWᵢ as the type comes; the report says how near.

        The types and their options are in `Combination`, whose defaults these are. The new adapter has s = 1 and is frozen
        until `set_adapter` chooses it; those it was made of stay.

        Raises ValueError for a name that is not there, taken or impossible, weights that are not one finite number an
        adapter, an option that is out of range or means nothing to this type, ranks that differ and may not; RuntimeError
        while merged or disabled. Nothing has changed then.
        """
        self._check_new(adapter_name)
        if isinstance(adapters, str) or not len(adapters) or len(adapters) != len(weights):
            raise ValueError(f"adapters {adapters!r}, weights {weights!r}; expected lists of one length, at least 1")
        for name, weight in zip(adapters, weights, strict=True):
            self._check_mergeable(name)
            config = self.peft_config[name]
            if not isinstance(config, LoraConfig):
                raise ValueError(f"{name!r} has a {type(config).__name__}; LoRA's adapters alone are combined")
            if config.use_dora:
                raise ValueError(f"{name!r} is DoRA: its ΔW has the rows of W in it, and is no product of two factors")
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} is {weight}; expected a finite number")
        how = Combination(combination_type, svd_rank, svd_clamp, density, majority_sign_method, seed)
        pairs = [(name, float(weight)) for name, weight in zip(adapters, weights, strict=True)]
        config, factors, report = combine_adapters(self.model, self.peft_config, pairs, how, self.adapter_dtype)
        LoraMethod().put_factors(self, adapter_name, config, factors)
        self._put(adapter_name, config)
        return report

    def _weight_wrappers(self) -> list[WeightWrapper]:
        """All that can be merged, of each weight the outermost first."""
        return [layer for layers in weight_wrappers(self.model).values() for layer in layers]

    def _check_mergeable(self, adapter_name: str) -> None:
        self._check_name(adapter_name)
        config = self.peft_config[adapter_name]
        if not method_of(config).mergeable:
            raise ValueError(
                f"{adapter_name!r} has a {type(config).__name__}: it is no change of weights, and cannot be merged"
            )


def _each_once(names: Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(dict.fromkeys(names))
