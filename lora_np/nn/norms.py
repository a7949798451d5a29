"""Identity, and the norms that differ from RMSNorm."""

from __future__ import annotations

from ..backend import Array


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
