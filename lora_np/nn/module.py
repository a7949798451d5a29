"""Modules: trees of parameters. `forward(…)` returns (y, cache), and `backward(dy, cache)` returns dx."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from copy import copy
from itertools import groupby
from textwrap import indent
from typing import Any, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array, device_module
from .parameter import Parameter

# The object that a layer's forward returns for its own backward. Each kind of layer has its own type of cache.
Cache: TypeAlias = Any


class Module:
    """A tree of parameters.

    The children of a module are the Parameters and Modules among its attributes, including the items of lists and
    dicts. `print(module)` shows the tree. `module(…)` returns the first result of `forward(…)`, without the cache.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.nn import Linear, Module
    >>> class MLP(Module):
    ...     def __init__(self):
    ...         self.up, self.down = Linear(np.zeros((8, 2))), Linear(np.zeros((2, 8)))
    >>> [name for name, p in MLP().named_parameters()]
    ['up.weight', 'down.weight']
    >>> MLP()
    MLP(
      (up): Linear(in_features=2, out_features=8, bias=False)
      (down): Linear(in_features=8, out_features=2, bias=False)
    )
    """

    forward: Callable[..., tuple[Any, Any]]  # (…) → (y, cache)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first result of `forward`, without the cache: a layer's output or a model's logits."""
        return self.forward(*args, **kwargs)[0]

    def extra_repr(self) -> str:
        """Return the sizes and settings that `print(module)` shows in parentheses. A subclass may override this method.

        Returns
        -------
        str
            The text. By default, the text lists the shapes of the module's own parameters.
        """
        return ", ".join(f"{name}={p.value.shape}" for name, p in self.children() if isinstance(p, Parameter))

    def __repr__(self) -> str:
        """Return the tree of modules as text, in PyTorch's format.

        Consecutive equal modules are printed once, for example `(layers.0-29): 30 x Block`.
        """
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
        """Return the tree as collapsible HTML for a notebook, with the number of parameters as the title."""
        from html import escape  # imported here, because it slows down the import of the package

        sizes = [(p.value.size, p.trainable) for _, p in self.named_parameters()]
        trainable = sum(size for size, trains in sizes if trains)
        summary = f"{type(self).__name__}: {sum(size for size, _ in sizes):,} parameters, {trainable:,} trainable"
        return f"<details open><summary>{summary}</summary><pre>{escape(repr(self))}</pre></details>"

    def children(self) -> Iterator[tuple[str, Parameter | Module]]:
        """Yield the direct children in the order of the attributes.

        Yields
        ------
        name : str
            The name of the attribute. For an item of a list or dict, the name is `attribute.key`.
        child : Parameter or Module
            The child.
        """
        for name, value in vars(self).items():
            if isinstance(value, Parameter | Module):
                yield name, value
            elif isinstance(value, list | dict):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                for key, item in items:
                    if isinstance(item, Parameter | Module):
                        yield f"{name}.{key}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """Yield this module and all modules below it.

        Parameters
        ----------
        prefix : str
            The name of this module, which is put before the names of the modules below it.

        Yields
        ------
        name : str
            The dotted name, for example "model.layers.0.mlp".
        module : Module
            The module.
        """
        yield prefix, self
        for name, child in self.children():
            if isinstance(child, Module):
                yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters in the order of the forward pass.

        Yields
        ------
        name : str
            The dotted name. A parameter that occurs twice (tied weights) is yielded once, under its first name.
        parameter : Parameter
            The parameter.
        """
        seen = set()
        for prefix, module in self.named_modules():
            for name, child in module.children():
                if isinstance(child, Parameter) and id(child) not in seen:
                    seen.add(id(child))
                    yield f"{prefix}.{name}" if prefix else name, child

    @property
    def trainable(self) -> bool:
        """True if a parameter of this module, or of a module below it, is trainable."""
        return any(child.trainable for _, child in self.children())

    def freeze(self) -> Self:
        """Freeze every parameter, and set its gradient to None.

        Returns
        -------
        Module
            This module.
        """
        for _, p in self.named_parameters():
            p.trainable, p.grad = False, None
        return self

    def unfreeze(self) -> Self:
        """Make every parameter trainable, for full fine-tuning.

        Returns
        -------
        Module
            This module.

        Raises
        ------
        ValueError
            If a parameter is quantised. In this case no parameter has been changed.
        """
        parameters = [p for _, p in self.named_parameters()]
        for p in parameters:
            p.check_trainable()
        for p in parameters:
            p.trainable = True
        return self

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for _, p in self.named_parameters():
            p.grad = None

    def astype(self, dtype: DTypeLike) -> Self:
        """Convert every parameter to a dtype in place, and set all gradients to None.

        Parameters
        ----------
        dtype : DTypeLike
            The dtype: float32 for training, float64 for gradient checks.

        Returns
        -------
        Module
            This module.
        """
        for _, p in self.named_parameters():
            p.value, p.grad = p.value.astype(dtype), None
        return self

    def to(self, device: str) -> Self:
        """Move every parameter to a device in place, and set all gradients to None.

        Parameters
        ----------
        device : {"cupy", "numpy", "auto"}
            The device; "auto" means the GPU if there is one.

        Returns
        -------
        Module
            This module.

        Raises
        ------
        RuntimeError
            If `device` is "cupy" and CuPy cannot use a GPU. The message gives the reason. In this case no parameter has
            been moved.
        """
        like = device_module(device).empty(0)
        for _, p in self.named_parameters():
            p.move_to(like)
        return self

    def replica(self) -> Self:
        """Return a copy of the module. The copy shares the parameters' arrays and has its own gradients.

        Two threads can then run a backward pass at the same time, each with its own copy of the module (see
        `training/parallel.py`).

        Returns
        -------
        Module
            The copy.
        """
        copies: dict[int, Parameter] = {}  # a parameter that occurs twice (tied weights) is copied once

        def replicate(x: Any) -> Any:
            if isinstance(x, Parameter):
                return copies.setdefault(id(x), type(x)(x.value, x.trainable))
            if isinstance(x, Module):
                new = copy(x)
                vars(new).update({name: replicate(value) for name, value in vars(x).items()})
                return new
            if isinstance(x, list):
                return [replicate(item) for item in x]
            return {key: replicate(item) for key, item in x.items()} if isinstance(x, dict) else x

        replica = replicate(self)
        copies.clear()  # `replicate` refers to itself and to `copies`, so it would keep all gradients until the next gc.collect
        return replica

    def state_dict(self) -> dict[str, Array]:
        """Return the arrays of all parameters by name.

        Returns
        -------
        dict of str to ndarray
            The parameters' own arrays, not copies.
        """
        return {name: p.value for name, p in self.named_parameters()}

    def load_state_dict(self, arrays: dict[str, Array]) -> Self:
        """Set every parameter to a copy of the array of the same name.

        All names and shapes are checked first. If a name or a shape is wrong, no parameter changes.

        Parameters
        ----------
        arrays : dict of str to ndarray
            One array per parameter, by name.

        Returns
        -------
        Module
            This module.

        Raises
        ------
        KeyError
            If a name is missing or unknown.
        ValueError
            If an array does not have the shape of its parameter.
        """
        parameters = dict(self.named_parameters())
        missing, unknown = sorted(parameters.keys() - arrays.keys()), sorted(arrays.keys() - parameters.keys())
        if missing or unknown:
            raise KeyError(
                f"the arrays' names do not fit the model: missing {missing or 'none'}; unknown {unknown or 'none'}"
            )
        for name, p in parameters.items():
            p.check(name, arrays[name])
        for name, p in parameters.items():
            like, p.value = p.value, arrays[name].astype(p.value.dtype)
            p.move_to(like)
        return self


