"""Optimizers: SGD and AdamW.

The state of an optimizer is a dict with parameter names as keys, so that the state can be saved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Self

from ..backend import Array, array_module, device_module, move
from ..nn import Parameter

Named = Iterable[tuple[str, Parameter]]


@dataclass
class Optimizer:
    """Base class of SGD and AdamW.

    Parameters
    ----------
    lr : float
        The learning rate.
    lr_ratio : dict of str to float
        Factors that multiply the learning rate of some parameters. A key is a component of a parameter's name. For
        example, {"lora_B": 16} gives LoRA+ (Hayou et al. 2024, arXiv 2402.12354). If several keys match, the first key
        applies.
    state : dict
        The arrays of the optimizer, such as m and v, as {parameter name: {array name: array}}.

    Raises
    ------
    ValueError
        If a setting is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> model = ln.load_model("tiny", device="numpy")
    >>> optimizer = ln.AdamW(lr=1e-3)
    >>> tokens = ln.data.encode("LoRA")[None]
    >>> loss, cache = model.loss(tokens[:, :-1], tokens[:, 1:])
    >>> model.backward(cache)
    >>> optimizer.step(model.named_parameters())
    >>> optimizer.zero_grad(model.named_parameters())
    >>> bool(model.loss(tokens[:, :-1], tokens[:, 1:])[0] < loss)
    True
    """

    lr: float = 1e-3
    lr_ratio: Mapping[str, float] = field(default_factory=dict, repr=False, kw_only=True)
    state: dict[str, dict[str, Array]] = field(default_factory=dict, repr=False, kw_only=True)
    t: int = field(default=0, init=False, repr=False)  # number of updates so far

    def step(self, parameters: Named, lr: float | None = None, *, t: int | None = None) -> None:
        """Update every trainable parameter that has a gradient, in place.

        Parameters
        ----------
        parameters : iterable of (str, Parameter)
            Pairs of name and parameter, as in `model.named_parameters()`.
        lr : float, optional
            The learning rate of this update; the default is the optimizer's `lr`.
        t : int, optional
            The number of this update, counted from 1. By default, each call is one update. Pass `t` if one update needs
            several calls.
        """
        lr, self.t = self.lr if lr is None else lr, self.t + 1 if t is None else t
        for name, p in parameters:
            if p.trainable and p.grad is not None:
                value = _full(p, name, self.state)
                self._update(name, value, p.grad, self.lr_of(name, lr))
                if value is not p.value:
                    p.value[...] = value.astype(p.value.dtype)  # rounded

    def _update(self, name: str, value: Array, g: Array, eta: float) -> None:
        """Update the value of one parameter in place, given its gradient g and the learning rate η."""
        raise NotImplementedError

    def zero_grad(self, parameters: Named) -> None:
        """Set all gradients to None. Without this call, `backward` would add to the gradients of the last step.

        Parameters
        ----------
        parameters : iterable of (str, Parameter)
            Pairs of name and parameter, as in `model.named_parameters()`.
        """
        for _, p in parameters:
            p.grad = None

    def lr_of(self, name: str, lr: float) -> float:
        """Return the learning rate of one parameter, with its factor from `lr_ratio`.

        Parameters
        ----------
        name : str
            The name of the parameter.
        lr : float
            The learning rate of the step.

        Returns
        -------
        float
            `lr` times the factor of the first key of `lr_ratio` that matches `name`, or `lr` if no key matches.
        """
        return lr * next((ratio for part, ratio in self.lr_ratio.items() if f".{part}." in f".{name}."), 1.0)

    def _check_settings(self, **not_negative: float) -> None:
        for name, value in not_negative.items():
            if not isinstance(value, Real):
                raise TypeError(f"{name} is a {type(value).__name__}; expected a number. Pass the parameters to step()")
            if not value >= 0:
                raise ValueError(f"{name} = {value}; expected a number ≥ 0")
        for part, ratio in self.lr_ratio.items():
            if not ratio > 0:
                raise ValueError(f"lr_ratio[{part!r}] = {ratio}; expected a number > 0")

    def check(self, names: Iterable[str]) -> None:
        """Check that every key of `lr_ratio` matches a parameter.

        Parameters
        ----------
        names : iterable of str
            The names of the trainable parameters.

        Raises
        ------
        ValueError
            If a key matches no name.
        """
        names = list(names)
        for part in self.lr_ratio:
            if not any(f".{part}." in f".{name}." for name in names):
                raise ValueError(
                    f"lr_ratio key {part!r} matches no trainable parameter; a key is a whole component of a name such as "
                    f"{names[0]!r}"
                )

    def to(self, device: str) -> Self:
        """Move the state of the optimizer to another device. Call this method after the model was moved to that device.

        Parameters
        ----------
        device : {"auto", "numpy", "cupy"}
            As in `Module.to`.

        Returns
        -------
        Optimizer
            This optimizer.

        Raises
        ------
        RuntimeError
            If device is "cupy" and no GPU is available.
        """
        like = device_module(device).empty(0)
        for slots in self.state.values():
            slots.update({name: move(x, like) for name, x in slots.items()})
        return self


def _full(p: Parameter, name: str, state: dict[str, dict[str, Array]]) -> Array:
    """Return the array that the optimizer updates: the value of p, or a float32 copy if the value has 16 bits.

    The copy is in the optimizer state. In 16 bits, an update that is much smaller than the weight is lost by rounding.
    In the float32 copy, such updates add up (arXiv 1710.03740, section 3.1).
    """
    if p.value.dtype == p.compute_dtype:
        return p.value
    slots = state.setdefault(name, {})
    if "full" not in slots:
        slots["full"] = p.value.astype(p.compute_dtype)
    return slots["full"]


@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent with momentum and L2 weight decay, as in PyTorch.

        g ← g + λθ,   u ← μu + g,   θ ← θ − ηu

    Parameters
    ----------
    lr : float
        The learning rate η.
    momentum : float
        The momentum factor μ.
    weight_decay : float
        The weight decay λ.
    lr_ratio : dict of str to float
        Factors that multiply the learning rate of some parameters. A key is a component of a parameter's name.
    state : dict
        The array u of each parameter, if momentum > 0.

    Raises
    ------
    ValueError
        If a setting is negative.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> p = ln.nn.Parameter(np.array([1.0, 2.0]))
    >>> p.grad = np.array([10.0, -10.0])
    >>> ln.SGD(lr=0.01).step([("p", p)])
    >>> p.value.tolist()
    [0.9, 2.1]
    """

    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._check_settings(lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)

    def _update(self, name: str, value: Array, g: Array, eta: float) -> None:
        g = g + self.weight_decay * value if self.weight_decay else g
        if self.momentum:
            slots = self.state.setdefault(name, {})
            if "u" not in slots:
                slots["u"] = g.copy()
            else:
                slots["u"] *= self.momentum
                slots["u"] += g
            g = slots["u"]
        value -= eta * g


