"""Gradient clipping: if the norm of all gradients together is above a limit, one factor makes all gradients smaller."""

from __future__ import annotations

from ..backend import Array
from .optim import Named


def grad_norm(parameters: Named) -> Array:
    """Return the L2 norm of all gradients together, as a 0-d array on the device of the gradients. Raise ValueError if
    no parameter has a gradient."""
    squares = [(p.grad * p.grad).sum() for _, p in parameters if p.grad is not None]
    if not squares:
        raise ValueError("no parameter has a gradient; call backward first, and check that some parameter is trainable")
    total = squares[0]
    for square in squares[1:]:
        total = total + square
    return total**0.5


def clip_grad_norm(parameters: Named, max_norm: float) -> Array:
    """Scale all gradients in place by min(1, max_norm/‖g‖), where ‖g‖ is the L2 norm of all gradients together.

    Parameters
    ----------
    parameters : iterable of (str, Parameter)
        Pairs of name and parameter, as in `model.named_parameters()`.
    max_norm : float
        The largest norm, above 0.

    Returns
    -------
    ndarray, shape ()
        The norm ‖g‖ before clipping, as in PyTorch. The array is on the device of the gradients.

    Raises
    ------
    ValueError
        If `max_norm` is not above 0, or if no parameter has a gradient.

    Examples
    --------
    >>> import numpy as np
    >>> import lora_np as ln
    >>> p = ln.nn.Parameter(np.zeros(2))
    >>> p.grad = np.array([3.0, 4.0])
    >>> norm = ln.training.clip_grad_norm([("p", p)], max_norm=1.0)
    >>> print(norm, p.grad.round(3))
    5.0 [0.6 0.8]
    """
    if not max_norm > 0:
        raise ValueError(
            f"max_norm = {max_norm}; expected a number > 0 (to train without clipping, do not call this function)"
        )
    parameters = list(parameters)
    norm = grad_norm(parameters)
    factor = (max_norm / (norm + 1e-6)).clip(None, 1.0)  # stays on the device, so that the GPU is not synchronised
    for _, p in parameters:
        if p.grad is not None:
            p.grad *= factor
    return norm
