"""What the functions of costs are called with: a model on paper with a configuration, or a live model as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeAlias, TypeVar

from ..nn import Module, Trainable
from ..peft.config import PeftConfig
from ..peft.registry import method_of
from .anatomy import Anatomy
from .architecture import Architecture, architecture_of
from .live import Live
from .paper import OnPaper

# A name in MODELS, an architecture of your own, a live model
Model: TypeAlias = str | Architecture | Module | Trainable
P = ParamSpec("P")
T = TypeVar("T")


def shows_its_call(function: Callable[P, T]) -> Callable[P, T]:
    """`function(model, config=None, *, …)`, with a TypeError that shows how to call it where it was called otherwise."""
    signature = inspect.signature(function)
    required = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    example = ", ".join(['"llama-2-7b"', "ln.LoraConfig(r=8)", *(f"{name}=…" for name in required)])

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            config = signature.bind(*args, **kwargs).arguments.get("config")
            if config is not None:
                method_of(config)  # raises TypeError for what is not a configuration
        except TypeError as error:
            raise TypeError(f"{error}; for example costs.{function.__name__}({example})") from None
        return function(*args, **kwargs)

    return called


def subject_of(model: Model, config: PeftConfig | None = None, quantize: str | None = None) -> OnPaper | Live:
    """The model to count. Raises ValueError for an unknown name and for settings of a live model, TypeError for no model."""
    if isinstance(model, str):
        model = architecture_of(model)
    if isinstance(model, Architecture):
        return OnPaper(model, config, quantize)
    if not isinstance(model, Module):
        raise TypeError(f"expected a model's name, an Architecture or a model, got {type(model).__name__}")
    if config is not None or quantize is not None:
        raise ValueError(AS_IT_IS)
    return Live(model)


AS_IT_IS = (
    "a live model is counted as it is: call get_peft_model(model, config) or quantize_model(model) first, "
    "and give the model alone"
)


@shows_its_call
def anatomy(model: Model, config: PeftConfig | None = None, *, quantize: str | None = None) -> Anatomy:
    """The layers of a model as a training step meets them. The arguments and errors are those of `memory`."""
    return subject_of(model, config, quantize).anatomy()
