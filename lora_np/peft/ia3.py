"""IA³: one trained vector per layer rescales keys, values and the MLP's inner activations (Liu et al. 2022, arXiv 2205.05638).

    y = l ∘ (x Wᵀ),   ΔW = Λ_l W − W        l (out, 1): the layers of the attention
    y = (l ∘ x) Wᵀ,   ΔW = W Λ_l − W        l (1, in): feed-forward layers; their input is the inner activations

The vector l starts at 1, so ΔW starts at 0. Names, shapes and files are the same as in PEFT.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import numpy as np

from ..backend import Array
from ..nn import Cache, Context, Linear, Parameter
from ..nn.targets import is_target, plain_targets, select_targets
from ..transformer import Transformer
from .adapter import Adapter, dense, parameter_like, upcast
from .choices import Choice
from .config import TargetedConfig
from .cost import AdapterCost, Products, linear_products
from .method import AdapterHost, LayerMethod
from .placement import adaptable_layers

IA3Cache: TypeAlias = tuple[Cache, Array, Array | None]  # base layer, l, and the factor of l for dl


@dataclass(frozen=True, kw_only=True)
class IA3Config(TargetedConfig):
    """The configuration of IA³, with PEFT's names and meanings.

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
    target_modules : str or collection of str, default ("k_proj", "v_proj", "down_proj")
        Layers to rescale. The value has the same forms as in `LoraConfig`.
    feedforward_modules : str or collection of str, default ("down_proj",)
        Target layers whose input is rescaled. In all other target layers, the output is rescaled.
    init_ia3_weights : bool, default True
        True: l = 1, so ΔW = 0 at the start. False (for tests): l is random, from a normal distribution.
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
    >>> ln.costs.count("llama-2-7b", ln.IA3Config()).trainable
    614400
    """

    target_modules: str | Collection[str] = ("k_proj", "v_proj", "down_proj")
    feedforward_modules: str | Collection[str] = ("down_proj",)
    init_ia3_weights: bool = True
    base_model_name_or_path: str | os.PathLike[str] | None = None

    switches = ("init_ia3_weights",)

    def check(self) -> None:
        """Store `feedforward_modules` as a string or a tuple.

        PEFT's default None is replaced by the default of IA3Config.
        """
        given: Any = self.feedforward_modules
        given = IA3Config.feedforward_modules if given is None else given
        object.__setattr__(self, "feedforward_modules", plain_targets(given, "feedforward_modules"))


class IA3Adapter(Adapter):
    """The IA³ adapter of one layer: the vector l rescales the input (shape (1, in)) or the output (shape (out, 1))."""

    config: IA3Config
    mergeable = True
    depends_on_weight = True

    def __init__(self, config: IA3Config, ia3_l: Parameter) -> None:
        self.config, self.ia3_l = config, ia3_l

    @property
    def scales_input(self) -> bool:
        """True if l rescales the layer's input, False if l rescales the layer's output."""
        return bool(self.config.feedforward_modules)  # in a layer's own configuration: its name, or empty

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, IA3Cache]:
        """Compute y (…, out) for x (…, in). The cache contains the array that l multiplies, because dl needs it."""
        l = upcast(x.dtype, self.ia3_l.value).reshape(-1)
        if self.scales_input:
            y, base_cache = base.forward(x * l, context)
            return y, (base_cache, l, x if self.ia3_l.trainable else None)
        y, base_cache = base.forward(x, context)
        return y * l, (base_cache, l, y if self.ia3_l.trainable else None)

    def backward(self, dy: Array, cache: IA3Cache, base: Linear, need_dx: bool) -> Array | None:
        """Return dx (…, in) for dy (…, out), or None if dx is not needed. This method also adds dl to the gradient of l.

        In the forward pass z = l ∘ u, where u is either the input x or the output base(x) of the base layer. Therefore
        dl is the sum of dz ∘ u over all tokens, and du = l ∘ dz.
        """
        base_cache, l, u = cache
        if not self.scales_input:
            self._add_grad(dy, u)
            return base.backward(dy * l, base_cache, need_dx)
        dz = base.backward(dy, base_cache, need_dx or self.ia3_l.trainable)
        if dz is None:
            return None
        self._add_grad(dz, u)
        return dz * l if need_dx else None

    def _add_grad(self, dz: Array, u: Array | None) -> None:
        if self.ia3_l.trainable:
            dl = None if u is None else (dz * u).reshape(-1, u.shape[-1]).sum(axis=0).reshape(self.ia3_l.value.shape)
            self.ia3_l.add_grad(dl)

    def delta_weight(self, base: Linear) -> Array:
        """Return ΔW = (l − 1) ∘ W (out, in)."""
        W = dense(base.weight.value, base.weight.compute_dtype)
        return (upcast(W.dtype, self.ia3_l.value) - 1) * W


@dataclass(frozen=True)
class IA3Cost(AdapterCost):
    """The cost of l ∘ (x Wᵀ) or (l ∘ x) Wᵀ, which need no additional matrix product.

    To compute dl, the backward pass needs the array that l multiplies.
    """

    scales_input: bool = False

    name: ClassVar[str] = "IA³"

    @property
    def keeps_x(self) -> bool:
        return self.trained and self.scales_input

    def trained_sizes(self, out: int, in_: int) -> list[int]:
        """Return the size of the only trained array, l."""
        return [in_ if self.scales_input else out]

    def products(self, N: int, out: int, in_: int, need_dx: bool) -> Products:
        """Return the FLOPs of the base layer's dx if only dl needs this dx, otherwise 0.

        Only dl needs dx if l is trained, l rescales the input, and no layer below is trained.
        """
        needed = self.trained and self.scales_input and not need_dx
        return Products(0, linear_products(N, out, in_, True, False).dx * needed, 0)

    def saved_for_backward(self, N: int, out: int, in_: int) -> int:
        """Return the number of saved floats.

        If a trained l rescales the output, y = base(x) is saved. If l is stored in 16 bits, a float32 copy of l is
        saved too.
        """
        return self.trained * (not self.scales_input) * N * out + self.half_precision * sum(
            self.trained_sizes(out, in_)
        )

    def forward_temporaries(self, N: int, out: int, in_: int) -> int:
        """Return the number of temporary floats of l ∘ x, or of the unscaled y if y is not saved."""
        return N * in_ if self.scales_input else (not self.trained) * N * out

    def backward_temporaries(self, N: int, out: int, in_: int, need_dx: bool, frozen: int) -> int:
        """Return the peak number of temporary floats.

        The temporary arrays are dz ∘ u or l ∘ dz, and the temporary arrays of the frozen layer.
        """
        if self.scales_input:
            return max(frozen, 2 * N * in_ * (need_dx or self.trained))
        return N * out + frozen


class IA3Method(LayerMethod):
    """IA³: an IA3Adapter in each targeted layer."""

    config_type = IA3Config
    peft_type = "IA3"
    recorded_fields = ("target_modules", "feedforward_modules")
    mergeable = True
    choices: ClassVar[Mapping[str, Choice]] = {"ia3": Choice(1e-2, IA3Config)}
    example = IA3Config(init_ia3_weights=False)

    def targets(self, config: IA3Config, names: list[str], strict: bool = True) -> list[str]:
        """Return the names of the targeted layers.

        With `strict=True`, raises ValueError if an entry of `target_modules` or `feedforward_modules` matches no
        layer.
        """
        if strict and config.feedforward_modules:
            select_targets(names, config.feedforward_modules)
        return super().targets(config, names, strict)

    def for_layer(self, config: IA3Config, layer: str) -> IA3Config:
        """Return the configuration of one layer.

        In this configuration, `feedforward_modules` contains only this layer, or is empty if the layer's output is
        rescaled.
        """
        inputs = [layer] if is_target(layer, config.feedforward_modules) else []
        return replace(config, feedforward_modules=inputs)

    def check(self, host: AdapterHost, config: IA3Config, layers: Mapping[str, Linear]) -> None:
        """Raise ValueError if the output of a layer with a bias is rescaled.

        A merge would then have to change the bias.
        """
        for name, base in layers.items():
            if hasattr(base, "bias") and not is_target(name, config.feedforward_modules):
                raise ValueError(f"{name} has a bias; IA³ can rescale the output only of layers without a bias")

    def draw(self, config: IA3Config, base: Linear, rng: np.random.Generator, dtype: np.dtype | None) -> IA3Adapter:
        """Return a new adapter with l = 1, or with random l if `init_ia3_weights` is False."""
        (shape,) = self.shapes(config, base.out_features, base.in_features).values()
        return self.build(
            config, base, [np.ones(shape) if config.init_ia3_weights else rng.standard_normal(shape)], dtype
        )

    def shapes(self, config: IA3Config, out: int, in_: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of l: (1, in) if l rescales the input, (out, 1) if l rescales the output."""
        return {"ia3_l": (1, in_) if config.feedforward_modules else (out, 1)}

    def build(self, config: IA3Config, base: Linear, tensors: list[np.ndarray], dtype: np.dtype | None) -> IA3Adapter:
        """Return an adapter with the tensor l."""
        return IA3Adapter(config, parameter_like(base, tensors[0], dtype))

    def settings(self, config: IA3Config, model: Transformer) -> dict[str, Any]:
        """Return the settings for the file, with full layer names.

        PEFT requires that every name in `feedforward_modules` is also in `target_modules`.
        """
        layers = self.targets(config, list(adaptable_layers(model)), strict=False)
        inputs = [layer for layer in layers if is_target(layer, config.feedforward_modules)]
        return super().settings(config, model) | {"target_modules": layers, "feedforward_modules": inputs}

    def cost(self, config: IA3Config, trained: bool = True, half_precision: bool = False) -> AdapterCost:
        """Return the cost of one layer's adapter."""
        return IA3Cost(trained, half_precision, bool(config.feedforward_modules))
