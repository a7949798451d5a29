"""Identity, and the norms that differ from RMSNorm."""

from __future__ import annotations

from .. import ops
from ..backend import Array
from ..ops.norm import RMSNormCache
from .layers import RMSNorm


class Identity:
    """Takes the place of a norm in models without this norm: y = x. It is not a Module, so it has no name in the model."""

    trainable = False

    def forward(self, x: Array) -> tuple[Array, None]:
        """Return x."""
        return x, None

    def backward(self, dy: Array, cache: None, need_dx: bool = True) -> Array:
        """Return dy."""
        return dy


IDENTITY = Identity()


class GemmaRMSNorm(RMSNorm):
    """RMSNorm with the factor 1 + w, so that w = 0 changes nothing: y = (1 + w) ∘ x / rms(x).

    The derivative of 1 + w with respect to w is 1, so the backward pass is that of RMSNorm.
    """

    def forward(self, x: Array) -> tuple[Array, RMSNormCache]:
        """Compute y (…, d) from x (…, d)."""
        return ops.rms_norm_forward(x, 1 + self.weight.value, self.eps)
