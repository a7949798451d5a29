"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): turn each pair of features by an angle that grows with position."""

from __future__ import annotations

from typing import Any

from ..backend import Array, array_module
from .checks import check_float, check_shape


def rotary_tables(positions: Array, head_dim: int, theta: float, dtype: Any) -> tuple[Array, Array]:
    """cos and sin of the angles position · θ^(−2i/d).

    positions (t,) → two (t, d/2) tables where `positions` live, computed in float64 and stored as `dtype`. Raises
    ValueError for an odd head_dim.
    """
    if head_dim % 2:
        raise ValueError(f"head_dim = {head_dim}; rotary embedding turns pairs of features, so it must be even")
    xp = array_module(positions)
    frequencies = theta ** (xp.arange(0, head_dim, 2) / -head_dim)  # (d/2,)
    angles = positions[:, None] * frequencies  # (t, d/2)
    return xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype)


def rotary_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple]:
    """Turn feature pairs (x_i, x_{i+d/2}) by their angle φ, in the half-split layout of Hugging Face's Llama:

        y_i       = x_i cos φ_i − x_{i+d/2} sin φ_i
        y_{i+d/2} = x_{i+d/2} cos φ_i + x_i sin φ_i

    x (…, t, d), cos and sin (t, d/2) → y (…, t, d), contiguous even where x is a transposed view (the rotation has to
    write y anyway, so the transposition costs no pass of its own).
    """
    check_float(x=x)
    t, d = x.shape[-2:]
    check_shape("cos", cos, t, d // 2)
    check_shape("sin", sin, t, d // 2)
    return _rotate(x, cos, sin), (cos, sin)


def rotary_backward(dy: Array, cache: tuple) -> Array:
    """dx for dy (…, t, d).

    In the forward pass each pair was multiplied by a rotation R(φ), so now dx = R(φ)ᵀ dy = R(−φ) dy: turn back. A
    rotation changes no length, so it needs nothing of x.
    """
    cos, sin = cache
    return _rotate(dy, cos, -sin)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    xp = array_module(x)
    half = x.shape[-1] // 2
    x1, x2 = x[..., :half], x[..., half:]
    y = xp.empty(x.shape, x.dtype)
    xp.multiply(x1, cos, out=y[..., :half])
    y[..., :half] -= x2 * sin
    xp.multiply(x2, cos, out=y[..., half:])
    y[..., half:] += x1 * sin
    return y