@dataclass
class AdamW(Optimizer):
    """Adam with decoupled weight decay.

        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²
        θ ← θ − η λ θ − η · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)

    Parameters
    ----------
    lr : float
        The learning rate η.
    betas : tuple of (float, float)
        The factors β₁ and β₂ of the moving averages m and v.
    eps : float
        The small number ε in the denominator.
    weight_decay : float
        The weight decay λ; the default is the same as in PyTorch.
    lr_ratio : dict of str to float
        Factors that multiply the learning rate of some parameters. A key is a component of a parameter's name. For
        example, {"lora_B": 16} gives LoRA+.
    state : dict
        The arrays m and v of each parameter.

    Raises
    ------
    ValueError
        If a setting is out of range.

    References
    ----------
    Kingma and Ba 2015; Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> p = ln.nn.Parameter(np.array([1.0, 2.0]))
    >>> p.grad = np.array([10.0, -0.1])
    >>> ln.AdamW(lr=0.01, weight_decay=0).step([("p", p)])
    >>> p.value.round(6).tolist()
    [0.99, 2.01]
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        self._check_settings(lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {self.betas}; expected two numbers in [0, 1)")

    def _update(self, name: str, value: Array, g: Array, eta: float) -> None:
        xp, slots = array_module(value), self.state.setdefault(name, {})
        beta1, beta2 = self.betas
        if "m" not in slots:
            slots |= {"m": xp.zeros_like(g), "v": xp.zeros_like(g)}
        m, v = slots["m"], slots["v"]
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * g * g
        update = xp.sqrt(v)
        update *= 1 / math.sqrt(1 - beta2**self.t)
        update += self.eps
        xp.divide(m, update, out=update)
        update *= eta / (1 - beta1**self.t)
        if self.weight_decay:
            value *= 1 - eta * self.weight_decay
        value -= update
