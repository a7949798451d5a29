"""The gradient check: compare a hand-derived gradient with a numerical derivative of the forward function.

Two methods compute the directional derivative ∇f·v from values of f alone:

- complex step: Im f(θ + ihv) / h. The Taylor series of f(θ + ihv) is f(θ) + ih ∇f·v − h²/2 …, so its imaginary part is
  h ∇f·v plus terms of order h³. The complex step does not subtract nearly equal numbers. With h = 1e-30 the result is
  exact up to rounding (Squire and Trapp 1998).
- central difference: (f(θ + hv) − f(θ − hv)) / 2h. The central difference needs no complex arithmetic, but subtracts
  two nearly equal numbers. In float64 about ten digits are correct at best, with h near 1e-5.

One random direction v per tensor tests all entries of the gradient at once. If an entry is wrong, gradient·v differs
from ∇f·v. The only exception is an error orthogonal to v. For a random v, this exception has probability zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .backend import Array, array_module
from .nn import Trainable

Method = Literal["complex-step", "central"]
STEP = {"complex-step": 1e-30, "central": 1e-5}
STREAM = 0x67726164  # added to the seed, so that the directions differ from the numbers of a caller's default_rng(seed)
TOLERANCE = {"complex-step": 1e-12, "central": 1e-6}
LABEL = {"complex-step": "complex step", "central": "central difference"}


@dataclass(frozen=True)
class GradcheckResult:
    """The result of `gradcheck` and `gradcheck_model`: the relative error of each tensor's gradient.

    For one direction v the error is |∇f·v − gradient·v| / max(‖gradient‖, |∇f·v|), with ∇f·v computed by `method`. The
    relative error of a tensor is the largest error over all directions.

    Parameters
    ----------
    errors : dict of str to float
        The relative error of each tensor's gradient.
    method : {"complex-step", "central"}
        The method that computed ∇f·v.
    tolerance : float
        A gradient with a relative error above the tolerance is wrong.

    Examples
    --------
    >>> from lora_np import GradcheckResult
    >>> result = GradcheckResult({"dA": 2e-16, "dB": 0.3}, "complex-step", 1e-12)
    >>> result.ok, result.wrong
    (False, ['dB'])
    """

    errors: dict[str, float]
    method: Method
    tolerance: float

    @property
    def ok(self) -> bool:
        """True if no gradient is wrong."""
        return not self.wrong

    @property
    def wrong(self) -> list[str]:
        """The names of the tensors with a wrong gradient, largest error first. A gradient with error NaN is wrong."""
        return sorted((n for n, e in self.errors.items() if not e <= self.tolerance), key=lambda n: -self.errors[n])

    def raise_if_wrong(self) -> GradcheckResult:
        """Raise an error if a gradient is wrong.

        Returns
        -------
        GradcheckResult
            This result.

        Raises
        ------
        AssertionError
            If a gradient is wrong. The message is a table of the relative errors of all tensors.
        """
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        lines = [f"relative errors of the gradients against the {LABEL[self.method]}, tolerance {self.tolerance:g}"]
        for name, error in self.errors.items():
            lines.append(f"  {name:<{width}}  {error:8.1e}  {'ok' if name not in self.wrong else '← WRONG'}")
        return "\n".join(lines)


def gradcheck(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Array, Any], Any],
    inputs: Mapping[str, Array],
    *,
    method: Method = "complex-step",
    directions: int = 2,
    tolerance: float | None = None,
    seed: int = 0,
) -> GradcheckResult:
    """Check the gradients of a backward function against derivatives of its forward function, for a random dy.

    Parameters
    ----------
    forward : callable
        The forward function. The call is `forward(*inputs.values())`, which returns the tuple (y, cache). Use a lambda
        or functools.partial for arguments that are not differentiated, such as a scaling or token ids.
    backward : callable
        The backward function. The call is `backward(dy, cache)`, which returns one gradient per input, in the order of
        the inputs. If a gradient is None, its input is not checked.
    inputs : mapping of str to ndarray
        The inputs by name, as float arrays. The inputs are converted to float64 (and to complex128 for the complex
        step).
    method : {"complex-step", "central"}
        The numerical derivative. "central" is less exact, but needs no complex arithmetic.
    directions : int
        The number of random directions per tensor.
    tolerance : float, optional
        A gradient with a relative error above the tolerance is wrong. The default is 1e-12 for the complex step and
        1e-6 for the central difference.
    seed : int
        The seed of the random dy and the random directions.

    Returns
    -------
    GradcheckResult
        The relative errors. In a test, call `raise_if_wrong()` of this result.

    Raises
    ------
    TypeError
        If an input is not a float array.
    ValueError
        If `backward` returns a wrong number of gradients, if a gradient has a wrong shape, if all gradients are None,
        or if an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np import gradcheck, ops
    >>> rng = np.random.default_rng(0)
    >>> inputs = {"x": rng.normal(size=(5, 6)), "A": rng.normal(size=(3, 6)), "B": rng.normal(size=(4, 3))}
    >>> gradcheck(lambda x, A, B: ops.lora_forward(x, A, B, 2.0), ops.lora_backward, inputs).ok
    True
    >>> def forgot_dA(dy, cache):
    ...     dx, dA, dB = ops.lora_backward(dy, cache)
    ...     return dx, 0 * dA, dB
    >>> gradcheck(lambda x, A, B: ops.lora_forward(x, A, B, 2.0), forgot_dA, inputs).wrong
    ['A']
    """
    rng = np.random.default_rng([seed, STREAM])
    values = {}
    for name, x in inputs.items():
        if array_module(x) and x.dtype.kind != "f":
            raise TypeError(
                f"{name} has dtype {x.dtype}; expected a real float array. Bind other arguments with a lambda"
            )
        values[name] = x.astype("float64")
    y, cache = forward(*values.values())
    dy = _normal(y.shape, next(iter(values.values())), rng)  # y itself may be a scalar
    gradients = backward(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    if len(gradients) != len(values):
        raise ValueError(f"backward returned {len(gradients)} gradients for the {len(values)} inputs {list(values)}")

    def scalar(name: str, value: Array, dtype: str) -> Array:
        changed = [value if n == name else x.astype(dtype) for n, x in values.items()]
        return (forward(*changed)[0] * dy).sum()

    if all(gradient is None for gradient in gradients):
        raise ValueError("backward returned only None; expected a gradient for at least one input")
    checked = {n: g for n, g in zip(values, gradients, strict=True) if g is not None}
    return _compare(values, checked, scalar, method, directions, tolerance, rng)


def gradcheck_model(
    model: Trainable,
    tokens: Array,
    targets: Array,
    *,
    method: Method = "complex-step",
    directions: int = 2,
    tolerance: float | None = None,
    seed: int = 0,
    dropout_seed: int | None = None,
) -> GradcheckResult:
    r"""Check the gradient of a model's loss for every trainable parameter, through all layers at once.

    Afterwards the value, gradient and dtype of every parameter are restored.

    Parameters
    ----------
    model : Trainable
        The model.
    tokens : ndarray, shape (b, t), integers
        The input tokens.
    targets : ndarray, shape (b, t), integers
        The next token at each position.
    method : {"complex-step", "central"}
        The numerical derivative. "central" is less exact, but needs no complex arithmetic.
    directions : int
        The number of random directions per tensor.
    tolerance : float, optional
        A gradient with a relative error above the tolerance is wrong. The default is 1e-12 for the complex step and
        1e-6 for the central difference.
    seed : int
        The seed of the random directions.
    dropout_seed : int, optional
        None means no dropout. A seed turns dropout on, with the same masks each time the loss is computed. If the masks
        changed, the loss would be a different function each time.

    Returns
    -------
    GradcheckResult
        The relative error of each trainable parameter's gradient.

    Raises
    ------
    ValueError
        If no parameter is trainable, or if an argument is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> config = ln.LoraConfig(r=2, lora_alpha=4, target_modules=r"model\.layers\.4\.mlp\.down_proj")
    >>> model = ln.get_peft_model(ln.load_model("tiny"), config)
    >>> tokens = np.array([[72, 101, 108, 108]])
    >>> result = ln.gradcheck_model(model, tokens[:, :-1], tokens[:, 1:], directions=1)
    >>> len(result.errors), result.ok  # the gradients of A and B
    (2, True)
    """
    rng = np.random.default_rng([seed, STREAM])

    def dropout_rng() -> np.random.Generator | None:
        return None if dropout_seed is None else np.random.default_rng(dropout_seed)

    parameters = dict(model.named_parameters())
    kept = {name: (p.value, p.grad) for name, p in parameters.items()}
    trainable = [name for name, p in parameters.items() if p.trainable]
    if not trainable:
        raise ValueError("no parameter is trainable; unfreeze a parameter or add an adapter before checking gradients")
    try:
        for p in parameters.values():
            p.value, p.grad = p.value.astype("float64"), None
        _, cache = model.loss(tokens, targets, rng=dropout_rng())
        model.backward(cache)
        values = {name: parameters[name].value for name in trainable}
        gradients = {
            name: array_module(p.value).zeros_like(p.value) if p.grad is None else p.grad
            for name, p in parameters.items()
            if p.trainable
        }

        def scalar(name: str, value: Array, dtype: str) -> Array:
            for n, p in parameters.items():
                p.value = value if n == name else values.get(n, p.value).astype(dtype)
            return model.loss(tokens, targets, rng=dropout_rng())[0]

        return _compare(values, gradients, scalar, method, directions, tolerance, rng)
    finally:
        for name, p in parameters.items():
            p.value, p.grad = kept[name]


def _compare(
    values: Mapping[str, Array],
    gradients: Mapping[str, Array],
    scalar: Callable[[str, Array, str], Array],
    method: Method,
    directions: int,
    tolerance: float | None,
    rng: np.random.Generator,
) -> GradcheckResult:
    """Compare gradient·v, for random directions v, with the directional derivative that `method` computes."""
    if method not in STEP:
        raise ValueError(f"method {method!r}; expected one of {sorted(STEP)}")
    if directions < 1:
        raise ValueError(f"directions = {directions}; expected at least 1")
    h, errors = STEP[method], {}
    for name, gradient in gradients.items():
        value, worst = values[name], 0.0
        if gradient.shape != value.shape:
            raise ValueError(
                f"the gradient of {name} has shape {gradient.shape}; expected {value.shape}, the shape of {name}"
            )
        xp = array_module(value)
        for _ in range(directions):
            v = _normal(value.shape, value, rng)
            if method == "complex-step":
                derivative = float(scalar(name, value + 1j * h * v, "complex128").imag) / h
            else:
                up, down = (float(scalar(name, value + sign * h * v, "float64")) for sign in (1, -1))
                derivative = (up - down) / (2 * h)
            difference = abs(derivative - float((gradient * v).sum()))
            size = max(float(xp.sqrt((gradient**2).sum())), abs(derivative))
            worst = max(worst, difference / size if size > 0 else difference, key=lambda e: (e != e, e))
        errors[name] = worst
    return GradcheckResult(errors, method, TOLERANCE[method] if tolerance is None else tolerance)


def _normal(shape: tuple[int, ...], like: Array, rng: np.random.Generator) -> Array:
    """Return standard normal random numbers, drawn on the host and moved to the device of `like`."""
    return array_module(like).asarray(rng.standard_normal(shape))
