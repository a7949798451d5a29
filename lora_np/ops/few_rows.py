"""The product of a few rows with a large matrix, x Wᵀ, as in generation. Most of its time is the time to read W from memory.

A BLAS packs large matrices: it copies blocks of them before it multiplies. For few rows, packing W takes longer than the
product itself. OpenBLAS multiplies small matrices without packing on processors with AVX-512. There this module divides W
into blocks of rows that are small enough, and divides the blocks among the threads of the BLAS.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from ..backend import Array, array_module

FEW = 32  # up to this many rows W xᵀ is faster than x Wᵀ: BLAS then packs the small array instead of the large one
UNPACKED = ("SkylakeX", "Cooperlake", "SapphireRapids")  # kernels of OpenBLAS that do not pack small matrices
LARGE = 2**18  # bytes of W: packing a smaller W is cheap, because W stays in the processor's cache
UNPACKED_SIZE, UNPACKED_RESULTS = 10**6, 512  # out · in · N and out · N of one block
SHARE = 2**19  # bytes of W per thread: for fewer bytes, waking a thread takes longer than the thread's work


def times_transposed(x: Array, W: Array) -> Array:
    """Return x Wᵀ (N, out) for x (N, in) and W (out, in), as a contiguous array."""
    n, xp = len(x), array_module(x)
    if xp is np and 1 < n <= FEW and W.nbytes >= LARGE and W.dtype.kind == "f" and W.flags.c_contiguous:
        threads, size = _unpacked_threads(), min(UNPACKED_RESULTS, UNPACKED_SIZE // W.shape[1]) // n
        if threads and size >= 4:
            return _in_blocks(x, W, size, threads)
    return xp.ascontiguousarray((W @ x.T).T) if 1 < n <= FEW else x @ W.T


def _in_blocks(x: np.ndarray, W: np.ndarray, size: int, threads: int) -> np.ndarray:
    """Return x Wᵀ. Each thread computes some blocks, and a block has `size` rows of W."""
    y = np.empty((len(x), len(W)), np.result_type(x, W))
    shares = max(1, min(threads, W.nbytes // SHARE))
    each = -(-len(W) // (shares * size)) * size  # rows of W per thread, a multiple of `size`
    first, *others = range(0, len(W), each)
    waiting = [_pool().submit(_blocks, x, W[at : at + each], y[:, at : at + each], size) for at in others]
    _blocks(x, W[first : first + each], y[:, first : first + each], size)
    for other in waiting:
        other.result()
    return y


def _blocks(x: np.ndarray, W: np.ndarray, y: np.ndarray, size: int) -> None:
    """Write x Wᵀ to y (N, out): one call of NumPy multiplies all blocks, one after another, without Python's global lock."""
    whole = len(W) - len(W) % size
    if whole:
        blocks = W[:whole].reshape(-1, size, W.shape[1]).swapaxes(1, 2)  # (blocks, in, size)
        np.matmul(
            x, blocks, out=y[:, :whole].reshape(len(x), -1, size).swapaxes(0, 1)
        )  # (blocks, N, size), a view of y
    if whole < len(W):
        np.matmul(x, W[whole:].T, out=y[:, whole:])


def _unpacked_threads() -> int:
    """Return the number of threads of NumPy's BLAS if the BLAS multiplies small matrices without packing, otherwise 0."""
    blas = _openblas()
    return blas.get_num_threads() if blas is not None else 0


@cache
def _openblas() -> Any:
    """Return threadpoolctl's controller of NumPy's OpenBLAS if its kernel is in UNPACKED, otherwise None."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    for library in ThreadpoolController().lib_controllers:
        if library.user_api == "blas" and "torch" not in library.filepath:
            kernel = library.info().get("architecture")
            return library if kernel in UNPACKED else None
    return None


@cache
def _pool() -> ThreadPoolExecutor:
    """Return the threads that help the calling thread. They wait between two products and use no processor time."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="few_rows")


if hasattr(os, "register_at_fork"):  # a forked process has no copy of the threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
