"""Parameters, modules and layers.

A Parameter is an array with its gradient. A Module is a tree of Parameters. A layer is a Module that calls a forward
and a backward function of `ops`.

Reading order: parameter, module, context, layers, targets.
"""

from .context import BASE, EVALUATION, Context, Rows, check_names
from .layers import Embedding, Linear, RMSNorm
from .module import Cache, Module, Trainable, replace_module
from .parameter import RAN_FROZEN, Parameter

__all__ = [
    "BASE",
    "EVALUATION",
    "RAN_FROZEN",
    "Cache",
    "Context",
    "Embedding",
    "Linear",
    "Module",
    "Parameter",
    "RMSNorm",
    "Rows",
    "Trainable",
    "check_names",
    "replace_module",
]
