"""The embedding: a table looked up by token id."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_ids, check_shape

EmbeddingCache: TypeAlias = tuple[Array, Array]  # ids (…), E (v, d)


def embedding_forward(ids: Array, E: Array) -> tuple[Array, EmbeddingCache]:
    """y_n = E[ids_n]: row lookup, the same as multiplying a one-hot row by E.

    ids (…) integers in [0, v), E (v, d) → y (…, d). Raises ValueError for an id outside the table, negative ones
    included.
    """
    check_float(E=E)
    check_shape("E", E, None, None)
    check_ids("token ids", ids, E.shape[0])
    return E[ids], (ids, E)


def embedding_backward(dy: Array, cache: EmbeddingCache) -> Array:
    """dE for dy (…, d).

    In the forward pass row i of E was copied to each place n with ids_n = i, so now every such place sends its gradient
    back: dE_i = Σ_{n: ids_n = i} dy_n. (`dE[ids] += dy` would be wrong: a repeated id would count once.)
    """
    ids, E = cache
    check_shape("dy", dy, *ids.shape, E.shape[1])
    xp = array_module(dy)
    dE = xp.zeros_like(E)
    real = dE.real.dtype  # CuPy's add.at knows no complex numbers; as pairs of real ones they add up the same
    xp.add.at(dE.view(real), ids, dy.view(real))
    return dE
