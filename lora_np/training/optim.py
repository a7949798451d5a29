"""Optimizers, schedules and clipping, on named parameters. The state is keyed by name, so that it can be saved and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Self

from ..backend import Array, array_module, device_module, move
from ..nn import Parameter

Named = Iterable[tuple[str, Parameter]]
Schedule = Callable[[int], float]


@dataclass
class Optimizer:
    """What every optimizer has: a learning rate, a count of updates, and a state, name → slot → array.

        loss, cache = model.loss(tokens, targets)
        model.backward(cache)
        optimizer.step(model.named_parameters())
        optimizer.zero_grad(model.named_parameters())

    lr_ratio: a part of a parameter's dotted name → a factor > 0 on lr; the first that is there counts. {"lora_B": 16} is LoRA+
        (Hayou et al. 2024, arXiv 2402.12354), where B, which starts at 0, learns faster than A.
    """

    lr: float = 1e-3
    lr_ratio: Mapping[str, float] = field(default_factory=dict, repr=False, kw_only=True)
    state: dict[str, dict[str, Array]] = field(default_factory=dict, repr=False, kw_only=True)
    t: int = field(default=0, init=False, repr=False)  # how many updates have been made

    def step(self, parameters: Named, lr: float | None = None, *, t: int | None = None) -> None:
        """Update every trainable parameter that has a gradient, in place.

        lr: for this update; None: the optimizer's own. t: its number, from 1, if one update takes several calls; None counts on.
        """
        lr, self.t = self.lr if lr is None else lr, self.t + 1 if t is None else t
        for name, p in parameters:
            if p.trainable and p.grad is not None:
                value = _full(p, name, self.state)
                self._update(name, value, p.grad, self.lr_of(name, lr))
                if value is not p.value:
                    p.value[...] = value.astype(p.value.dtype)  # rounded

    def _update(self, name: str, value: Array, g: Array, eta: float) -> None:
        """Update one parameter's value in place by its gradient g, at the learning rate η."""
        raise NotImplementedError

    def zero_grad(self, parameters: Named) -> None:
        """Drop the gradients: `backward` adds to those that are there."""
        for _, p in parameters:
            p.grad = None

    def lr_of(self, name: str, lr: float) -> float:
        """The learning rate of one parameter, where that of the step is `lr`."""
        return lr * next((ratio for part, ratio in self.lr_ratio.items() if f".{part}." in f".{name}."), 1.0)

    def _check_settings(self, **not_negative: float) -> None:
        for name, value in not_negative.items():
            if not isinstance(value, Real):
                raise TypeError(
                    f"{name} is a {type(value).__name__}; expected a number: parameters are given to step(), not kept"
                )
            if not value >= 0:
                raise ValueError(f"{name} = {value}; expected a number ≥ 0")
        for part, ratio in self.lr_ratio.items():
            if not ratio > 0:
                raise ValueError(f"lr_ratio[{part!r}] = {ratio}; expected a number > 0: at 0 it would not train")

    def check(self, names: Iterable[str]) -> None:
        """Raise ValueError where a part in `lr_ratio` is in none of the names: it would change nothing."""
        names = list(names)
        for part in self.lr_ratio:
            if not any(f".{part}." in f".{name}." for name in names):
                raise ValueError(f"lr_ratio: nothing that trains has {part!r} in its name, as {names[0]} has its parts")

    def to(self, device: str) -> Self:
        """Move the state to "cupy", "numpy" or "auto", beside a model that was moved. Raises as `Module.to` does."""
        like = device_module(device).empty(0)
        for slots in self.state.values():
            slots.update({name: move(x, like) for name, x in slots.items()})
        return self


def _full(p: Parameter, name: str, state: dict[str, dict[str, Array]]) -> Array:
    """The array to update: p's value, or where that has 16 bits a float32 copy, kept in the state.

    An update much smaller than its weight would be rounded away each time; here such updates add up (arXiv 1710.03740, 3.1).
    """
    if p.value.dtype == p.compute_dtype:
        return p.value
    slots = state.setdefault(name, {})
    if "full" not in slots:
        slots["full"] = p.value.astype(p.compute_dtype)
    return slots["full"]


@dataclass
class SGD(Optimizer):
    """Stochastic gradient descent with momentum and L2 weight decay, as PyTorch writes it.

        g ← g + λθ,   u ← μu + g,   θ ← θ − ηu

    lr is η, momentum μ, weight_decay λ. Raises ValueError for a negative setting.
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
    """Adam with decoupled weight decay (Kingma and Ba 2015; Loshchilov and Hutter 2019, arXiv 1711.05101, algorithm 2).

        m ← β₁m + (1 − β₁)g,   v ← β₂v + (1 − β₂)g²
        θ ← θ − η λ θ − η · m/(1 − β₁ᵗ) / (√(v/(1 − β₂ᵗ)) + ε)

    lr is η, weight_decay λ (PyTorch's default 0.01). Raises ValueError for a setting out of range.
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


@dataclass(frozen=True)
class WarmupCosine:
    """The factor on the learning rate: linear from 0 to 1 over `warmup` steps, then a half cosine down to `floor`.

    Step 0 already moves (factor 1/warmup), and step `steps − 1` comes out just above `floor`.
    """

    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup <= self.steps or not 0 <= self.floor <= 1:
            raise ValueError(
                f"warmup {self.warmup} of {self.steps} steps, floor {self.floor}: need 0 ≤ warmup ≤ steps, 0 ≤ floor ≤ 1"
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(step: int) -> float:
    """The schedule without a schedule: always 1."""
    return 1.0


def grad_norm(parameters: Named) -> Array:
    """‖g‖₂ over all gradients together, as a 0-d array where the gradients live. Raises ValueError where there is none."""
    squares = [(p.grad * p.grad).sum() for _, p in parameters if p.grad is not None]
    if not squares:
        raise ValueError("no parameter has a gradient: is anything trainable, and was backward called?")
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return total**0.5


def clip_grad_norm(parameters: Named, max_norm: float) -> Array:
    """Scale all gradients by min(1, max_norm/‖g‖), in place; returns ‖g‖ before clipping, as PyTorch does.

    Raises ValueError unless max_norm > 0: a negative one would turn the gradients round.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm = {max_norm}; expected a number > 0, or no clipping")
    parameters = list(parameters)
    norm = grad_norm(parameters)
    factor = (max_norm / (norm + 1e-6)).clip(None, 1.0)  # a number on the device: nobody waits for it
    for _, p in parameters:
        if p.grad is not None:
            p.grad *= factor
    return norm
