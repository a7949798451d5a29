"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): turn each pair of features by an angle that grows with position."""

from __future__ import annotations

from typing import TypeAlias

from numpy.typing import DTypeLike

from ..backend import Array, array_module
from .checks import check_float, check_shape

RotaryCache: TypeAlias = tuple[Array, Array]  # cos and sin, (t, d) or (b, 1, t, d)


def rotary_tables(positions: Array, head_dim: int, theta: float, dtype: DTypeLike) -> tuple[Array, Array]:
    """cos φ and sin φ of the angles φ_i = position · θ^(−2i/d) for i < d/2, each table twice side by side.

    positions (…, t) → two (…, t, d) tables where `positions` live, computed in float64 and stored as `dtype`. Raises ValueError
    for an odd head_dim.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim = {head_dim}; rotary embedding turns pairs of features, so it must be even")
    xp = array_module(positions)
    frequencies = theta ** (xp.arange(0, head_dim, 2) / -head_dim)  # (d/2,)
    angles = xp.tile(positions[..., None] * frequencies, 2)  # (…, t, d)
    return xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype)


def rotary_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, RotaryCache]:
    """Turn each pair (x_i, x_{i+d/2}) by its angle φ_i, in the half-split layout of Hugging Face's Llama:

        y_i       = x_i cos φ_i − x_{i+d/2} sin φ_i
        y_{i+d/2} = x_{i+d/2} cos φ_i + x_i sin φ_i

    which is y = x ∘ cos + rotate_half(x) ∘ sin with rotate_half(x) = (−x_{d/2 …}, x_{… d/2}).

    x (…, t, d), cos and sin (t, d), or (b, 1, t, d) for rows at places of their own → y (…, t, d), contiguous even where x
    is a transposed view (the rotation has to write y anyway, so the transposition costs no pass of its own).
    """
    check_float(x=x)
    check_float(x=x.real, cos=cos, sin=sin)  # complex numbers are turned by real tables too
    shape = (x.shape[0], 1, *x.shape[-2:]) if cos.ndim == 4 else x.shape[-2:]
    check_shape("cos", cos, *shape)
    check_shape("sin", sin, *shape)
    return _rotate(x, cos, sin), (cos, sin)


def rotary_backward(dy: Array, cache: RotaryCache) -> Array:
    """dx for dy (…, t, d).

    In the forward pass each pair was multiplied by a rotation R(φ), so now dx = R(φ)ᵀ dy = R(−φ) dy: turn back. A rotation
    changes no length, so it needs nothing of x.
    """
    cos, sin = cache
    return _rotate(dy, cos, -sin)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    xp = array_module(x)
    half = x.shape[-1] // 2
    rotated = xp.empty(x.shape, x.dtype)  # two short copies, so that the arithmetic runs over whole rows
    xp.negative(x[..., half:], out=rotated[..., :half])
    rotated[..., half:] = x[..., :half]
    rotated *= sin
    y = xp.empty(x.shape, x.dtype)
    xp.multiply(x, cos, out=y)
    y += rotated
    return y
