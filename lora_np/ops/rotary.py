"""Rotary position embedding: rotate pairs of features by angles proportional to the position (arXiv 2104.09864)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from numpy.typing import DTypeLike

from ..backend import Array, array_module
from .checks import check_float, check_shape

RotaryCache: TypeAlias = tuple[Array, Array]  # cos and sin, (t, d) or (b, 1, t, d)


def rotary_tables(
    positions: Array, head_dim: int, theta: float, dtype: DTypeLike, scaling: Mapping[str, Any] | None = None
) -> tuple[Array, Array]:
    """Compute the cosines and sines of the rotation angles φ_i = position · θ^(−2i/d).

    Parameters
    ----------
    positions : ndarray, shape (…, t)
        The position of each token.
    head_dim : int
        d, the number of rotated features per head, an even number.
    theta : float
        θ, the base of the frequencies; 10000 in the paper.
    dtype : DTypeLike
        The dtype of the tables. The angles are computed in float64.
    scaling : dict, optional
        The scaling of the frequencies θ^(−2i/d), as `rope_scaling` in a Hugging Face config.json: see
        `scaled_frequencies`.

    Returns
    -------
    cos : ndarray, shape (…, t, d)
        The cosines of the d/2 angles, written twice, one copy after the other. The array is on the device of
        `positions`.
    sin : ndarray, shape (…, t, d)
        The sines, in the same layout.

    Raises
    ------
    ValueError
        If `head_dim` is odd.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rotary_tables
    >>> cos, sin = rotary_tables(np.arange(5), head_dim=4, theta=10000.0, dtype="float32")
    >>> cos.shape, cos[0]  # position 0: no rotation
    ((5, 4), array([1., 1., 1., 1.], dtype=float32))
    """
    if head_dim % 2:
        raise ValueError(f"head_dim = {head_dim}; rotary embedding rotates pairs of features, so head_dim must be even")
    xp = array_module(positions)
    frequencies = theta ** (xp.arange(0, head_dim, 2) / -head_dim)  # (d/2,)
    if scaling is not None:
        frequencies = scaled_frequencies(frequencies, scaling)
    angles = xp.tile(positions[..., None] * frequencies, 2)  # (…, t, d)
    return xp.cos(angles).astype(dtype), xp.sin(angles).astype(dtype)


def scaled_frequencies(f: Array, scaling: Mapping[str, Any]) -> Array:
    """Return the frequencies f (d/2,) for contexts that are longer than those of the pretraining.

    "linear" divides each frequency by `factor`, so that all positions move closer together (arXiv 2306.15595).

    "llama3" (Llama 3.1) divides only low frequencies. Within the context of the pretraining, a pair of features turns
    n = f · original_max_position_embeddings / 2π times. With n < low_freq_factor, f becomes f / factor. With
    n > high_freq_factor, f is unchanged. In between, the two values are interpolated:

        f ← (1 − s) · f / factor + s · f,   s = (n − low_freq_factor) / (high_freq_factor − low_freq_factor)
    """
    if scaling["rope_type"] == "linear":
        return f / scaling["factor"]
    turns = f * (scaling["original_max_position_embeddings"] / (2 * math.pi))
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    s = ((turns - low) / (high - low)).clip(0, 1)
    return (1 - s) * f / scaling["factor"] + s * f


def rotary_forward(x: Array, cos: Array, sin: Array) -> tuple[Array, RotaryCache]:
    """Rotate each pair of features (x_i, x_{i+d/2}) by its angle φ_i, for the first d features of x.

    Parameters
    ----------
    x : ndarray, shape (b, h, t, d) or (…, t, d), float32 or float64
        The queries or keys. A transposed view is accepted.
    cos : ndarray, shape (t, d), or (b, 1, t, d) if each row has its own positions
        The cosines, from `rotary_tables`. If d is smaller than the head, the other features of x are not changed
        (partial rotary embedding).
    sin : ndarray, the shape of cos
        The sines, from `rotary_tables`.

    Returns
    -------
    y : ndarray, the shape of x
        The rotated pairs, with the memory layout of x.
    cache : RotaryCache
        The second argument of `rotary_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Notes
    -----
    The two features of a pair are d/2 apart, as in Hugging Face's Llama:

        y_i       = x_i cos φ_i − x_{i+d/2} sin φ_i,
        y_{i+d/2} = x_{i+d/2} cos φ_i + x_i sin φ_i.

    The rotation equals y = x ∘ cos + rotate_half(x) ∘ sin. If x₁ and x₂ are the two halves of x, rotate_half(x) is
    (−x₂, x₁).

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rotary_forward, rotary_tables
    >>> x = np.random.default_rng(0).normal(size=(5, 4))
    >>> y, cache = rotary_forward(x, *rotary_tables(np.arange(5), 4, 10000.0, "float64"))
    >>> np.allclose(np.linalg.norm(y, axis=1), np.linalg.norm(x, axis=1))  # a rotation keeps lengths
    True
    """
    check_float(x=x)
    check_float(x=x.real, cos=cos, sin=sin)  # a complex x is rotated by real tables
    t, d = x.shape[-2], min(cos.shape[-1], x.shape[-1])
    shape = (x.shape[0], 1, t, d) if cos.ndim == 4 else (t, d)
    check_shape("cos", cos, *shape)
    check_shape("sin", sin, *shape)
    return _rotate(x, cos, sin), (cos, sin)


def rotary_backward(dy: Array, cache: RotaryCache) -> Array:
    """Compute the gradient of `rotary_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, t, d)
        The gradient of y.
    cache : RotaryCache
        The cache of the forward pass.

    Returns
    -------
    dx : ndarray, shape (…, t, d)
        The gradient of x.

    Notes
    -----
    In the forward pass each pair was multiplied by a rotation R(φ). So dx = R(φ)ᵀ dy = R(−φ) dy, a rotation by the
    opposite angle. The rotation does not depend on x, so the cache does not keep x.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import rotary_backward, rotary_forward, rotary_tables
    >>> x = np.random.default_rng(0).normal(size=(5, 4))
    >>> y, cache = rotary_forward(x, *rotary_tables(np.arange(5), 4, 10000.0, "float64"))
    >>> np.allclose(rotary_backward(y, cache), x)
    True
    """
    cos, sin = cache
    return _rotate(dy, cos, -sin)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Return x ∘ cos + rotate_half(x) ∘ sin; see `rotary_forward`."""
    xp = array_module(x)
    d = cos.shape[-1]
    if d < x.shape[-1]:  # the features after the first d pass unchanged
        return xp.concatenate([_rotate(x[..., :d], cos, sin), x[..., d:]], axis=-1)
    half = d // 2
    rotated = xp.empty_like(x)  # two short copies, so that the arithmetic runs over whole rows
    xp.negative(x[..., half:], out=rotated[..., :half])
    rotated[..., half:] = x[..., :half]
    rotated *= sin
    y = x * cos
    y += rotated
    return y
