"""The product of a few rows with a large matrix, x Wᵀ, as in generation.

Most of the time of this product is spent on reading W from memory. A BLAS packs large matrices: it copies
blocks of them before it multiplies. For few rows, packing W takes longer than the product itself. On processors with
AVX-512, OpenBLAS multiplies small matrices without packing, on one thread. If OpenBLAS may use only one thread, this
module therefore divides W into blocks of rows that are small enough to be multiplied without packing.

In all other cases on a CPU, the product of 2 to 32 rows is computed as W xᵀ, 1,024 rows of W at a time. Each result is
transposed while the processor's cache contains it. For 32 rows and the output head of SmolLM2-135M, W (49,152, 576), this
took 0.6 times as long as one product (measured with two threads of an Intel Xeon with AVX-512).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from ..backend import Array, array_module
from ..optional import MissingExtra, extra

FEW = 32  # up to this many rows W xᵀ is faster than x Wᵀ: BLAS then packs the small array instead of the large one
ROWS = 1024  # rows of W per product of in_large_blocks
LARGE = 2**18  # bytes of W: packing a smaller W is cheap, because W stays in the processor's cache
UNPACKED = ("SkylakeX", "Cooperlake", "SapphireRapids")  # kernels of OpenBLAS that do not pack small matrices
SIZE, RESULTS = 10**6, 512  # the largest out · in · N and out · N of a block


def times_transposed(x: Array, W: Array) -> Array:
    """Return x Wᵀ (N, out) for x (N, in) and W (out, in), as a contiguous array."""
    n, xp = len(x), array_module(x)
    if not 1 < n <= FEW:
        return x @ W.T
    if xp is not np:  # a GPU multiplies all rows of W at once
        return xp.ascontiguousarray((W @ x.T).T)
    if W.nbytes >= LARGE and W.dtype.kind == "f" and W.flags.c_contiguous:
        size = min(RESULTS, SIZE // W.shape[1]) // n
        if size >= 4 and one_thread_without_packing():
            return in_small_blocks(x, W, size)
    return in_large_blocks(x, W)


def in_large_blocks(x: np.ndarray, W: np.ndarray) -> np.ndarray:
    """Return x Wᵀ, computed as W xᵀ in blocks of `ROWS` rows of W. Each block is transposed into the result."""
    y = np.empty((len(x), len(W)), np.result_type(x, W))
    for start in range(0, len(W), ROWS):
        y[:, start : start + ROWS] = (W[start : start + ROWS] @ x.T).T
    return y


def in_small_blocks(x: np.ndarray, W: np.ndarray, size: int) -> np.ndarray:
    """Return x Wᵀ, computed in blocks of `size` rows of W. One call of NumPy multiplies all blocks."""
    y = np.empty((len(x), len(W)), np.result_type(x, W))
    whole = len(W) - len(W) % size
    if whole:
        blocks = W[:whole].reshape(-1, size, W.shape[1]).swapaxes(1, 2)  # (blocks, in, size)
        np.matmul(
            x, blocks, out=y[:, :whole].reshape(len(x), -1, size).swapaxes(0, 1)
        )  # (blocks, N, size), a view of y
    if whole < len(W):
        np.matmul(x, W[whole:].T, out=y[:, whole:])
    return y


def one_thread_without_packing() -> bool:
    """Return True if NumPy's BLAS does not pack small matrices and may use only one thread now."""
    openblas = _unpacked_openblas()
    return openblas is not None and openblas.get_num_threads() == 1


@cache
def _unpacked_openblas() -> Any:
    """Return threadpoolctl's controller of NumPy's OpenBLAS if its kernel is in `UNPACKED`. Otherwise return None."""
    try:
        with extra("studies", "the number of BLAS threads"):
            from threadpoolctl import ThreadpoolController
    except MissingExtra:
        return None
    for library in ThreadpoolController().lib_controllers:
        if library.internal_api == "openblas" and "torch" not in library.filepath:
            return library if library.info().get("architecture") in UNPACKED else None
    return None
