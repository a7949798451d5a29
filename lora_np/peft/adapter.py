"""The base classes of adapters: an Adapter is the adapter of one linear layer.

    y, cache = adapter.forward(x, base, context)          the output of the adapted layer; the adapter calls the base layer
    dx       = adapter.backward(dy, cache, base, need_dx)

An adapter that adds a term to the output, y + δ(x), is a subclass of Bypass. An adapter that maps the output, f(y), is
a subclass of OutputAdapter. Any other adapter is a subclass of Adapter.

In a mixed batch, base(x) is computed once for all rows. Then `row_forward` of each adapter computes the output of the
adapter's rows from base(x).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array, move, to_host
from ..nn import EVALUATION, Cache, Context, Linear, Module, Parameter
from ..ops.linear import LinearCache
from ..quantization import Quantized4bit, dequantize_4bit

BypassCache: TypeAlias = tuple[Cache, Array | None, Cache]  # base layer, dropout mask, bypass
OutputCache: TypeAlias = tuple[Cache, Cache]  # base layer, f


class Adapter(Module):
    """The adapter of one layer: the base class of all adapters in linear layers.

    The parameters of an adapter are attributes with PEFT's names. `config` is the configuration of this layer. A
    subclass can set three class attributes to True. `mergeable`: the adapter can be written as a change ΔW of the
    weight. `depends_on_weight`: ΔW is computed from W. `mixable`: rows of this adapter can share a batch with rows of
    other adapters.

    Examples
    --------
    >>> import lora_np as ln
    >>> peft_model = ln.get_peft_model(ln.load_model("tiny"), ln.LoraConfig(r=2))
    >>> peft_model.lora_layers()[0].adapters["default"]
    LoraAdapter(r=2, lora_A=(2, 128), lora_B=(128, 2))
    """

    config: Any  # a subclass declares the class
    depends_on_weight: ClassVar[bool] = False  # True if ΔW depends on W: it cannot be computed after a merge
    mergeable: ClassVar[bool] = False  # True if it is a change ΔW of the weight
    mixable: ClassVar[bool] = False  # True if its rows can share a batch with rows of other adapters

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield the adapter's parameters.

        Each backward pass calls this method. For speed, the method reads the attributes and does not search for
        modules.

        Yields
        ------
        (str, Parameter)
            Name and parameter, in the order of the attributes.
        """
        for name, part in vars(self).items():
            if isinstance(part, Parameter):
                yield name, part
            elif isinstance(part, Linear):
                yield from ((f"{name}.{inner}", p) for inner, p in vars(part).items())

    @property
    def frozen(self) -> tuple[str, ...]:
        """The names of the parameters that are never trained."""
        return ()

    def set_trainable(self, trainable: bool) -> None:
        """Unfreeze all parameters except the parameters in `frozen`; if `trainable` is False, freeze all parameters.

        The gradients of frozen parameters are deleted.

        Parameters
        ----------
        trainable : bool
            True to train, False to freeze.
        """
        for name, p in self.named_parameters():
            p.trainable = trainable and name not in self.frozen
            if not p.trainable:
                p.grad = None

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, Cache]:
        """Compute the output of the adapted layer.

        Parameters
        ----------
        x : ndarray, shape (…, in)
            Input of the layer.
        base : Linear
            The frozen layer.
        context : Context
            Settings of the call; `context.rng` draws dropout masks.

        Returns
        -------
        y : ndarray, shape (…, out)
            Output.
        cache : tuple
            Values that `backward` needs.
        """
        raise NotImplementedError

    def backward(self, dy: Array, cache: Cache, base: Linear, need_dx: bool) -> Array | None:
        """Compute dx, and add the gradients of the trained parameters to their `grad`.

        Parameters
        ----------
        dy : ndarray, shape (…, out)
            Gradient of the output.
        cache : tuple
            From `forward`.
        base : Linear
            The frozen layer.
        need_dx : bool
            True if a layer below needs dx.

        Returns
        -------
        ndarray, shape (…, in), or None
            The gradient dx, or None if dx is not needed.
        """
        raise NotImplementedError

    def prepare(self, base: Linear, dtype: DTypeLike) -> Any:
        """Compute the values for `row_forward` that depend only on the parameters.

        In a mixed batch, these values are computed once.

        Parameters
        ----------
        base : Linear
            The frozen layer.
        dtype : dtype
            The dtype of the layer's input.

        Returns
        -------
        object
            The argument `prepared` of `row_forward`; None for most adapters.
        """
        return None

    def row_forward(
        self, x: Array, y: Array, base: Linear, context: Context, prepared: Any = None
    ) -> tuple[Array, Cache]:
        """Compute the output of the adapted layer from the output of the base layer, for rows of a mixed batch.

        Parameters
        ----------
        x : ndarray, shape (b, …, in)
            Input of the layer: the rows of this adapter.
        y : ndarray, shape (b, …, out)
            base(x). The method may overwrite y.
        base : Linear
            The frozen layer.
        context : Context
            Settings of the call; `context.rng` draws dropout masks.
        prepared : object
            The result of `prepare`, or None if `prepare` was not called.

        Returns
        -------
        z : ndarray, shape (b, …, out)
            Output.
        cache : tuple
            Values that `row_backward` needs.
        """
        raise NotImplementedError

    def row_backward(self, dz: Array, cache: Cache, base: Linear, need_dx: bool) -> tuple[Array, Array | None]:
        """Compute dy (the gradient of base(x)) and the part of dx that does not come from dy.

        This method also adds the gradients of the trained parameters to their `grad`.

        Parameters
        ----------
        dz : ndarray, shape (b, …, out)
            Gradient of the output.
        cache : tuple
            From `row_forward`.
        base : Linear
            The frozen layer.
        need_dx : bool
            True if a layer below needs dx.

        Returns
        -------
        dy : ndarray, shape (b, …, out)
            Gradient of base(x).
        dx : ndarray, shape (b, …, in), or None
            The part of dx that does not come from dy. None if dx is not needed, or if dx has no such part.
        """
        raise NotImplementedError

    def delta_weight(self, base: Linear) -> Array:
        """Compute ΔW, the change of the weight, for adapters that can be merged.

        Parameters
        ----------
        base : Linear
            The frozen layer.

        Returns
        -------
        ndarray, shape (out, in)
            ΔW.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        rank = [f"r={self.config.r}"] if "r" in vars(getattr(self, "config", self)) else []
        shapes = [f"{name}={p.value.shape}" for name, p in self.named_parameters()]
        return f"{type(self).__name__}({', '.join(rank + shapes)})"

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the adapter's parameters for a file.

        Returns
        -------
        dict of str to ndarray
            Arrays in host memory; the keys are the names of the parameters.
        """
        return {name: to_host(p.value) for name, p in self.named_parameters()}


