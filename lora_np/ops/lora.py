"""LoRA: a frozen product with a trained bypass, y = x Wᵀ + s·(x Aᵀ) Bᵀ (Hu et al. 2021, arXiv 2106.09685, eq. 3)."""

from __future__ import annotations

from typing import TypeAlias

from ..backend import Array
from .checks import check_features, check_float, check_shape
from .linear import LinearCache, linear_backward, linear_forward, rows

# x (…, in), None where A is frozen; h (N, r); A (r, in); B (out, r); scaling
LoraCache: TypeAlias = tuple[Array | None, Array, Array, Array, float]
LoraLinearCache: TypeAlias = tuple[LinearCache, LoraCache]


def lora_forward(x: Array, A: Array, B: Array, scaling: float, keep_x: bool = True) -> tuple[Array, LoraCache]:
    """The bypass alone, δ = s·(x Aᵀ) Bᵀ.

    x (…, in), A (r, in), B (out, r), scaling s = α/r (rsLoRA: α/√r) → δ (…, out). Where A is frozen there is no dA, and x need
    not be kept: `keep_x` False keeps N·r numbers in place of N·(in + r) (LoRA-FA, arXiv 2308.03303).

    The order of the products matters: x Aᵀ first costs N·r·(in + out) multiplications and never builds the out × in
    matrix B A. Raises ValueError or TypeError on shapes or dtypes that do not fit.
    """
    check_float(x=x, A=A, B=B)
    check_shape("A", A, None, None)
    check_shape("B", B, None, A.shape[0])
    check_features("x", x, A.shape[1], "A (r, in)")
    h = rows(x) @ A.T  # (N, in) (in, r) → (N, r)
    h *= scaling  # on N·r numbers rather than on the N·out of δ
    delta = h @ B.T  # (N, r) (r, out) → (N, out)
    return delta.reshape(*x.shape[:-1], B.shape[0]), (x if keep_x else None, h, A, B, scaling)


def lora_backward(dy: Array, cache: LoraCache, need_dx: bool = True) -> tuple[Array | None, Array | None, Array]:
    """dx, dA, dB for dy (…, out); dx None where it is not needed, dA where the forward kept no x.

    Walk the forward in reverse. With h = s·x Aᵀ, in the forward pass this was δ = h Bᵀ, a linear layer of weight B:

        dB = dyᵀ h          (out, N) (N, r)
        dh = dy B           (N, out) (out, r)

    and before it h = s·x Aᵀ, a linear layer with weight A and a factor s, so

        dA = s·dhᵀ x        (r, N) (N, in)
        dx = s·dh A         (N, r) (r, in)

    Put together these are dA = s·Bᵀ (dyᵀx) and dB = s·(dyᵀx) Aᵀ, where dyᵀx = dW is what full fine-tuning would use:
    LoRA sees the full gradient through its own factors, without ever building it. At the start B = 0, hence dA = 0.
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
    """y = x Wᵀ + s·(x Aᵀ) Bᵀ, the frozen layer and its bypass.

    x (…, in), W (out, in) frozen, A (r, in), B (out, r) → y (…, out). Raises as `linear_forward` and `lora_forward` do.
    """
    check_shape("A", A, None, W.shape[1])
    check_shape("B", B, W.shape[0], None)
    y, (_, W, has_bias) = linear_forward(x, W)
    delta, lora_cache = lora_forward(x, A, B, scaling)
    y += delta
    return y, ((None, W, has_bias), lora_cache)  # the frozen W needs no x; the bypass keeps it for dA


def lora_linear_backward(dy: Array, cache: LoraLinearCache) -> tuple[Array, Array, Array]:
    """dx, dA, dB for dy (…, out): the two paths met in a sum, so each gets the whole dy, and their dx add up.

    dx = dy W + s·(dy B) A. There is no dW: W is frozen.
    """
    linear_cache, lora_cache = cache
    dx, _, _ = linear_backward(dy, linear_cache)
    dx_bypass, dA, dB = lora_backward(dy, lora_cache)
    assert dx is not None and dx_bypass is not None and dA is not None  # all were needed, and x was kept
    dx += dx_bypass
    return dx, dA, dB
