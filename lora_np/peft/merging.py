"""MergeableModel: merges adapters into the weights, W ← W + Σ ΔW, reverses a merge, and combines several adapters into one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal, Self

import numpy as np
from numpy.typing import DTypeLike

from ..backend import array_module
from ..nn import Module
from ..transformer import Transformer
from .adapted_linear import AdaptedLinear
from .combination import Combination, MergeReport, check_combinable, combine_adapters
from .lora.config import LoraConfig
from .lora.layer import LoraAdapter
from .lora.method import LoraMethod
from .management import AdapterManager, unique
from .placement import adapted_layers, remove
from .registry import method_of


class MergeableModel(AdapterManager):
    """An AdapterManager that can merge its adapters into the weights and combine several adapters into one."""

    def lora_layers(self) -> list[AdaptedLinear]:
        """Return the layers that have a LoRA adapter.

        Returns
        -------
        list of AdaptedLinear
            In forward order.
        """
        layers = adapted_layers(self.model).values()
        return [layer for layer in layers if any(isinstance(a, LoraAdapter) for a in layer.adapters.values())]

    @property
    def mergeable(self) -> bool:
        """True if `merge_adapter` can merge the active adapter.

        This requires that the adapter can be written as changes ΔW of weights.
        """
        return self.active_adapter is not None and method_of(self.peft_config[self.active_adapter]).mergeable

    def merge_adapter(self, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
        """Merge adapters into the weights: W ← W + Σ ΔW.

        After the merge, a forward pass costs as much as a forward pass of the base model.

        Until `unmerge_adapter` is called, a call with a merged adapter uses the sum of all merged adapters. A call with
        another adapter raises RuntimeError. A second merge of the same adapters has no effect. If ΔW depends on W
        (DoRA, IA³), each weight is copied before the merge, so the weight needs twice the memory.

        Parameters
        ----------
        adapter_names : sequence of str, optional
            Names of the adapters to merge. Default: the active adapter.
        safe_merge : bool
            True: before the merge, check that all merged weights will be finite.

        Raises
        ------
        ValueError
            If an adapter does not exist, or if an adapter cannot be written as changes ΔW of weights. With
            `safe_merge`, also if a merged weight would not be finite.
        RuntimeError
            If other adapters are already merged, if the adapters are disabled, if no adapter is active, or if the base
            is quantised. After any of these errors, the weights are unchanged.
        """
        if self.disabled:
            raise RuntimeError("the adapters are disabled; leave the block `with disable_adapter()` first")
        if adapter_names is None:
            adapter_names = self.merged_adapters or self.active_adapters
        names = unique(adapter_names)
        if not names:
            raise RuntimeError("no adapter is active; call set_adapter first, or give adapter_names")
        for name in names:
            self._check_mergeable(name)
        merge(self.model, names, safe=safe_merge and not self.merged)

    def unmerge_adapter(self) -> None:
        """Reverse a merge: W ← W − Σ ΔW.

        After merging LoRA or VeRA, W is restored up to rounding errors (about 1e-7 in float32). After merging DoRA or
        IA³, W is restored exactly, from a copy.
        """
        for layer in adapted_layers(self.model).values():
            layer.unmerge()

    def astype(self, dtype: DTypeLike) -> Self:
        """Convert every parameter to a dtype in place, and set all gradients to None.

        Parameters
        ----------
        dtype : DTypeLike
            The dtype, as in `Transformer.astype`.

        Returns
        -------
        PeftModel
            This model.

        Raises
        ------
        RuntimeError
            If an adapter is merged. The conversion would round W + ΔW, and `unmerge_adapter` could then not restore W.
        """
        if self.merged:
            raise RuntimeError("an adapter is merged into the weights; call unmerge_adapter() before astype()")
        return super().astype(dtype)

    def merge_and_unload(self, safe_merge: bool = False, adapter_names: Sequence[str] | None = None) -> Transformer:
        """Merge adapters and remove all adapters from the model. Afterwards, this PeftModel has no adapters.

        Parameters
        ----------
        safe_merge : bool
            As in `merge_adapter`.
        adapter_names : sequence of str, optional
            As in `merge_adapter`.

        Returns
        -------
        Transformer
            The base model with merged weights.

        Raises
        ------
        ValueError, RuntimeError
            As in `merge_adapter`.
        """
        self.merge_adapter(adapter_names, safe_merge)
        return self._remove_adapters()

    def unload(self) -> Transformer:
        """Remove all adapters without merging them. Afterwards, this PeftModel has no adapters.

        Returns
        -------
        Transformer
            The base model.

        Raises
        ------
        RuntimeError
            If the adapters are disabled, or if the base changed after PiSSA initialisation, for example because the base
            was quantised.
        """
        self.unmerge_adapter()
        self._check_idle()
        for name, config in self.peft_config.items():
            method_of(config).delete(self, name)
        return self._remove_adapters()

    def _remove_adapters(self) -> Transformer:
        remove(self.model)
        self.prompt_encoder.clear()
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
        """Combine LoRA adapters into a new adapter whose ΔW approximates Σ wᵢΔWᵢ.

        The new adapter has scaling 1 and is frozen until `set_adapter` selects it. The source adapters are not changed.

        Parameters
        ----------
        adapters : sequence of str
            Names of the source adapters.
        weights : sequence of float
            One finite weight wᵢ per adapter.
        adapter_name : str
            Name of the new adapter.
        combination_type : str
            One of `COMBINATION_TYPES`; see combination.py for the formulas.
        svd_rank : int, optional
            For combination types with an SVD: rank of the new adapter. Default: the largest rank of the source
            adapters.
        svd_clamp : float, optional
            For combination types with an SVD: quantile at which the factors of the SVD are clipped.
        density : float, optional
            For ties, dare and magnitude_prune types: fraction of the elements that are kept.
        majority_sign_method : {"total", "frequency"}
            For ties types: rule for the sign of each element. "total" chooses the sign of the sum, and "frequency"
            chooses the more frequent sign.
        seed : int
            For dare types: seed of the random choice of the kept elements.

        Returns
        -------
        MergeReport
            The relative errors of the new adapter's ΔW.

        Raises
        ------
        ValueError
            If a source adapter does not exist, if the new name is already used or invalid, or if a weight is not
            finite. Also if an option is out of range, if an option does not apply to the combination type, or if the
            ranks differ and the type needs equal ranks.
        RuntimeError
            If an adapter is merged, or if the adapters are disabled. After any of these errors, the model is unchanged.
        """
        self._check_new(adapter_name)
        if isinstance(adapters, str) or not len(adapters) or len(adapters) != len(weights):
            raise ValueError(
                f"adapters {adapters!r}, weights {weights!r}; expected two lists of equal length, with at least 1 entry"
            )
        for name, weight in zip(adapters, weights, strict=True):
            self._check_mergeable(name)
            check_combinable(name, self.peft_config[name])
            if not math.isfinite(weight):
                raise ValueError(f"the weight of {name!r} is {weight}; expected a finite number")
        how = Combination(combination_type, svd_rank, svd_clamp, density, majority_sign_method, seed)
        pairs = [(name, float(weight)) for name, weight in zip(adapters, weights, strict=True)]
        configs = {name: config for name, config in self.peft_config.items() if isinstance(config, LoraConfig)}
        config, made, report = combine_adapters(self.model, configs, pairs, how, self.adapter_dtype)
        LoraMethod().insert(self, adapter_name, made.items())
        self._register(adapter_name, config)
        return report

    def _check_mergeable(self, adapter_name: str) -> None:
        self._check_name(adapter_name)
        config = self.peft_config[adapter_name]
        if not method_of(config).mergeable:
            raise ValueError(
                f"{adapter_name!r} has a {type(config).__name__}; this method does not change weights and cannot be merged"
            )


def merge(model: Module, names: Iterable[str], safe: bool = False) -> None:
    """Merge the adapters `names` in every layer.

    Raises RuntimeError if the base is quantised. With `safe=True`, raises ValueError if a merged weight would not be
    finite. After an error, the weights are unchanged.
    """
    names, every = tuple(names), adapted_layers(model)
    layers = {name: layer for name, layer in every.items() if any(a.mergeable for a in layer.adapters.values())}
    for layer in layers.values():
        layer.check_mergeable()
    for name, layer in layers.items() if safe else ():
        check_finite(name, layer, names)
    for layer in layers.values():
        layer.merge(*names)


def check_finite(name: str, layer: AdaptedLinear, adapter_names: tuple[str, ...]) -> None:
    """Raise ValueError if merging these adapters would give the layer a weight that is infinite or NaN."""
    W = layer.base_layer.weight.value
    with np.errstate(over="ignore", invalid="ignore"):
        delta = layer.total_delta(adapter_names)
        finite = array_module(W).isfinite(W if delta is None else W + delta).all()
    if not finite:
        raise ValueError(f"{name}: the weight merged with {', '.join(adapter_names)} is not finite; nothing was merged")
