"""Training in a random subspace: θ = θ₀ + P z, where only z is trained (Li et al. 2018, arXiv 1804.08838).

    θ₀ (D,)  initial weights, frozen                 P (D, d)  random, fixed, with orthonormal columns
    z (d,)   trained, starts at 0                    θ (D,)    the weights of the model

The intrinsic dimension of a task is the smallest d that is enough to learn the task. The columns of P are orthonormal,
so a step of length ε in z changes θ by a vector of length ε, for every d. P has the dtype of the model. The module runs
on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array
from ..nn import Cache, Module, Parameter, Trainable


class DenseProjection:
    """A dense P: the Q factor of a random normal matrix. The columns of P span a uniformly random subspace.

    P has D·d numbers, and a product with P takes D·d multiplications, so D must be small. Raises ValueError if d is
    below 1 or above D.
    """

    def __init__(self, D: int, d: int, seed: int = 0, dtype: DTypeLike = np.float64) -> None:
        _check(D, d)
        self.D, self.d = D, d
        self.P = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, d)))[0].astype(dtype)  # (D, d)

    def forward(self, z: np.ndarray) -> np.ndarray:
        """Return the product P z (D,) of P and z (d,)."""
        return self.P @ z

    def backward(self, dtheta: np.ndarray) -> np.ndarray:
        """Return dz = Pᵀ dθ (d,) from dθ (D,).

        In the forward pass θᵢ = Σⱼ Pᵢⱼ zⱼ, so ∂L/∂zⱼ = Σᵢ ∂L/∂θᵢ Pᵢⱼ.
        """
        return self.P.T @ dtheta


class SparseProjection:
    """A sparse P with one entry per row. The D weights are divided into d groups at random, and zⱼ changes the weights of group j.

        Pᵢⱼ = sᵢ/√nⱼ if weight i is in group j, else 0;     sᵢ = ±1 at random, nⱼ the size of group j: ⌊D/d⌋ or ⌈D/d⌉

    The columns are exactly orthonormal, because two columns share no row, and Σᵢ Pᵢⱼ² = nⱼ/nⱼ = 1. At d = D the
    subspace is the whole space. P stores 2·D numbers, and a product takes D multiplications. Fastfood (Le et al. 2013),
    which Li et al. use for large models, takes D·log d operations. Not all subspaces of dimension d are equally likely,
    so studies use `DenseProjection` as a control. The same kind of projection is used in hashing (Chen et al. 2015,
    arXiv 1504.04788) and in Uni-LoRA (Li et al. 2025, arXiv 2506.00799). Raises ValueError if d is below 1 or above D.
    """

    def __init__(self, D: int, d: int, seed: int = 0, dtype: DTypeLike = np.float64) -> None:
        _check(D, d)
        self.D, self.d = D, d
        rng = np.random.default_rng(seed)
        self.group = rng.permutation(D) % d  # (D,): the group of each weight
        size = np.bincount(self.group, minlength=d)  # (d,)
        entry = rng.choice([-1.0, 1.0], D) / np.sqrt(size)[self.group]
        self.entry = entry.astype(dtype)  # (D,): the one entry of each row

    def forward(self, z: np.ndarray) -> np.ndarray:
        """Return the product P z (D,) of P and z (d,)."""
        return z[self.group] * self.entry

    def backward(self, dtheta: np.ndarray) -> np.ndarray:
        """Return dz = Pᵀ dθ (d,) from dθ (D,).

        In the forward pass θᵢ = Pᵢⱼ zⱼ, where j is the group of weight i. So ∂L/∂zⱼ = Σᵢ Pᵢⱼ ∂L/∂θᵢ over the weights of group j.
        """
        return np.bincount(self.group, self.entry * dtheta, self.d).astype(dtheta.dtype, copy=False)


Projection = DenseProjection | SparseProjection


def _check(D: int, d: int) -> None:
    if not 1 <= d <= D:
        raise ValueError(f"d = {d}; expected 1 ≤ d ≤ D = {D}, the number of trainable weights")


class SubspaceModel(Module):
    """A model with weights θ₀ + P z. The only parameter of a SubspaceModel is z (d,). `train` and `evaluate` accept a
    SubspaceModel like any model.

    Parameters
    ----------
    model : Transformer or PeftModel
        The model. The vector θ₀ contains the values of the trainable parameters, in the model's order. Each call of
        `loss` gives these parameters new arrays with the values θ, so that the caches of earlier calls stay valid.
    projection : DenseProjection or SparseProjection
        The projection P; its D must equal the number of trainable weights.

    Raises
    ------
    ValueError
        If D differs from the number of trainable weights.
    """

    def __init__(self, model: Trainable, projection: Projection) -> None:
        self.model, self.projection = model, projection
        trained = self._trained()
        self.theta0 = np.concatenate([p.value.ravel() for p in trained])  # (D,)
        if self.theta0.size != projection.D:
            raise ValueError(
                f"P has {projection.D} rows, but the model has {self.theta0.size} trainable weights; use equal numbers"
            )
        self.z = Parameter(np.zeros(projection.d, self.theta0.dtype))

    def children(self) -> Iterator[tuple[str, Parameter]]:
        """Yield z only, because the weights of the inner model are functions of z, not parameters of this model."""
        yield "z", self.z

    def _trained(self) -> list[Parameter]:
        return [p for _, p in self.model.named_parameters() if p.trainable]

    def place(self) -> Trainable:
        """Write θ = θ₀ + P z into the model, and return the model."""
        theta, start = self.theta0 + self.projection.forward(self.z.value), 0
        for p in self._trained():
            size = p.value.size
            p.value = theta[start : start + size].reshape(p.value.shape)
            start += size
        return self.model

    def loss(self, tokens: np.ndarray, targets: np.ndarray, **options: Any) -> tuple[Array, Cache]:
        """Return the loss of the model at θ₀ + P z, and the cache for `backward`."""
        return self.place().loss(tokens, targets, **options)

    def backward(self, cache: Cache, dloss: float = 1.0) -> None:
        """Add dz = Pᵀ dθ to the gradient of z, where dθ = dloss · ∂L/∂θ comes from the model's backward pass."""
        self.model.zero_grad()
        self.model.backward(cache, dloss)
        dtheta = np.concatenate([_gradient(p).ravel() for p in self._trained()])  # (D,)
        self.model.zero_grad()
        self.z.add_grad(self.projection.backward(dtheta))


def _gradient(p: Parameter) -> np.ndarray:
    return np.zeros_like(p.value) if p.grad is None else p.grad
