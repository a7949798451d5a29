"""GPT-2's weights in the layout of Hugging Face.

In this layout, the layers c_attn, c_proj and c_fc have the class Conv1D. The weight of a Conv1D has shape (in, out); it
is the transpose of the weight of a Linear. In the first published file of GPT-2, the names do not begin with
"transformer.". This file also contains the causal mask of each layer.
"""

from __future__ import annotations

import re

import numpy as np

from ..files import StoredArrays

TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
CAUSAL_MASK = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")


def from_file(stored: StoredArrays) -> StoredArrays:
    """Return the arrays of a file with the names and shapes of this library."""
    names = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": name
        for name in stored
        if not CAUSAL_MASK.fullmatch(name)
    }

    def is_transposed(name: str) -> bool:
        return name.endswith(TRANSPOSED) and len(stored.shapes[name]) == 2

    def read(name: str) -> np.ndarray:
        x = stored[names[name]]
        return x.T if is_transposed(names[name]) else x

    shapes = {new: stored.shapes[old] for new, old in names.items()}
    shapes = {new: shape[::-1] if is_transposed(names[new]) else shape for new, shape in shapes.items()}
    return StoredArrays(shapes, read, stored.metadata)


def to_file(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of a model with the shapes that a file of GPT-2 contains."""
    return {name: x.T if name.endswith(TRANSPOSED) and x.ndim == 2 else x for name, x in arrays.items()}
