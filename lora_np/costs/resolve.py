"""What the functions of costs are called with: a model on paper with a configuration, or a live model as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeAlias, TypeVar

from ..nn import Module, Trainable
from ..peft.config import PeftConfig
from ..peft.registry import method_of
from .architecture import Architecture, architecture_of
from .live import LiveModel
from .planned import PlannedModel
from .structure import ModelStructure

# A name in MODELS, an architecture of your own, a live model
Model: TypeAlias = str | Architecture | Module | Trainable
P = ParamSpec("P")
T = TypeVar("T")


def with_usage_in_errors(function: Callable[P, T]) -> Callable[P, T]:
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


def resolve_model(
    model: Model, config: PeftConfig | None = None, quantize: str | None = None
) -> PlannedModel | LiveModel:
    """The model to count. Raises ValueError for an unknown name and for settings of a live model, TypeError for no model."""
    if isinstance(model, str):
        model = architecture_of(model)
    if isinstance(model, Architecture):
        return PlannedModel(model, config, quantize)
    if not isinstance(model, Module):
        raise TypeError(f"expected a model's name, an Architecture or a model, got {type(model).__name__}")
    if config is not None or quantize is not None:
        raise ValueError(LIVE_MODEL_ERROR)
    return LiveModel(model)


LIVE_MODEL_ERROR = (
    "a live model is counted as it is: call get_peft_model(model, config) or quantize_model(model) first, "
    "and give the model alone"
)


@with_usage_in_errors
def model_structure(model: Model, config: PeftConfig | None = None, *, quantize: str | None = None) -> ModelStructure:
    """The layers of a model as a training step meets them. The arguments and errors are those of `memory`."""
    return resolve_model(model, config, quantize).structure()
