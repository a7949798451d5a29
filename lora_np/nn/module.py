"""Modules: named parameters around the pairs of `ops`, each as forward → (y, cache) and backward(dy, cache) → dx."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import copy
from itertools import groupby
from textwrap import indent
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from .. import ops
from ..backend import Array, array_module, device_module, move

RAN_FROZEN = "the forward ran while this was frozen, and kept nothing for its gradient: run it again, then the backward"

# What a layer's forward returns for its own backward. Only that layer opens it: a layer that takes its place has another one.
Cache: TypeAlias = Any


class Parameter:
    """An array with its gradient. `grad` is None until a backward adds to it, and always None while it is frozen."""

    __slots__ = ("grad", "trainable", "value")

    def __init__(self, value: Array, trainable: bool = True) -> None:
        array_module(value)  # raises for what is not an array
        self.value = value
        self.grad: Array | None = None
        self.trainable = trainable

    def __repr__(self) -> str:
        state = "trainable" if self.trainable else "frozen"
        grad = "no gradient" if self.grad is None else "has a gradient"
        return f"{type(self).__name__}(shape={self.value.shape}, dtype={self.value.dtype}, {state}, {grad})"

    @property
    def compute_dtype(self) -> np.dtype:
        """What is computed with, gradient included: the value's own dtype, or float32 for a value stored in 16 bits."""
        return self.value.dtype if self.value.dtype.itemsize > 2 else np.dtype("float32")

    def check_trainable(self) -> None:
        """Raise ValueError where it is of a kind that cannot train."""

    def add_grad(self, grad: Array | None) -> None:
        """grad += …: gradients accumulate over calls, until `zero_grad`.

        Raises ValueError or TypeError where shape or dtype are not the value's, RuntimeError for None: a forward that ran while
        it was frozen kept nothing to make a gradient of.
        """
        if grad is None:
            raise RuntimeError(RAN_FROZEN)
        if grad.shape != self.value.shape:
            raise ValueError(f"a gradient of shape {grad.shape} for a parameter of shape {self.value.shape}")
        if grad.dtype != self.compute_dtype:
            raise TypeError(
                f"a gradient of {grad.dtype} for a parameter of {self.compute_dtype}: is dlogits of its dtype?"
            )
        if self.grad is None:
            self.grad = grad
        else:
            self.grad += grad

    def check(self, name: str, value: Array) -> None:
        """Raise ValueError or TypeError naming the parameter unless `value` has its shape and is floats."""
        ops.checks.check_shape(name, value, *self.value.shape)
        if value.dtype.kind != "f":
            raise TypeError(f"{name} is stored as {value.dtype}; expected floats")

    def move_to(self, like: Array) -> None:
        """Move the value to where `like` lives, and drop the gradient."""
        self.value, self.grad = move(self.value, like), None


