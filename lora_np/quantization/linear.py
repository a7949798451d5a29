"""A linear layer that keeps four bits a weight, frozen, and dequantises it for each product (QLoRA, arXiv 2305.14314)."""

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
    """A parameter whose value is a Quantized4bit: it counts as many weights as it stands for, and never trains.

    `astype` leaves the codes as they are, and says what they are dequantised to.
    """

    __slots__ = ()
    value: Quantized4bit  # type: ignore[assignment]  # no array, but with the attributes of one that a model asks for

    def __init__(self, value: Quantized4bit, trainable: bool = False) -> None:
        self.value, self.grad, self.trainable = value, None, trainable

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.value}, frozen)"

    @property
    def trainable(self) -> bool:
        return False

    @trainable.setter
    def trainable(self, wanted: bool) -> None:
        if wanted:
            self.check_trainable()

    def check_trainable(self) -> None:
        """Raise ValueError: this kind never trains."""
        raise ValueError(
            "a quantised weight has no gradient: put an adapter over it with get_peft_model, or dequantize_model first"
        )

    def check(self, name: str, value: Array | Quantized4bit) -> None:
        """Raise TypeError or ValueError naming the parameter unless `value` is quantised too, and of its shape."""
        if not isinstance(value, Quantized4bit):
            raise TypeError(
                f"{name} is quantised here and {value.dtype} there: dequantize_model or quantize_model first"
            )
        if value.shape != self.value.shape:
            raise ValueError(f"{name} has shape {value.shape}; expected {self.value.shape}")

    def move_to(self, like: Array | Quantized4bit) -> None:
        """Move codes and absmax to where `like` lives."""
        self.value = self.value.move_to(like)


class QuantizedLinear(Linear):
    """y = x Ŵᵀ + b, where Ŵ = dequantise(weight), frozen; `weight.value` is a Quantized4bit of shape (out, in).

    Stored: the codes and their absmax. Computed: Ŵ, once in the forward and once more in the backward for dx, each time thrown
    away after its one product, so that however deep the model is, one dequantised matrix is there at a time (for each thread
    that computes). The product is done in x's own dtype: float32, or float64 and complex128 to prove.
    """

    weight: QuantizedWeight

    def __init__(self, weight: Quantized4bit, bias: Array | None = None) -> None:
        if not isinstance(weight, Quantized4bit) or weight.ndim != 2:
            raise TypeError(f"expected a Quantized4bit of shape (out, in), got {weight!r:.80}")
        self.weight = QuantizedWeight(weight)
        if bias is not None:
            self.bias = Parameter(bias)

    def extra_repr(self) -> str:
        """A Linear's, and how it is quantised."""
        weight = self.weight.value
        double = isinstance(weight.absmax, QuantizedAbsmax)
        return f"{super().extra_repr()}, {weight.quant_type}, block_size={weight.block_size}, double_quant={double}"

    @property
    def nbytes(self) -> int:
        """Bytes that are stored: codes and absmax, and the bias."""
        return self.weight.value.nbytes + (self.bias.value.nbytes if hasattr(self, "bias") else 0)

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, QuantizedLinearCache]:
        """x (…, in) → y (…, out)."""
        bias = self.bias.value if hasattr(self, "bias") else None
        y, _ = ops.linear_forward(x, dequantize_4bit(self.weight.value, x.dtype), bias)
        return y, (self.weight.value, bias is not None and self.bias.trainable)  # neither x nor Ŵ is kept

    def backward(self, dy: Array, cache: QuantizedLinearCache, need_dx: bool = True) -> Array | None:
        """dy (…, out) → dx = dy Ŵ (…, in), or None where nothing below needs it; then nothing is dequantised."""
        weight, has_bias = cache
        W: Any = dequantize_4bit(weight, dy.dtype) if need_dx else weight  # of which only the shape is asked then
        dx, _, db = ops.linear_backward(dy, (None, W, has_bias), need_dx)
        if hasattr(self, "bias") and self.bias.trainable:
            self.bias.add_grad(db)
        return dx

    def dequantized(self) -> Linear:
        """The Linear that computes the same: weight Ŵ (out, in), frozen, and this layer's own bias."""
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
    """Put a QuantizedLinear in the place of every Linear, in `model` itself, and return it. Then `get_peft_model` adapts it.

    Embeddings, norms and biases stay as they are, and so does each Linear whose name is an entry of `skip_modules` or ends in
    "." + an entry: the output head, if nothing else is said. The settings are those of `quantization.quantize_4bit`.

    Raises ValueError where there is no Linear to quantise, an entry of `skip_modules` names none (lm_head may be tied), a
    weight is not finite, or a setting is out of range; RuntimeError while an adapter is merged. Nothing has changed then.
    Source: arXiv 2305.14314, section 3.
    """
    check_settings(block_size, quant_type)
    if any(getattr(m, "merged", None) for _, m in model.named_modules()):
        raise RuntimeError(
            "an adapter is merged into the weights: unmerge_adapter(), or quantise what merge_and_unload() gives"
        )
    kinds = Linear, QuantizedLinear  # and no subclass that is part of an adapter
    layers = {name: m for name, m in model.named_modules() if name and type(m) in kinds}
    entries = [skip_modules] if isinstance(skip_modules, str) else skip_modules
    for entry in entries:
        if entry != OUTPUT_HEAD and not any(_is_called(name, entry) for name in layers):
            raise ValueError(
                f"skip_modules: {entry!r} matches no linear layer; {available(list(map(_in_the_base, layers)))}"
            )
    chosen = {
        name: layer
        for name, layer in layers.items()
        if type(layer) is Linear and not any(_is_called(name, entry) for entry in entries)
    }
    if not chosen:
        raise ValueError("this model has no Linear to quantise: are all quantised already, or skipped?")
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
    """Put a Linear of the dequantised weights in the place of every QuantizedLinear, in `model` itself, and return it.

    The model computes the same as before, and its adapters can now be merged: `dequantize_model(peft_model).merge_and_unload()`
    is the model that was trained. Its weights are not those from before they were quantised: what rounding took is gone. They
    come back frozen. To `quantize_model` it again after merging rounds ΔW too, and takes most of a small one away
    (`studies/four_bits/merge_routes.py`).
    """
    for name, layer in list(model.named_modules()):
        if isinstance(layer, QuantizedLinear):
            replace_module(model, name, layer.dequantized())
    return model


def _is_called(name: str, entry: str) -> bool:
    """Whether the layer is meant by an entry; that it may carry an adapter by now makes no difference."""
    return has_suffix(_in_the_base(name), entry)


def _in_the_base(name: str) -> str:
    return name.replace(".base_layer", "")
