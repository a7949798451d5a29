"""Resolves the arguments (model, config, quantize) of the functions in `costs` to a PlannedModel or a LiveModel."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeAlias, TypeVar

from ..nn import Module, Trainable
from ..peft.config import PeftConfig
from ..peft.registry import method_of
from .architecture import Architecture
from .live import LiveModel
from .planned import PlannedModel
from .published import architecture_named
from .structure import ModelStructure

# A name in MODELS or PUBLISHED, the path of a config.json, an architecture, or a model in memory
Model: TypeAlias = str | Architecture | Module | Trainable
P = ParamSpec("P")
T = TypeVar("T")


def with_usage_in_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Return a copy of `function` that adds an example of a correct call to the message of each TypeError."""
    signature = inspect.signature(function)
    required = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    example = ", ".join(['"llama-2-7b"', "ln.LoraConfig(r=8)", *(f"{name}=…" for name in required)])

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            config = signature.bind(*args, **kwargs).arguments.get("config")
            if config is not None:
                method_of(config)  # raises TypeError if it is not a configuration
        except TypeError as error:
            raise TypeError(f"{error}; for example costs.{function.__name__}({example})") from None
        return function(*args, **kwargs)

    return called


def resolve_model(
    model: Model, config: PeftConfig | None = None, quantize: str | None = None
) -> PlannedModel | LiveModel:
    """Return the PlannedModel or the LiveModel that the arguments describe.

    Raises ValueError if the name is unknown, or if `config` or `quantize` is given for a model in memory. Raises
    TypeError if `model` has another type.
    """
    if isinstance(model, str):
        model = architecture_named(model)
    if isinstance(model, Architecture):
        return PlannedModel(model, config, quantize)
    if not isinstance(model, Module):
        raise TypeError(f"expected a name in costs.MODELS, an Architecture or a model, got {type(model).__name__}")
    if config is not None or quantize is not None:
        raise ValueError(LIVE_MODEL_ERROR)
    return LiveModel(model)


LIVE_MODEL_ERROR = (
    "a model in memory is counted without further settings; call get_peft_model(model, config) or quantize_model(model) first, "
    "then give only the model"
)


@with_usage_in_errors
def model_structure(model: Model, config: PeftConfig | None = None, *, quantize: str | None = None) -> ModelStructure:
    """Return the structure of a model, which determines the FLOPs and the memory of a training step.

    Parameters
    ----------
    model : str, Architecture, Transformer or PeftModel
        As in `memory`.
    config : PeftConfig or None
        As in `memory`.
    quantize : {"nf4", "fp4", "int4"} or None
        As in `memory`.

    Returns
    -------
    ModelStructure
        The layers, and which of them are trained.

    Raises
    ------
    ValueError, TypeError
        As in `memory`.

    Examples
    --------
    >>> from lora_np import LoraConfig, costs
    >>> structure = costs.model_structure("llama-2-7b", LoraConfig(r=8))
    >>> sum(layer.gradients for layer in structure.layers())
    4194304
    """
    return resolve_model(model, config, quantize).structure()
