"""Inverted dropout (Srivastava et al. 2014): drop while training, scale so that the expectation stays."""

from __future__ import annotations

import numpy as np

from ..backend import Array, move
from .checks import check_float, check_shape


def dropout_forward(x: Array, p: float, rng: np.random.Generator | None) -> tuple[Array, Array | None]:
    """y = x ∘ m / (1 − p), where each m is 0 with probability p and 1 otherwise.

    x any shape; one m for each of its numbers. `rng` None (evaluation) or p = 0 is the identity. The mask comes from
    the host's generator, so a seed means the same mask on every device. Raises ValueError unless 0 ≤ p < 1.
    """
    check_float(x=x)
    if not 0 <= p < 1:
        raise ValueError(f"dropout probability p = {p}; expected 0 ≤ p < 1")
    if rng is None or p == 0:
        return x, None
    real = x.real.dtype
    kept = rng.random(x.shape, dtype=np.float32) >= p
    mask = move(kept, x).astype(real)
    mask *= 1 / (1 - p)
    return x * mask, mask


def dropout_backward(dy: Array, mask: Array | None) -> Array:
    """dx = dy ∘ m / (1 − p): in the forward pass each number was multiplied by its mask, so now its gradient is, by the same."""
    if mask is None:
        return dy
    check_shape("dy", dy, *mask.shape)
    return dy * mask
