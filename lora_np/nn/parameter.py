"""A parameter: an array, its gradient, and the flag `trainable`."""

from __future__ import annotations

import numpy as np

from .. import ops
from ..backend import Array, array_module, move

RAN_FROZEN = (
    "the forward pass ran while this parameter was frozen, so it kept nothing for the gradient of this parameter; "
    "run the forward pass again, then the backward pass"
)


class Parameter:
    """An array with its gradient.

    Parameters
    ----------
    value : ndarray, any shape, float
        The array.
    trainable : bool
        If False, the parameter is frozen, and layers compute no gradient for it.

    Attributes
    ----------
    grad : ndarray or None
        The gradient, with the shape of `value`. `grad` is None until a backward pass adds a gradient.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.nn import Parameter
    >>> p = Parameter(np.zeros((2, 3)))
    >>> p.add_grad(np.ones((2, 3)))
    >>> p
    Parameter(shape=(2, 3), dtype=float64, trainable, has a gradient)
    """

    __slots__ = ("grad", "trainable", "value")

    def __init__(self, value: Array, trainable: bool = True) -> None:
        array_module(value)  # raises TypeError if it is not an array
        self.value = value
        self.grad: Array | None = None
        self.trainable = trainable

    def __repr__(self) -> str:
        state = "trainable" if self.trainable else "frozen"
        grad = "no gradient" if self.grad is None else "has a gradient"
        return f"{type(self).__name__}(shape={self.value.shape}, dtype={self.value.dtype}, {state}, {grad})"

    @property
    def compute_dtype(self) -> np.dtype:
        """The dtype of the gradient and of computations: float32 for a 16-bit value, otherwise the value's dtype."""
        return self.value.dtype if self.value.dtype.itemsize > 2 else np.dtype("float32")

    def check_trainable(self) -> None:
        """Raise ValueError if parameters of this class cannot be trained."""

    def add_grad(self, grad: Array | None) -> None:
        """Add `grad` to this parameter's gradient. Gradients accumulate until `zero_grad` is called.

        Parameters
        ----------
        grad : ndarray, the shape of value, or None
            The gradient of one backward pass.

        Raises
        ------
        ValueError
            If the shape of `grad` is not the shape of `value`.
        TypeError
            If the dtype of `grad` is not `compute_dtype`.
        RuntimeError
            If `grad` is None. The parameter was frozen during the forward pass, so the layer kept no data for its
            gradient.
        """
        if grad is None:
            raise RuntimeError(RAN_FROZEN)
        if grad.shape != self.value.shape:
            raise ValueError(
                f"the gradient has shape {grad.shape}; expected {self.value.shape}, the shape of the parameter"
            )
        if grad.dtype != self.compute_dtype:
            raise TypeError(
                f"the gradient has dtype {grad.dtype}; expected {self.compute_dtype}. Does dlogits have this dtype?"
            )
        if self.grad is None:
            self.grad = grad
        else:
            self.grad += grad

    def check(self, name: str, value: Array) -> None:
        """Raise an error unless `value` is a float array of this parameter's shape.

        Parameters
        ----------
        name : str
            The name of the parameter, for the error message.
        value : ndarray
            The array.

        Raises
        ------
        ValueError
            If the shape is not the shape of this parameter.
        TypeError
            If `value` is not a float array.
        """
        ops.checks.check_shape(name, value, *self.value.shape)
        if value.dtype.kind != "f":
            raise TypeError(f"{name} has dtype {value.dtype}; expected floats")

    def move_to(self, like: Array) -> None:
        """Move the value to the device of `like`, and set the gradient to None.

        Parameters
        ----------
        like : ndarray
            An array on the wanted device.
        """
        self.value, self.grad = move(self.value, like), None
