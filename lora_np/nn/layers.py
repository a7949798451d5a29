"""The layers with parameters: Linear, Embedding and RMSNorm. Each layer calls two functions of `ops`."""

from __future__ import annotations

from .. import ops
from ..backend import Array
from ..ops.embedding import EmbeddingCache
from ..ops.norm import RMSNormCache
from .context import EVALUATION, Context
from .module import Cache, Module
from .parameter import Parameter


class Linear(Module):
    """A linear layer, y = x Wᵀ + b.

    If the weight is frozen, the layer does not compute dW and does not keep x in the cache.

    Parameters
    ----------
    weight : ndarray, shape (out, in), float
        The weight W, stored as the Parameter `weight`.
    bias : ndarray, shape (out,), optional
        The bias b, stored as the Parameter `bias`. With None, the layer has no attribute `bias`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.nn import Linear
    >>> layer = Linear(np.ones((4, 3)), np.zeros(4))
    >>> layer
    Linear(in_features=3, out_features=4, bias=True)
    >>> y, cache = layer.forward(np.ones((2, 5, 3)))
    >>> dx = layer.backward(np.ones((2, 5, 4)), cache)
    >>> y.shape, dx.shape, layer.weight.grad.shape
    ((2, 5, 4), (2, 5, 3), (4, 3))
    """

    def __init__(self, weight: Array, bias: Array | None = None) -> None:
        self.weight = Parameter(weight)
        if bias is not None:
            self.bias = Parameter(bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={hasattr(self, 'bias')}"

    @property
    def out_features(self) -> int:
        """The number of output features."""
        return self.weight.value.shape[0]

    @property
    def in_features(self) -> int:
        """The number of input features."""
        return self.weight.value.shape[1]

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, Cache]:
        """Compute the output of the layer.

        Parameters
        ----------
        x : ndarray, shape (…, in)
            The input.
        context : Context
            The arguments that the call passes to every layer. A plain linear layer does not use these arguments.

        Returns
        -------
        y : ndarray, shape (…, out)
            The output.
        cache : LinearCache
            The second argument of `backward`. A subclass may return another type of cache.
        """
        bias = self.bias.value if hasattr(self, "bias") else None
        y, (kept, W, has_bias) = ops.linear_forward(x, self.weight.value, bias)
        has_bias = has_bias and self.bias.trainable
        return y, (kept if self.weight.trainable else None, W, has_bias)

    def backward(self, dy: Array, cache: Cache, need_dx: bool = True) -> Array | None:
        """Return dx, and add dW and db to the gradients of the trainable parameters.

        Parameters
        ----------
        dy : ndarray, shape (…, out)
            The gradient of the output.
        cache : LinearCache
            The cache of the forward pass.
        need_dx : bool
            If False, dx is not computed.

        Returns
        -------
        dx : ndarray, shape (…, in), or None
            The gradient of the input. None if `need_dx` is False.

        Raises
        ------
        RuntimeError
            If a parameter is trainable now but was frozen during the forward pass.
        """
        dx, dW, db = ops.linear_backward(dy, cache, need_dx)
        if self.weight.trainable:
            self.weight.add_grad(dW)
        if hasattr(self, "bias") and self.bias.trainable:
            self.bias.add_grad(db)
        return dx


class Embedding(Module):
    """A table of token vectors: a token id selects a row.

    Parameters
    ----------
    weight : ndarray, shape (vocabulary, d), float
        The table, stored as the Parameter `weight`.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.nn import Embedding
    >>> y, cache = Embedding(np.array([[0.0, 0.5], [1.0, 1.5]])).forward(np.array([[1, 0, 1]]))
    >>> y.shape
    (1, 3, 2)
    """

    def __init__(self, weight: Array) -> None:
        self.weight = Parameter(weight)

    def extra_repr(self) -> str:
        return "{}, {}".format(*self.weight.value.shape)

    def forward(self, ids: Array, context: Context = EVALUATION) -> tuple[Array, EmbeddingCache]:
        """Look up the vectors of token ids.

        Parameters
        ----------
        ids : ndarray, shape (…), integers in [0, vocabulary)
            The token ids.
        context : Context
            The arguments that the call passes to every layer. A plain embedding does not use these arguments.

        Returns
        -------
        y : ndarray, shape (…, d)
            The vectors.
        cache : EmbeddingCache
            The second argument of `backward`.
        """
        return ops.embedding_forward(ids, self.weight.value)

    def backward(self, dy: Array, cache: EmbeddingCache, need_dx: bool = False) -> None:
        """Add the gradient of the table to the Parameter `weight`, if the table is trainable.

        The function returns no dx, because token ids are not differentiable.

        Parameters
        ----------
        dy : ndarray, shape (…, d)
            The gradient of the vectors.
        cache : EmbeddingCache
            The cache of the forward pass.
        need_dx : bool
            Has no effect; this argument exists because the other layers have it.
        """
        if self.weight.trainable:
            self.weight.add_grad(ops.embedding_backward(dy, cache))


class RMSNorm(Module):
    """RMSNorm, y = w ∘ x / rms(x).

    Parameters
    ----------
    weight : ndarray, shape (d,), float
        The factor w of each feature, stored as the Parameter `weight`.
    eps : float
        A small constant that prevents a division by zero.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.nn import RMSNorm
    >>> y, cache = RMSNorm(np.ones(2), eps=0.0).forward(np.array([[3.0, -3.0]]))
    >>> y.round(12)
    array([[ 1., -1.]])
    """

    def __init__(self, weight: Array, eps: float = 1e-5) -> None:
        self.weight = Parameter(weight)
        self.eps = eps

    def extra_repr(self) -> str:
        return f"{self.weight.value.size}, eps={self.eps}"

    def forward(self, x: Array, context: Context = EVALUATION) -> tuple[Array, RMSNormCache]:
        """Compute the output of the layer.

        Parameters
        ----------
        x : ndarray, shape (…, d)
            The input.
        context : Context
            The arguments that the call passes to every layer. A plain norm does not use these arguments.

        Returns
        -------
        y : ndarray, shape (…, d)
            The output.
        cache : RMSNormCache
            The second argument of `backward`.
        """
        return ops.rms_norm_forward(x, self.weight.value, self.eps)

    def backward(self, dy: Array, cache: RMSNormCache, need_dx: bool = True) -> Array | None:
        """Return dx and, if the weight is trainable, add dw to the gradient of the weight.

        Parameters
        ----------
        dy : ndarray, shape (…, d)
            The gradient of the output.
        cache : RMSNormCache
            The cache of the forward pass.
        need_dx : bool
            If False, dx is not computed.

        Returns
        -------
        dx : ndarray, shape (…, d), or None
            The gradient of the input. None if `need_dx` is False.
        """
        dx, dw = ops.rms_norm_backward(dy, cache, need_dx, need_dw=self.weight.trainable)
        if dw is not None:
            self.weight.add_grad(dw)
        return dx
