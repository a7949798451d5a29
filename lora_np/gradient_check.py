"""The proof: does a hand-derived gradient equal the derivative of the function that was computed?

Two ways to get a directional derivative ∇f·v without deriving anything:

- complex step: Im f(θ + ihv) / h. The Taylor series is f(θ) + ih ∇f·v − h²/2 …, so the imaginary part holds the derivative
  alone, nothing is subtracted, and h = 1e-30 makes the rest vanish: exact to rounding (Squire and Trapp 1998).
- central difference: (f(θ + hv) − f(θ − hv)) / 2h. Needs no complex arithmetic, but subtracts two near-equal numbers: at
  best some ten digits are right in float64, at h about 1e-5.

One random direction v for a tensor compares every one of its gradient's entries at once: a wrong entry changes ∇f·v,
unless v happens to be orthogonal to the mistake, which a random v never is.
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
STREAM = 0x67726164  # beside the seed, so that our random numbers are not those of a caller's default_rng(seed)
TOLERANCE = {"complex-step": 1e-12, "central": 1e-6}


@dataclass(frozen=True)
class GradcheckResult:
    """Relative error of each tensor's gradient, |∇f·v by the method − gradient·v| / ‖gradient‖, the worst over directions."""

    errors: dict[str, float]
    method: Method
    tolerance: float

    @property
    def ok(self) -> bool:
        return not self.wrong

    @property
    def wrong(self) -> list[str]:
        """The tensors whose gradient is off, worst first. A NaN counts as off."""
        return sorted((n for n, e in self.errors.items() if not e <= self.tolerance), key=lambda n: -self.errors[n])

    def raise_if_wrong(self) -> GradcheckResult:
        """Raise AssertionError with the table if a gradient is off; otherwise return self."""
        if not self.ok:
            raise AssertionError(str(self))
        return self

    def __str__(self) -> str:
        width = max(map(len, self.errors), default=0)
        lines = [f"gradients against the {self.method}, tolerance {self.tolerance:g} (relative)"]
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
    """Check an `f_forward` / `f_backward` pair, for every input and a random dy.

    Args:
        forward: called as forward(*inputs.values()) → (y, cache). What is not differentiated (a scaling, token ids)
            goes into a lambda or functools.partial.
        backward: called as backward(dy, cache) → one gradient for each input, in their order; None to leave one out.
        inputs: name → float array. They are brought to float64 (and complex128 for the complex step).
        method: "complex-step", to 1e-12, or "central", to 1e-6.
        directions: how many random directions to try for each tensor.
        tolerance: the relative error above which a gradient is wrong.

    Returns a `GradcheckResult`; `.raise_if_wrong()` turns it into an assertion.
    Raises TypeError for an input that is not a float array, ValueError where backward returns the wrong number or
    shapes.
    """
    rng = np.random.default_rng([seed, STREAM])
    values = {}
    for name, x in inputs.items():
        if array_module(x) and x.dtype.kind != "f":
            raise TypeError(
                f"{name} has dtype {x.dtype}: only real float inputs have a gradient; bind others with a lambda"
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
        raise ValueError("backward returned no gradient at all: there is nothing to check")
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
    """Check a whole model: the loss's gradient for every trainable parameter, through all layers at once.

    The model itself is left as it was, in values, gradients and dtype. `dropout_seed` turns dropout on, with the same
    masks in every call (a fresh mask each time would make the loss a different function). Raises ValueError where
    nothing is trainable.
    """
    rng = np.random.default_rng([seed, STREAM])

    def dropout_rng() -> np.random.Generator | None:
        return None if dropout_seed is None else np.random.default_rng(dropout_seed)

    parameters = dict(model.named_parameters())
    kept = {name: (p.value, p.grad) for name, p in parameters.items()}
    trainable = [name for name, p in parameters.items() if p.trainable]
    if not trainable:
        raise ValueError("nothing is trainable: unfreeze a parameter, or add an adapter, before checking gradients")
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
    """Each gradient's projection on random directions, against the same projection by complex step or difference."""
    if method not in STEP:
        raise ValueError(f"method {method!r}; expected one of {sorted(STEP)}")
    if directions < 1:
        raise ValueError(f"directions = {directions}; expected at least 1")
    h, errors = STEP[method], {}
    for name, gradient in gradients.items():
        value, worst = values[name], 0.0
        if gradient.shape != value.shape:
            raise ValueError(f"the gradient of {name} has shape {gradient.shape}; {name} itself has {value.shape}")
        xp = array_module(value)
        for _ in range(directions):
            v = _normal(value.shape, value, rng)
            if method == "complex-step":
                derivative = float(scalar(name, value + 1j * h * v, "complex128").imag) / h
            else:
                up, down = (float(scalar(name, value + side * h * v, "float64")) for side in (1, -1))
                derivative = (up - down) / (2 * h)
            difference = abs(derivative - float((gradient * v).sum()))
            size = max(float(xp.sqrt((gradient**2).sum())), abs(derivative))
            worst = max(worst, difference / size if size > 0 else difference, key=lambda e: (e != e, e))
        errors[name] = worst
    return GradcheckResult(errors, method, TOLERANCE[method] if tolerance is None else tolerance)


def _normal(shape: tuple[int, ...], like: Array, rng: np.random.Generator) -> Array:
    """Standard normal numbers, drawn on the host and moved to where `like` lives."""
    return array_module(like).asarray(rng.standard_normal(shape))
