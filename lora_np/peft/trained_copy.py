"""TrainedCopy: a copy of a whole module that an adapter trains in full.

In PEFT, the field `modules_to_save` selects these modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np

from ..backend import Array
from ..nn import Cache, Context, Embedding, Linear, Module, Parameter, RMSNorm
from ..nn.targets import OUTPUT_HEAD
from ..quantization import Quantized4bit
from ..transformer import Transformer
from .adapter import Adapter, parameter_like

NORMS = (
    ".q_norm",
    ".k_norm",
    ".input_layernorm",
    "_attention_layernorm",
    "_feedforward_layernorm",
    "model.norm",
)  # they get the adapter of the call


class TrainedCopy(Adapter):
    """A trained copy of a Linear, an Embedding or an RMSNorm. The output is the output of the copy, with weight W'.

    ΔW = W' − W. As in PEFT, the file contains W' under the name of the module.
    """

    mergeable = True
    depends_on_weight = True  # ΔW = W' − W

    def __init__(self, base: Any, weight: np.ndarray) -> None:
        self.modules_to_save = copy(base)  # PEFT's name
        self.modules_to_save.weight = parameter_like(base, weight)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        yield "modules_to_save.weight", self.modules_to_save.weight

    def forward(self, x: Array, base: Any, context: Context) -> tuple[Array, Cache]:
        return self.modules_to_save.forward(x, context)

    def backward(self, dy: Array, cache: Cache, base: Any, need_dx: bool) -> Array | None:
        return self.modules_to_save.backward(dy, cache, need_dx)

    def delta_weight(self, base: Any) -> Array:
        return self.modules_to_save.weight.value - base.weight.value


def embedding_name(model: Module) -> str:
    """Return the name of the embedding of a Transformer: "model.embed_tokens", in GPT-2 "transformer.wte"."""
    return model.config.family.embedding if isinstance(model, Transformer) else ""


def modules_to_copy(model: Module, names: tuple[str, ...]) -> dict[str, Any]:
    """Return a dictionary of the modules whose names end with one of `names`, as in PEFT.

    The modules are returned without their adapters. A tied head is a module too. Raises ValueError if a module cannot
    be trained as a copy.
    """
    modules: dict[str, Any] = {}
    for path, module in model.named_modules():
        if not path.endswith(".base_layer"):
            modules[path] = getattr(module, "base_layer", module)
    if (head := getattr(model, "linear_head", None)) is not None:
        modules.setdefault(OUTPUT_HEAD, head)
    found = {path: module for path, module in modules.items() if path and path.endswith(names)}
    for path, module in found.items():
        leaf = isinstance(module, Linear | Embedding) or (isinstance(module, RMSNorm) and path.endswith(NORMS))
        if not leaf or hasattr(module, "bias") or isinstance(module.weight.value, Quantized4bit):
            raise ValueError(
                f"modules_to_save selects {path}, a {type(module).__name__}; only lm_head, embed_tokens, the norms of the "
                "decoder, and unquantised linear layers without bias can be trained as a copy"
            )
    return found
