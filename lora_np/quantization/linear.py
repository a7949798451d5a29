"""A frozen linear layer with four bits per weight, dequantised for each matrix product (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeAlias, TypeVar

from .. import ops
from ..backend import Array
from ..nn import EVALUATION, Context, Linear, Module, Parameter, replace_module
from ..nn.targets import OUTPUT_HEAD, available, has_suffix
from .four_bits import Quantized4bit, QuantizedAbsmax, check_settings, dequantize_4bit, quantize_4bit

M = TypeVar("M", bound=Module)
QuantizedLinearCache: TypeAlias = tuple[Quantized4bit, bool]  # the weight (out, in); whether there is a trainable bias


class QuantizedWeight(Parameter):
    """A frozen parameter with a Quantized4bit as its value. The size of the value is the number of weights.

    `astype` changes the dtype of the dequantised weights. The codes do not change.
    """

    __slots__ = ()
    value: Quantized4bit  # type: ignore[assignment]  # not an array, but it has the attributes that a model reads

    def __init__(self, value: Quantized4bit, trainable: bool = False) -> None:
        self.value, self.grad, self.trainable = value, None, trainable

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value}, frozen)"

    @property
    def trainable(self) -> bool:
        """Always False, because a quantised weight cannot be trained."""
        return False

    @trainable.setter
    def trainable(self, wanted: bool) -> None:
        if wanted:
            self.check_trainable()

    def check_trainable(self) -> None:
        """Raise ValueError, because a quantised weight cannot be trained."""
        raise ValueError(
            "a quantised weight cannot be trained; add an adapter with get_peft_model, or call dequantize_model first"
        )

    def check(self, name: str, value: Array | Quantized4bit) -> None:
        """Raise an error that names the parameter, unless `value` is a Quantized4bit of the same shape."""
        if not isinstance(value, Quantized4bit):
            raise TypeError(
                f"{name} is quantised in the model, but the given array has dtype {value.dtype}; call dequantize_model "
                "or quantize_model first"
            )
        if value.shape != self.value.shape:
            raise ValueError(f"{name} has shape {value.shape}; expected {self.value.shape}")

    def move_to(self, like: Array | Quantized4bit) -> None:
        """Move the stored arrays to the device of `like`."""
        self.value = self.value.move_to(like)


class QuantizedLinear(Linear):
    """A frozen linear layer with four bits per weight, y = x Ŵᵀ + b with the dequantised weight Ŵ.

    The layer stores the four-bit codes and the largest magnitude of each block (absmax). The layer computes Ŵ in the
    forward pass, and again in the backward pass for dx. Ŵ is freed after each product. So each thread stores only one
    dequantised matrix at a time, even if the model has many layers. The product has the dtype of x.

    Parameters
    ----------
    weight : Quantized4bit, shape (out, in)
        The quantised weight, stored as the frozen parameter `weight`.
    bias : ndarray, shape (out,), optional
        The bias b, which is not quantised.

    Raises
    ------
    TypeError
        If `weight` is not a Quantized4bit with two axes.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.quantization import QuantizedLinear, quantize_4bit
    >>> W = np.random.default_rng(0).normal(size=(128, 64)).astype("float32")
    >>> layer = QuantizedLinear(quantize_4bit(W))
    >>> layer
    QuantizedLinear(in_features=64, out_features=128, bias=False, nf4, block_size=64, double_quant=False)
    >>> layer.nbytes, W.nbytes
    (4608, 32768)
    """

    weight: QuantizedWeight

    def __init__(self, weight: Quantized4bit, bias: Array | None = None) -> None:
        if not isinstance(weight, Quantized4bit) or weight.ndim != 2:
            raise TypeError(f"expected a Quantized4bit of shape (out, in), got {weight!r:.80}")
        self.weight = QuantizedWeight(weight)
        if bias is not None:
            self.bias = Parameter(bias)

    def extra_repr(self) -> str:
        weight = self.weight.value
        double = isinstance(weight.absmax, QuantizedAbsmax)
        return f"{super().extra_repr()}, {weight.quant_type}, block_size={weight.block_size}, double_quant={double}"

    @property
    def nbytes(self) -> int:
        """The stored size in bytes: codes, absmax and bias."""
        return self.weight.value.nbytes + (self.bias.value.nbytes if hasattr(self, "bias") else 0)

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, QuantizedLinearCache]:
        """Compute the output of the layer.

        Parameters
        ----------
        x : ndarray, shape (…, in), float32 or float64
            The input.
        context : Context
            The arguments that the call passes to every layer. This layer does not use these arguments.

        Returns
        -------
        y : ndarray, shape (…, out)
            The output.
        cache : QuantizedLinearCache
            Values that `backward` needs. The cache contains neither x nor Ŵ.
        """
        bias = self.bias.value if hasattr(self, "bias") else None
        y, _ = ops.linear_forward(x, dequantize_4bit(self.weight.value, x.dtype), bias)
        return y, (self.weight.value, bias is not None and self.bias.trainable)  # neither x nor Ŵ is kept

    def backward(self, dy: Array, cache: QuantizedLinearCache, need_dx: bool = True) -> Array | None:
        """Return dx = dy Ŵ and, if the bias is trainable, add db to the gradient of the bias.

        Parameters
        ----------
        dy : ndarray, shape (…, out)
            The gradient of the output.
        cache : QuantizedLinearCache
            The cache of the forward pass.
        need_dx : bool
            If False, dx is not computed and the weight is not dequantised.

        Returns
        -------
        dx : ndarray, shape (…, in), or None
            The gradient of the input. None if `need_dx` is False.
        """
        weight, has_bias = cache
        W: Any = dequantize_4bit(weight, dy.dtype) if need_dx else weight  # without dx only its shape is used
        dx, _, db = ops.linear_backward(dy, (None, W, has_bias), need_dx)
        if hasattr(self, "bias") and self.bias.trainable:
            self.bias.add_grad(db)
        return dx

    def dequantized(self) -> Linear:
        """Return a Linear with the frozen dequantised weight Ŵ and the bias of this layer.

        Returns
        -------
        Linear
            A layer with the same outputs.
        """
        linear = Linear(dequantize_4bit(self.weight.value))
        linear.weight.trainable = False
        if hasattr(self, "bias"):
            linear.bias = self.bias
        return linear


def quantize_model(
    model: M,
    quant_type: str = "nf4",
    block_size: int = 64,
    double_quant: bool = True,
    skip_modules: Collection[str] = (OUTPUT_HEAD,),
) -> M:
    """Replace every Linear of a model by a QuantizedLinear, in place.

    Embeddings, norms and biases are not changed. Afterwards `get_peft_model` can add an adapter.

    Parameters
    ----------
    model : Module
        The model, changed in place.
    quant_type : {"nf4", "fp4", "int4"}
        The code; see `code_book`.
    block_size : int
        The number of weights per block: a power of two from 2 to 4096.
    double_quant : bool
        If True, the largest magnitude of each block (absmax) is stored in 8 bits.
    skip_modules : collection of str
        Names of the layers that are not quantised. An entry matches a layer if the layer's name equals the entry or
        ends in "." and the entry. The default is the output head.

    Returns
    -------
    Module
        The same model.

    Raises
    ------
    ValueError
        If the model has no Linear to quantise, if a weight is not finite, or if a setting is out of range. An entry of
        `skip_modules` that matches no layer is also an error, except "lm_head". The model is unchanged after an error.
    RuntimeError
        If an adapter is merged. In this case the model is unchanged.

    References
    ----------
    QLoRA (Dettmers et al. 2023, arXiv 2305.14314), section 3.

    Examples
    --------
    >>> import lora_np as ln
    >>> model = ln.quantize_model(ln.load_model("tiny"))
    >>> sum(isinstance(module, ln.QuantizedLinear) for _, module in model.named_modules())
    35
    """
    check_settings(block_size, quant_type)
    if any(getattr(m, "merged", None) for _, m in model.named_modules()):
        raise RuntimeError(
            "an adapter is merged into the weights; call unmerge_adapter() first, or quantise the model that "
            "merge_and_unload() returns"
        )
    kinds = Linear, QuantizedLinear  # but not a subclass, which may be part of an adapter
    layers = {name: m for name, m in model.named_modules() if name and type(m) in kinds}
    entries = [skip_modules] if isinstance(skip_modules, str) else skip_modules
    for entry in entries:
        if entry != OUTPUT_HEAD and not any(_matches_entry(name, entry) for name in layers):
            raise ValueError(
                f"skip_modules: {entry!r} matches no linear layer; {available(list(map(_base_name, layers)))}"
            )
    chosen = {
        name: layer
        for name, layer in layers.items()
        if type(layer) is Linear and not any(_matches_entry(name, entry) for entry in entries)
    }
    if not chosen:
        raise ValueError(
            "this model has no Linear to quantise, because all are already quantised, or skipped by skip_modules"
        )
    quantized = {}
    for name, layer in chosen.items():
        try:
            weight = quantize_4bit(layer.weight.value, block_size, quant_type, double_quant)
        except ValueError as error:
            raise ValueError(f"{name}.weight: {error}") from None
        quantized[name] = QuantizedLinear(weight)
        if hasattr(layer, "bias"):
            quantized[name].bias = layer.bias
    for name, layer in quantized.items():
        replace_module(model, name, layer)
    return model


def dequantize_model(model: M) -> M:
    """Replace every QuantizedLinear of a model by a Linear with the dequantised weights, in place.

    The model computes the same outputs as before. Afterwards the adapters of the model can be merged:
    `dequantize_model(peft_model).merge_and_unload()` returns the trained model. The dequantised weights are frozen. The
    dequantised weights differ from the original weights by the rounding error of the quantisation. If the merged model
    is quantised again with `quantize_model`, the adapter's ΔW is also rounded. Most of a small ΔW is then lost (see
    `studies/four_bits/merge_routes.py`).

    Parameters
    ----------
    model : Module
        The model, changed in place.

    Returns
    -------
    Module
        The same model.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> model, tokens = ln.quantize_model(ln.load_model("tiny")), np.array([[72, 101, 108]])
    >>> before = model(tokens)
    >>> np.allclose(before, ln.dequantize_model(model)(tokens))
    True
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            replace_module(model, name, layer.dequantized())
    return model


def _matches_entry(name: str, entry: str) -> bool:
    """Return True if `entry`, an item of `skip_modules`, selects the layer. The layer may have an adapter."""
    return has_suffix(_base_name(name), entry)


def _base_name(name: str) -> str:
    """Return the name that the layer has in a model without adapters."""
    return name.replace(".base_layer", "")
