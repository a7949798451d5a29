"""Identity, and the norms that differ from RMSNorm."""

from __future__ import annotations

from .. import ops
from ..backend import Array
from ..ops.layer_norm import LayerNormCache
from ..ops.norm import RMSNormCache
from .context import EVALUATION, Context
from .layers import RMSNorm
from .module import Module
from .parameter import Parameter


class Identity:
    """The layer y = x, which takes the place of a norm in models without this norm.

    An Identity is not a Module, so it has no name in the model.
    """

    trainable = False

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, None]:
        """Return x."""
        return x, None

    def backward(self, dy: Array, cache: None, need_dx: bool = True) -> Array:
        """Return dy."""
        return dy


IDENTITY = Identity()


class GemmaRMSNorm(RMSNorm):
    """RMSNorm with the factor 1 + w: y = (1 + w) ∘ x / rms(x). With w = 0, the factor is 1.

    The derivative of 1 + w with respect to w is 1, so the backward pass is the backward pass of RMSNorm.
    """

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, RMSNormCache]:
        """Compute y (…, d) from x (…, d)."""
        return ops.rms_norm_forward(x, 1 + self.weight.value, self.eps)


class LayerNorm(Module):
    """LayerNorm, y = w ∘ (x − mean(x)) / std(x) + b. The weight w and the bias b are Parameters of shape (d,)."""

    def __init__(self, weight: Array, bias: Array, eps: float = 1e-5) -> None:
        self.weight, self.bias = Parameter(weight), Parameter(bias)
        self.eps = eps

    def extra_repr(self) -> str:
        return f"{self.weight.value.size}, eps={self.eps}"

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, LayerNormCache]:
        """Compute y (…, d) from x (…, d)."""
        return ops.layer_norm_forward(x, self.weight.value, self.bias.value, self.eps)

    def backward(self, dy: Array, cache: LayerNormCache, need_dx: bool = True) -> Array | None:
        """Return dx (…, d), and add dw and db to the gradients of the trainable parameters."""
        dx, dw, db = ops.layer_norm_backward(dy, cache, need_dx, need_dw=self.trainable)
        if self.weight.trainable:
            self.weight.add_grad(dw)
        if self.bias.trainable:
            self.bias.add_grad(db)
        return dx