class Trainable(Protocol):
    """The methods that `train`, `evaluate` and `gradcheck_model` call on a model.

    Transformer, PeftModel and SubspaceModel have these methods. Any other class with these methods can be trained too.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> from lora_np.nn import Trainable
    >>> model: Trainable = ln.load_model("tiny")
    >>> loss, cache = model.loss(np.array([[72, 101]]), np.array([[101, 108]]))  # "He" → "el"
    >>> model.backward(cache)
    """

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """Yield all parameters.

        Yields
        ------
        name : str
            The dotted name.
        parameter : Parameter
            The parameter.
        """
        ...

    def zero_grad(self) -> None:
        """Set all gradients to None."""

    def replica(self) -> Self:
        """Return a copy of the model. The copy shares the parameters' arrays and has its own gradients.

        Returns
        -------
        Trainable
            The copy.
        """
        ...

    def loss(self, tokens: Array, targets: Array, *, rng: np.random.Generator | None = None) -> tuple[Array, Cache]:
        """Compute the loss of a batch.

        Parameters
        ----------
        tokens : ndarray, shape (b, t), integers
            The input tokens.
        targets : ndarray, shape (b, t), integers
            The next token at each position, or -100 for a position that is not counted in the loss.
        rng : numpy.random.Generator, optional
            The generator of dropout masks. None means evaluation, without dropout.

        Returns
        -------
        loss : ndarray, shape ()
            The mean loss in nats per token.
        cache : Any
            The first argument of `backward`.
        """
        ...

    def backward(self, cache: Cache, dloss: float = 1.0) -> None:
        """Add the gradient of the loss to `grad` of each trainable parameter.

        Parameters
        ----------
        cache : Any
            The cache that `loss` returned.
        dloss : float
            A factor that multiplies all gradients.
        """


def replace_module(root: Module, name: str, new: Module) -> None:
    """Replace the module `name` of a model by another module.

    Parameters
    ----------
    root : Module
        The model, changed in place.
    name : str
        The dotted name of the old module, for example "model.layers.0.mlp.up_proj".
    new : Module
        The new module.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np.nn import replace_module
    >>> model = ln.load_model("tiny")
    >>> name = "model.layers.0.mlp.up_proj"
    >>> weight = dict(model.named_modules())[name].weight.value
    >>> replace_module(model, name, ln.Linear(2 * weight))
    """
    *path, last = name.split(".")
    parent: Any = root
    for step in path:
        parent = parent[int(step)] if isinstance(parent, list) else getattr(parent, step)
    setattr(parent, last, new)
