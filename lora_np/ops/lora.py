"""LoRA: a frozen layer and a trained bypass, y = x Wᵀ + s·(x Aᵀ) Bᵀ (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array
from .checks import check_features, check_float, check_shape
from .linear import LinearCache, linear_backward, linear_forward, rows

# x (…, in), or None if A is frozen; h (N, r); A (r, in); B (out, r); scaling
LoraCache: TypeAlias = tuple[Array | None, Array, Array, Array, float]
LoraLinearCache: TypeAlias = tuple[LinearCache, LoraCache]


def lora_forward(x: Array, A: Array, B: Array, scaling: float, keep_x: bool = True) -> tuple[Array, LoraCache]:
    """Compute the output of the LoRA bypass alone, δ = s·(x Aᵀ) Bᵀ.

    Parameters
    ----------
    x : ndarray, shape (…, in), float32 or float64
        The input of the layer.
    A : ndarray, shape (r, in)
        The factor that maps the input to rank r.
    B : ndarray, shape (out, r)
        The factor that maps rank r to the output.
    scaling : float
        The scaling s: α/r for LoRA, α/√r for rsLoRA.
    keep_x : bool
        Use `keep_x=False` if A is frozen (LoRA-FA, arXiv 2308.03303). For N rows the cache then keeps N·r numbers
        instead of N·(in + r), and `lora_backward` returns None for dA.

    Returns
    -------
    delta : ndarray, shape (…, out)
        The term that is added to the output of the frozen layer.
    cache : LoraCache
        The second argument of `lora_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Notes
    -----
    x Aᵀ is computed first. For N rows this costs N·r·(in + out) multiplications, and the (out, in) matrix B A is never
    built.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import lora_forward
    >>> rng = np.random.default_rng(0)
    >>> x, A, B = rng.normal(size=(2, 5, 6)), rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    >>> delta, cache = lora_forward(x, A, B, scaling=2.0)
    >>> delta.shape, np.allclose(delta, x @ (2.0 * B @ A).T)
    ((2, 5, 4), True)
    """
    check_float(x=x, A=A, B=B)
    check_shape("A", A, None, None)
    check_shape("B", B, None, A.shape[0])
    check_features("x", x, A.shape[1], "A (r, in)")
    h = rows(x) @ A.T  # (N, in) (in, r) → (N, r)
    h *= scaling  # scale the N·r numbers of h, not the N·out numbers of δ
    delta = h @ B.T  # (N, r) (r, out) → (N, out)
    return delta.reshape(*x.shape[:-1], B.shape[0]), (x if keep_x else None, h, A, B, scaling)


def lora_backward(dy: Array, cache: LoraCache, need_dx: bool = True) -> tuple[Array | None, Array | None, Array]:
    """Compute the gradients of `lora_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, out)
        The gradient of δ.
    cache : LoraCache
        The cache of the forward pass.
    need_dx : bool
        If False, dx is not computed.

    Returns
    -------
    dx : ndarray, shape (…, in), or None
        The gradient of x through the bypass.
    dA : ndarray, shape (r, in), or None
        The gradient of A. None if `lora_forward` was called with `keep_x=False`.
    dB : ndarray, shape (out, r)
        The gradient of B.

    Notes
    -----
    The derivation takes the steps of the forward pass in reverse order. With h = s·x Aᵀ, the last step was δ = h Bᵀ, a
    linear layer with weight B:

        dB = dyᵀ h,         shapes (out, N) (N, r);
        dh = dy B,          shapes (N, out) (out, r).

    The first step was h = s·x Aᵀ, a linear layer with weight A and a factor s:

        dA = s·dhᵀ x,       shapes (r, N) (N, in);
        dx = s·dh A,        shapes (N, r) (r, in).

    Inserting h and dh gives dA = s·Bᵀ (dyᵀx) and dB = s·(dyᵀx) Aᵀ. Here dyᵀx = dW is the gradient of W in full
    fine-tuning. So dA is s·Bᵀ dW and dB is s·dW Aᵀ, but the matrix dW is never built. At the start of training B = 0,
    so dA = 0.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import lora_backward, lora_forward
    >>> rng = np.random.default_rng(0)
    >>> x, A, B = rng.normal(size=(5, 6)), rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    >>> delta, cache = lora_forward(x, A, B, scaling=2.0)
    >>> dy = rng.normal(size=(5, 4))
    >>> dx, dA, dB = lora_backward(dy, cache)
    >>> np.allclose(dA, 2.0 * B.T @ (dy.T @ x)), np.allclose(dB, 2.0 * (dy.T @ x) @ A.T)
    (True, True)
    """
    x, h, A, B, scaling = cache
    check_features("dy", dy, B.shape[0], "B (out, r)")
    dy_rows = rows(dy)
    dB = dy_rows.T @ h
    if x is None and not need_dx:
        return None, None, dB
    dh = dy_rows @ B
    dh *= scaling
    dA = None if x is None else dh.T @ rows(x)
    dx = (dh @ A).reshape(*dy.shape[:-1], A.shape[1]) if need_dx else None
    return dx, dA, dB


def lora_linear_forward(x: Array, W: Array, A: Array, B: Array, scaling: float) -> tuple[Array, LoraLinearCache]:
    """Compute the output of a frozen linear layer with a LoRA bypass, y = x Wᵀ + s·(x Aᵀ) Bᵀ.

    Parameters
    ----------
    x : ndarray, shape (…, in), float32 or float64
        The input.
    W : ndarray, shape (out, in)
        The frozen weight.
    A : ndarray, shape (r, in)
        The factor that maps the input to rank r.
    B : ndarray, shape (out, r)
        The factor that maps rank r to the output.
    scaling : float
        The scaling s: α/r for LoRA, α/√r for rsLoRA.

    Returns
    -------
    y : ndarray, shape (…, out)
        The output.
    cache : LoraLinearCache
        The second argument of `lora_linear_backward`.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match each other.
    TypeError
        If the arrays do not all have the same float dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import lora_linear_forward
    >>> rng = np.random.default_rng(0)
    >>> x, W = rng.normal(size=(5, 6)), rng.normal(size=(4, 6))
    >>> A, B = rng.normal(size=(3, 6)), rng.normal(size=(4, 3))
    >>> y, cache = lora_linear_forward(x, W, A, B, scaling=2.0)
    >>> np.allclose(y, x @ (W + 2.0 * B @ A).T)  # the merged weight computes the same
    True
    """
    check_shape("A", A, None, W.shape[1])
    check_shape("B", B, W.shape[0], None)
    y, (_, W, has_bias) = linear_forward(x, W)
    delta, lora_cache = lora_forward(x, A, B, scaling)
    y += delta
    return y, ((None, W, has_bias), lora_cache)  # the frozen W needs no x; the bypass keeps it for dA


def lora_linear_backward(dy: Array, cache: LoraLinearCache) -> tuple[Array, Array, Array]:
    """Compute the gradients of `lora_linear_forward`.

    Parameters
    ----------
    dy : ndarray, shape (…, out)
        The gradient of the output.
    cache : LoraLinearCache
        The cache of the forward pass.

    Returns
    -------
    dx : ndarray, shape (…, in)
        The gradient of x.
    dA : ndarray, shape (r, in)
        The gradient of A.
    dB : ndarray, shape (out, r)
        The gradient of B.

    Notes
    -----
    In the forward pass y is the sum of two paths. Each path therefore receives the whole dy, and the gradients of the
    common input x add up: dx = dy W + s·(dy B) A. There is no dW, because W is frozen.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.ops import lora_linear_backward, lora_linear_forward
    >>> rng = np.random.default_rng(0)
    >>> x, W, A = rng.normal(size=(5, 6)), rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    >>> y, cache = lora_linear_forward(x, W, A, np.zeros((4, 3)), scaling=2.0)  # B = 0, as at the start
    >>> dx, dA, dB = lora_linear_backward(np.ones((5, 4)), cache)
    >>> bool((dA == 0).all()), bool((dB == 0).any())
    (True, False)
    """
    linear_cache, lora_cache = cache
    dx, _, _ = linear_backward(dy, linear_cache)
    dx_bypass, dA, dB = lora_backward(dy, lora_cache)
    assert dx is not None and dx_bypass is not None and dA is not None  # need_dx was True, and x was kept
    dx += dx_bypass
    return dx, dA, dB