class Module:
    """A tree of parameters. Children are found in attributes: a Parameter, a Module, or a list or dict of either.

    `print(module)` shows the tree, and a notebook folds it. `module(…)` is `forward(…)` without its cache.
    """

    forward: Callable[..., tuple[Any, Any]]  # (…) → (y, what the backward needs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What `forward` computes from these arguments, without its cache: y of a layer, the logits of a model."""
        return self.forward(*args, **kwargs)[0]

    def extra_repr(self) -> str:
        """The sizes and settings that `print(module)` shows: here the shapes of its own parameters. A subclass may say more."""
        return ", ".join(f"{name}={p.value.shape}" for name, p in self.children() if isinstance(p, Parameter))

    def __repr__(self) -> str:
        """The tree of modules, as PyTorch prints it. Equal neighbours in a list are one entry: (layers.0-29): 30 x Block(…)."""
        lines = [self.extra_repr()]
        modules = [(name, repr(child)) for name, child in self.children() if isinstance(child, Module)]
        for (stem, text), group in groupby(modules, lambda item: (re.sub(r"\.\d+$", ".", item[0]), item[1])):
            name, *others = (name for name, _ in group)
            if others:
                name, text = f"{name}-{others[-1].removeprefix(stem)}", f"{len(others) + 1} x {text}"
            lines.append(f"({name}): {text}")
        inside = "\n".join(filter(None, lines))
        if modules:
            inside = f"\n{indent(inside, '  ')}\n"
        return f"{type(self).__name__}({inside})"

    def _repr_html_(self) -> str:
        """The same in a notebook, which can fold it: plain text, in the page's own colours."""
        from html import escape  # here, so that importing the package does not wait for its tables

        sizes = [(p.value.size, p.trainable) for _, p in self.named_parameters()]
        trainable = sum(size for size, trains in sizes if trains)
        summary = f"{type(self).__name__}: {sum(size for size, _ in sizes):,} parameters, {trainable:,} trainable"
        return f"<details open><summary>{summary}</summary><pre>{escape(repr(self))}</pre></details>"

    def children(self) -> Iterator[tuple[str, Parameter | Module]]:
        """(name, child) in the order of the attributes; an item of a list or dict is called `attribute.key`."""
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Module):
                yield name, value
            elif isinstance(value, list | dict):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                for key, item in items:
                    if isinstance(item, Parameter | Module):
                        yield f"{name}.{key}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, under their dotted names."""
        yield prefix, self
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, Parameter) in forward order; a parameter that two places share comes once, under its first name."""
        seen = set()
        for prefix, module in self.named_modules():
            for name, child in module.children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield f"{prefix}.{name}" if prefix else name, child

    @property
    def trainable(self) -> bool:
        """Whether any parameter here or below is trainable: if none is, a backward has nothing to do but pass dx on."""
        return any(p.trainable for _, p in self.named_parameters())

    def freeze(self) -> Self:
        """Make every parameter frozen, and drop its gradient."""
        for _, p in self.named_parameters():
            p.trainable, p.grad = False, None
        return self

    def unfreeze(self) -> Self:
        """Make every parameter trainable: full fine-tuning. Raises ValueError where one is quantised, and changes nothing then."""
        parameters = [p for _, p in self.named_parameters()]
        for p in parameters:
            p.check_trainable()
        for p in parameters:
            p.trainable = True
        return self

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for _, p in self.named_parameters():
            p.grad = None

    def astype(self, dtype: DTypeLike) -> Self:
        """Convert every parameter in place: float32 to train, float64 to prove. Gradients are dropped."""
        for _, p in self.named_parameters():
            p.value, p.grad = p.value.astype(dtype), None
        return self

    def to(self, device: str) -> Self:
        """Move every parameter to "cupy", "numpy" or "auto", in place. Gradients are dropped.

        Raises RuntimeError with the reason where there is no GPU for cupy, before anything has moved.
        """
        like = device_module(device).empty(0)
        for _, p in self.named_parameters():
            p.move_to(like)
        return self

    def replica(self) -> Self:
        """The same model with gradients of its own: its parameters hold this one's arrays, not copies of them.

        Two threads can then each run a backward, a batch each (see `parallel`).
        """
        twins: dict[int, Parameter] = {}  # a parameter that two places share is shared in the replica too

        def twin(x: Any) -> Any:
            if isinstance(x, Parameter):
                return twins.setdefault(id(x), type(x)(x.value, x.trainable))
            if isinstance(x, Module):
                new = copy(x)
                vars(new).update({name: twin(value) for name, value in vars(x).items()})
                return new
            if isinstance(x, list):
                return [twin(item) for item in x]
            return {key: twin(item) for key, item in x.items()} if isinstance(x, dict) else x

        return twin(self)

    def state_dict(self) -> dict[str, Array]:
        """name → array (not a copy) for every parameter."""
        return {name: p.value for name, p in self.named_parameters()}

    def load_state_dict(self, arrays: dict[str, Array]) -> Self:
        """Put copies of `arrays` in place, each name and shape checked first, so that a refusal changes nothing.

        Raises KeyError naming what is missing and what has no place, ValueError for a wrong shape.
        """
        parameters = dict(self.named_parameters())
        missing, unknown = sorted(parameters.keys() - arrays.keys()), sorted(arrays.keys() - parameters.keys())
        if missing or unknown:
            raise KeyError(
                f"these arrays do not fit the model: missing {missing or 'none'}; with no place {unknown or 'none'}"
            )
        for name, p in parameters.items():
            p.check(name, arrays[name])
        for name, p in parameters.items():
            like, p.value = p.value, arrays[name].astype(p.value.dtype)
            p.move_to(like)
        return self


class Trainable(Protocol):
    """What `train`, `evaluate` and `gradcheck_model` require of a model: a Transformer, a PeftModel and a SubspaceModel have it."""

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...

    def zero_grad(self) -> None: ...

    def replica(self) -> Self: ...

    def loss(self, tokens: Array, targets: Array, *, rng: np.random.Generator | None = None) -> tuple[Array, Cache]: ...

    def backward(self, cache: Cache, dloss: float = 1.0) -> None: ...


def replace_module(root: Module, name: str, new: Module) -> None:
    """Put `new` where the dotted `name` points."""
    *path, last = name.split(".")
    parent: Any = root
    for step in path:
        parent = parent[int(step)] if isinstance(parent, list) else getattr(parent, step)
    setattr(parent, last, new)
