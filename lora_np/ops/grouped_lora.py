"""Many adapters in two batched products: LoRA's bypass for groups of rows that each have factors of their own."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array
from .checks import check_float, check_shape

# x (g, n, in), h (g, n, r), A (g, r, in), B (g, out, r), scaling (g,)
GroupedLoraCache: TypeAlias = tuple[Array, Array, Array, Array, Array]


def grouped_lora_forward(x: Array, A: Array, B: Array, scaling: Array) -> tuple[Array, GroupedLoraCache]:
    """δ_i = s_i·(x_i A_iᵀ) B_iᵀ for each group i: `lora_forward` g times, in two calls.

    x (g, n, in), A (g, r, in), B (g, out, r), scaling (g,) → δ (g, n, out). Raises ValueError or TypeError on shapes or
    dtypes that do not fit.

    With one row a group (decoding, every row its own adapter) g pairs of small products cost more in Python's calls than
    in arithmetic. Source: Punica's SGMV (Chen et al. 2023, arXiv 2310.18547), for groups of one size and one rank.
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
    """dx, dA, dB for dy (g, n, out): in each group what `lora_backward` derives.

    In the forward pass δ_i = h_i B_iᵀ with h_i = s_i·x_i A_iᵀ, and the groups never met, so now

        dB_i = dy_iᵀ h_i,   dh_i = dy_i B_i,   dA_i = s_i·dh_iᵀ x_i,   dx_i = s_i·dh_i A_i
    """
    x, h, A, B, scaling = cache
    check_shape("dy", dy, *x.shape[:-1], B.shape[1])
    dB = dy.swapaxes(-1, -2) @ h
    dh = dy @ B
    dh *= scaling[:, None, None]
    dA = dh.swapaxes(-1, -2) @ x
    return dh @ A if need_dx else None, dA, dB