class Bypass(Adapter):
    """An adapter that adds a term δ to the output: y + δ(x̃), with x̃ = drop(x).

    Dropout is applied to the input of the bypass δ, never to the input of the base layer.
    """

    @property
    def dropout(self) -> float:
        """The dropout probability of the input of the bypass."""
        return 0.0

    @property
    def learned(self) -> tuple[Parameter, ...]:
        """The parameters, in the order in which `delta_backward` returns their gradients."""
        return ()

    def delta_forward(self, x: Array) -> tuple[Array, Cache]:
        """Return δ (…, out) for x (…, in), and the cache for `delta_backward`."""
        raise NotImplementedError

    def delta_backward(self, dy: Array, cache: Cache, need_dx: bool) -> tuple[Array | None, ...]:
        """Compute the gradients for dδ (…, out).

        Returns dx (…, in), or None if dx is not needed, followed by the gradients of the parameters in `learned`.
        """
        raise NotImplementedError

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, BypassCache]:
        """Compute y = base(x) + δ(drop(x)), shape (…, out)."""
        y, base_cache = base.forward(x, context)
        y, own_cache = self.row_forward(x, y, base, context)
        return y, (base_cache, *own_cache)

    def backward(self, dy: Array, cache: BypassCache, base: Linear, need_dx: bool) -> Array | None:
        """Return dx (…, in), or None if dx is not needed.

        In the forward pass, y is the sum of two paths. Each path therefore receives dy, and dx is the sum of the
        gradients that the two paths return.
        """
        base_cache, *own_cache = cache
        dx = base.backward(dy, base_cache, need_dx)
        _, dx_bypass = self.row_backward(dy, own_cache, base, need_dx)
        if need_dx:
            assert dx is not None and dx_bypass is not None
            dx += dx_bypass
        return dx

    def row_forward(
        self, x: Array, y: Array, base: Linear, context: Context, prepared: Any = None
    ) -> tuple[Array, Any]:
        """Compute y + δ(drop(x)), shape (…, out), for y = base(x)."""
        x, mask = ops.dropout_forward(x, self.dropout, context.rng)
        delta, cache = self.delta_forward(x)
        y += delta
        return y, (mask, cache)

    def row_backward(self, dz: Array, cache: Any, base: Linear, need_dx: bool) -> tuple[Array, Array | None]:
        """Return dy (…, out), and dx (…, in) of the bypass.

        The gradient dy equals dz, because y is a summand of the output.
        """
        mask, delta_cache = cache
        if not (need_dx or any(p.trainable for p in self.learned)):
            return dz, None
        dx, *gradients = self.delta_backward(dz, delta_cache, need_dx)
        add_gradients(self.learned, gradients)
        return dz, ops.dropout_backward(dx, mask) if need_dx and dx is not None else None


