"""What PeftModel asks of a way to adapt. A new one is a file with a configuration class and a Method, and a line in methods.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..nn import Module, Parameter

if TYPE_CHECKING:
    from .model import PeftModel


class Method:
    """Seven things to do with an adapter of one kind, and two that are the same for most.

    A method keeps nothing: the adapters are in the PeftModel.

    An adapter of a method is used where a layer finds its name in `Context.adapter`, so whatever wraps a layer is off for every
    other name, and several methods can stand in one model.

    peft_type: what adapter_config.json calls it. decisive: the keys of that file without which the numbers mean something
    else; they are written beside the numbers too, so that two halves of two saves are not taken for one.
    mergeable: whether it is a change ΔW of weights, and its layers are WeightWrappers. own: the fields of its configuration that
    are no key of PEFT's, and of no account to the numbers: they are kept beside those.
    """

    peft_type: ClassVar[str]
    decisive: ClassVar[tuple[str, ...]] = ()
    mergeable: ClassVar[bool] = False
    own: ClassVar[tuple[str, ...]] = ()

    def add(self, peft_model: PeftModel, name: str, config: Any, seed: int) -> None:
        """Put a new adapter in, drawn by `seed`. Raises before anything has changed."""
        raise NotImplementedError

    def restore(self, peft_model: PeftModel, name: str, config: Any, arrays: Mapping[str, np.ndarray]) -> None:
        """Put in what `arrays` once wrote. Raises ValueError naming what does not fit, before anything has changed."""
        raise NotImplementedError

    def delete(self, peft_model: PeftModel, name: str) -> None:
        """Take it out, and whatever was there for it alone."""
        raise NotImplementedError

    def parameters(self, peft_model: PeftModel, name: str) -> Iterator[Parameter]:
        """All that is there for it, besides the base."""
        raise NotImplementedError

    def set_trainable(self, peft_model: PeftModel, name: str, trainable: bool) -> None:
        """Let all of it train, or none. For a method of which some stays frozen, to say which."""
        for p in self.parameters(peft_model, name):
            p.trainable = trainable
            if not trainable:
                p.grad = None

    def check_mixable(self, name: str, config: Any) -> None:
        """Raise ValueError, unless its layers take an `AdapterRows`, and leave the rows of other adapters alone."""
        raise ValueError(f"{name!r} has a {type(config).__name__}: its rows need a batch of their own")

    def arrays(self, peft_model: PeftModel, name: str) -> dict[str, np.ndarray]:
        """The tensors of its file by their keys, on the host."""
        raise NotImplementedError

    def settings(self, config: Any, model: Module) -> dict[str, Any]:
        """adapter_config.json's content, for an adapter of `model`."""
        raise NotImplementedError

    def config(self, settings: Mapping[str, Any]) -> Any:
        """The way back. Raises ValueError or TypeError naming what is not here or out of range."""
        raise NotImplementedError
