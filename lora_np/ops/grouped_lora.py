"""Many LoRA adapters in two batched products: each group of rows has its own factors A and B."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array
from .checks import check_float, check_shape

# x (g, n, in), h (g, n, r), A (g, r, in), B (g, out, r), scaling (g,)
GroupedLoraCache: TypeAlias = tuple[Array, Array, Array, Array, Array]


def grouped_lora_forward(x: Array, A: Array, B: Array, scaling: Array) -> tuple[Array, GroupedLoraCache]:
    """Compute the outputs of the LoRA bypasses of g groups of rows at once, δ_i = s_i·(x_i A_iᵀ) B_iᵀ.

    Parameters
    ----------
    x : ndarray, shape (g, n, in), float32 or float64
        The inputs: g groups of n rows.
    A : ndarray, shape (g, r, in)
        The factor A of each group.
    B : ndarray, shape (g, out, r)
        The factor B of each group.
    scaling : ndarray, shape (g,)
        The scaling s_i of each group.

    Returns
    -------
    delta : ndarray, shape (g, n, out)
        The term that is added to the output of the frozen layer.
    cache : GroupedLoraCache
        The second argument of `grouped_lora_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If `x`, `A` and `B` do not all have the same float dtype.

    Notes
    -----
    The result equals the results of g calls of `lora_forward`. Two batched products replace g pairs of small products.
    If each group has one row (generation with a different adapter per row), small products spend more time on Python
    calls than on arithmetic.

    References
    ----------
    The GPU kernel SGMV of Punica (Chen et al. 2023, arXiv 2310.18547). This function needs groups of equal size and rank.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import grouped_lora_forward, lora_forward
    >>> rng = np.random.default_rng(0)
    >>> x, A, B = rng.normal(size=(2, 1, 6)), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 3))
    >>> delta, cache = grouped_lora_forward(x, A, B, np.array([2.0, 0.5]))
    >>> np.allclose(delta[1], lora_forward(x[1], A[1], B[1], 0.5)[0])
    True
    """
    check_float(x=x, A=A, B=B)
    check_shape("A", A, None, None, None)
    g, r, width = A.shape
    check_shape("x", x, g, None, width)
    check_shape("B", B, g, None, r)
    check_shape("scaling", scaling, g)
    h = x @ A.swapaxes(-1, -2)  # (g, n, in) (g, in, r) → (g, n, r)
    h *= scaling[:, None, None]
    return h @ B.swapaxes(-1, -2), (x, h, A, B, scaling)  # (g, n, r) (g, r, out) → (g, n, out)


def grouped_lora_backward(
    dy: Array, cache: GroupedLoraCache, need_dx: bool = True
) -> tuple[Array | None, Array, Array]:
    """Compute the gradients of `grouped_lora_forward`.

    Parameters
    ----------
    dy : ndarray, shape (g, n, out)
        The gradient of δ.
    cache : GroupedLoraCache
        The cache of the forward pass.
    need_dx : bool
        If False, dx is not computed.

    Returns
    -------
    dx : ndarray, shape (g, n, in), or None
        The gradient of x.
    dA : ndarray, shape (g, r, in)
        The gradient of A.
    dB : ndarray, shape (g, out, r)
        The gradient of B.

    Notes
    -----
    In the forward pass δ_i = h_i B_iᵀ with h_i = s_i·x_i A_iᵀ. The groups are independent, so the derivation of
    `lora_backward` holds in each group:

        dB_i = dy_iᵀ h_i,   dh_i = dy_i B_i,   dA_i = s_i·dh_iᵀ x_i,   dx_i = s_i·dh_i A_i

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import grouped_lora_backward, grouped_lora_forward
    >>> rng = np.random.default_rng(0)
    >>> x, A, B = rng.normal(size=(2, 5, 6)), rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 4, 3))
    >>> delta, cache = grouped_lora_forward(x, A, B, np.ones(2))
    >>> [gradient.shape for gradient in grouped_lora_backward(np.ones((2, 5, 4)), cache)]
    [(2, 5, 6), (2, 3, 6), (2, 4, 3)]
    """
    x, h, A, B, scaling = cache
    check_shape("dy", dy, *x.shape[:-1], B.shape[1])
    dB = dy.swapaxes(-1, -2) @ h
    dh = dy @ B
    dh *= scaling[:, None, None]
    dA = dh.swapaxes(-1, -2) @ x
    return dh @ A if need_dx else None, dA, dB
