"""The embedding: a token id selects a row of a table."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array, array_module
from .checks import check_float, check_ids, check_shape

EmbeddingCache: TypeAlias = tuple[Array, Array]  # ids (…), E (v, d)


def embedding_forward(ids: Array, E: Array) -> tuple[Array, EmbeddingCache]:
    """Look up row ids_n of the table E for each token n: y_n = E[ids_n].

    Parameters
    ----------
    ids : ndarray, shape (…), integers in [0, v)
        The token ids.
    E : ndarray, shape (v, d), float32 or float64
        The table: one row of d numbers per token of the vocabulary.

    Returns
    -------
    y : ndarray, shape (…, d)
        The rows of E. The result equals the product of the one-hot matrix of the ids and E.
    cache : EmbeddingCache
        The second argument of `embedding_backward`.

    Raises
    ------
    ValueError
        If an id is negative or at least v (checked for NumPy arrays only), or if E is not a matrix.
    TypeError
        If `ids` are not integers, or if E is not a float array.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import embedding_forward
    >>> y, cache = embedding_forward(np.array([2, 0]), np.array([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]))
    >>> y
    array([[2. , 2.5],
           [0. , 0.5]])
    """
    check_float(E=E)
    check_shape("E", E, None, None)
    check_ids("token ids", ids, E.shape[0])
    return E[ids], (ids, E)


def embedding_backward(dy: Array, cache: EmbeddingCache) -> Array:
    """Compute the gradient of the table E in `embedding_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, d)
        The gradient of y.
    cache : EmbeddingCache
        The cache of the forward pass.

    Returns
    -------
    dE : ndarray, shape (v, d)
        The gradient of E. The ids have no gradient.

    Notes
    -----
    In the forward pass row i of E was copied to each position n with ids_n = i. So the gradients of all these positions
    add up: dE_i = Σ_{n: ids_n = i} dy_n. The NumPy code `dE[ids] += dy` would be wrong, because NumPy then adds only
    one gradient for a repeated id.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import embedding_backward, embedding_forward
    >>> y, cache = embedding_forward(np.array([1, 1]), np.zeros((3, 2)))
    >>> embedding_backward(np.ones((2, 2)), cache)  # token 1 occurs twice
    array([[0., 0.],
           [2., 2.],
           [0., 0.]])
    """
    ids, E = cache
    check_shape("dy", dy, *ids.shape, E.shape[1])
    xp = array_module(dy)
    dE = xp.zeros_like(E)
    real = dE.real.dtype  # CuPy's add.at has no complex dtype: add complex numbers as pairs of real numbers
    xp.add.at(dE.view(real), ids, dy.view(real))
    return dE
