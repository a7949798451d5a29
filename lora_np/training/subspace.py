"""Training in a random subspace: θ = θ₀ + P z, where only the d numbers z train (Li et al. 2018, arXiv 1804.08838).

    θ₀ (D,)  the weights at the start, frozen        P (D, d)  fixed, random, its columns orthonormal
    z (d,)   starts at 0 and trains                  θ (D,)    what the model computes with

The smallest d with which a task is still learned is its intrinsic dimension. P is orthonormal so that a step of length ε in z is
a step of length ε in θ, whatever d is. P has the model's dtype. It runs on the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array
from ..nn import Cache, Module, Parameter, Trainable


class DenseProjection:
    """P as a matrix: orthonormal columns that span a uniformly random subspace, from the QR of a normal matrix.

    It holds D·d numbers and a product costs as many multiplications: for small D. Raises ValueError unless 1 ≤ d ≤ D.
    """

    def __init__(self, D: int, d: int, seed: int = 0, dtype: DTypeLike = np.float64) -> None:
        _check(D, d)
        self.D, self.d = D, d
        self.P = np.linalg.qr(np.random.default_rng(seed).standard_normal((D, d)))[0].astype(dtype)  # (D, d)

    def forward(self, z: np.ndarray) -> np.ndarray:
        """P z: (d,) → (D,)."""
        return self.P @ z

    def backward(self, dtheta: np.ndarray) -> np.ndarray:
        """dz = Pᵀ dθ: (D,) → (d,).

        In the forward pass θᵢ = Σⱼ Pᵢⱼ zⱼ, so ∂L/∂zⱼ = Σᵢ ∂L/∂θᵢ Pᵢⱼ.
        """
        return self.P.T @ dtheta


class SparseProjection:
    """P with one entry in each row: the D weights are dealt into d groups at random, and group j moves with zⱼ.

        Pᵢⱼ = sᵢ/√nⱼ if weight i is in group j, else 0;     sᵢ = ±1 at random, nⱼ the size of group j: ⌊D/d⌋ or ⌈D/d⌉

    Two columns share no row, and Σᵢ Pᵢⱼ² = nⱼ/nⱼ = 1: the columns are orthonormal exactly, for any D and d, and at d = D nothing is
    lost. It holds 2·D numbers, and a product reads each weight once whatever d is, where Fastfood's (Le et al. 2013), which Li et
    al. took for their large models, needs D log d. The subspace is random, but not uniformly so: `DenseProjection` is the control.
    Known from hashing (Chen et al. 2015, arXiv 1504.04788), and from Uni-LoRA (Li et al. 2025, arXiv 2506.00799).
    Raises ValueError unless 1 ≤ d ≤ D.
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
        """P z: (d,) → (D,)."""
        return z[self.group] * self.entry

    def backward(self, dtheta: np.ndarray) -> np.ndarray:
        """dz = Pᵀ dθ: (D,) → (d,).

        In the forward pass θᵢ = Pᵢⱼ zⱼ with i's one group j, so ∂L/∂zⱼ = Σᵢ Pᵢⱼ ∂L/∂θᵢ over the weights of group j.
        """
        return np.bincount(self.group, self.entry * dtheta, self.d).astype(dtheta.dtype, copy=False)


Projection = DenseProjection | SparseProjection


def _check(D: int, d: int) -> None:
    if not 1 <= d <= D:
        raise ValueError(f"d = {d}; expected 1 ≤ d ≤ D = {D}: a subspace has no more dimensions than the space")


class SubspaceModel(Module):
    """A model whose weights are θ₀ + P z; its one parameter is z (d,), and `train` and `evaluate` take it as any other.

    Args:
        model: its trainable parameters, one after the other, are θ₀. It becomes a buffer: each loss writes θ into it, as new
            arrays, so that a cache keeps the θ that it was made with.
        projection: P, for D = as many numbers as are trainable.

    Raises ValueError where D does not fit.
    """

    def __init__(self, model: Trainable, projection: Projection) -> None:
        self.model, self.projection = model, projection
        trained = self._trained()
        self.theta0 = np.concatenate([p.value.ravel() for p in trained])  # (D,)
        if self.theta0.size != projection.D:
            raise ValueError(f"P has {projection.D} rows; the model has {self.theta0.size} trainable numbers")
        self.z = Parameter(np.zeros(projection.d, self.theta0.dtype))

    def children(self) -> Iterator[tuple[str, Parameter]]:
        """z alone: the weights inside are no parameters of this model but functions of z."""
        yield "z", self.z

    def _trained(self) -> list[Parameter]:
        return [p for _, p in self.model.named_parameters() if p.trainable]

    def place(self) -> Trainable:
        """Write θ = θ₀ + P z into the model, and return it."""
        theta, start = self.theta0 + self.projection.forward(self.z.value), 0
        for p in self._trained():
            size = p.value.size
            p.value = theta[start : start + size].reshape(p.value.shape)
            start += size
        return self.model

    def loss(self, tokens: np.ndarray, targets: np.ndarray, **options: Any) -> tuple[Array, Cache]:
        """The model's loss at θ₀ + P z, and what its backward needs."""
        return self.place().loss(tokens, targets, **options)

    def backward(self, cache: Cache, dloss: float = 1.0) -> None:
        """Adds dz = Pᵀ dθ to z's gradient, with dθ = dloss · ∂L/∂θ from the model's own backward."""
        self.model.zero_grad()
        self.model.backward(cache, dloss)
        dtheta = np.concatenate([_gradient(p).ravel() for p in self._trained()])  # (D,)
        self.model.zero_grad()
        self.z.add_grad(self.projection.backward(dtheta))


def _gradient(p: Parameter) -> np.ndarray:
    return np.zeros_like(p.value) if p.grad is None else p.grad