class OutputAdapter(Adapter):
    """An adapter that maps the output of the layer: f(y) with y = base(x)."""

    def output_forward(self, y: Array) -> tuple[Array, Cache]:
        """Return f(y) (…, out) as a new array, and the cache for `output_backward`."""
        raise NotImplementedError

    def output_backward(self, dz: Array, cache: Cache, need_dy: bool) -> Array | None:
        """Return dy (…, out) for dz (…, out), or None if dy is not needed.

        This method also adds the gradients of the trained parameters to their `grad`.
        """
        raise NotImplementedError

    def forward(self, x: Array, base: Linear, context: Context) -> tuple[Array, OutputCache]:
        """Compute f(base(x)), shape (…, out)."""
        y, base_cache = base.forward(x, context)
        z, cache = self.output_forward(y)
        return z, (base_cache, cache)

    def backward(self, dz: Array, cache: OutputCache, base: Linear, need_dx: bool) -> Array | None:
        """Return dx (…, in), or None if dx is not needed.

        By the chain rule, f first gives dy from dz, and then the base layer gives dx from dy. The second step is
        skipped if the base is frozen and dx is not needed.
        """
        base_cache, output_cache = cache
        dy = self.output_backward(dz, output_cache, need_dx or base.trainable)
        return None if dy is None else base.backward(dy, base_cache, need_dx)

    def row_forward(
        self, x: Array, y: Array, base: Linear, context: Context, prepared: Any = None
    ) -> tuple[Array, Cache]:
        """Compute f(y), shape (…, out), for y = base(x)."""
        return self.output_forward(y)

    def row_backward(self, dz: Array, cache: Cache, base: Linear, need_dx: bool) -> tuple[Array, Array | None]:
        """Return dy (…, out). The output depends on x only through y, so there is no other part of dx."""
        dy = self.output_backward(dz, cache, need_dy=True)
        assert dy is not None
        return dy, None


class AdapterLinear(Linear):
    """A linear layer inside an adapter.

    Parameters stored in 16 bits are converted to the dtype of x for each product. If the weight is frozen, x is not
    saved for the backward pass.
    """

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, LinearCache]:
        """Compute y = x Wᵀ + b (…, out) for x (…, in)."""
        W, b = upcast(x.dtype, self.weight.value), upcast(x.dtype, self.bias.value)
        y, _ = ops.linear_forward(x, W, b)
        return y, (x if self.weight.trainable else None, W, self.bias.trainable)


def parameter_like(base: Linear, x: np.ndarray, dtype: np.dtype | None = None) -> Parameter:
    """Return `x` as a Parameter on the device of the base layer's weight.

    The Parameter has `dtype`, by default the dtype of the weight.
    """
    weight = base.weight.value
    like = weight.packed if isinstance(weight, Quantized4bit) else weight
    return Parameter(move(x.astype(dtype or weight.dtype), like))


def dense(weight: Array | Quantized4bit, dtype: DTypeLike) -> Array:
    """Return W (out, in) as an array; a four-bit W is dequantised to `dtype`."""
    return dequantize_4bit(weight, dtype) if isinstance(weight, Quantized4bit) else weight


def upcast(dtype: DTypeLike, x: Array) -> Array:
    """Return a copy of `x` in `dtype` if `x` is stored in 16 bits, otherwise `x` itself."""
    return x.astype(dtype) if x.itemsize == 2 else x


def add_gradients(parameters: tuple[Parameter, ...], gradients: Iterable[Array | None]) -> None:
    """Add each gradient to the `grad` of its parameter, if the parameter is trained."""
    for p, gradient in zip(parameters, gradients, strict=True):
        if p.trainable:
            p.add_grad(gradient)
