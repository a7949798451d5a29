"""Four bits per weight: NF4, two simpler codes for comparison, and double quantisation (QLoRA, arXiv 2305.14314).

Each block of consecutive weights w is stored as its largest magnitude, absmax = max |w|, and one four-bit code q per
weight. The code q is the index of the value c_q nearest to w/absmax:

    q = argmin_q |w/absmax − c_q|,        ŵ = c_q · absmax

    bits per weight                         block 64
    codes                4                  4
    absmax, float32      32/block           0.5       → 4.5
    … or, double quant   8/block + 32/(256·block)     → 4.127: absmax itself is quantised to 8 bits, in blocks of 256

The library bitsandbytes computes the same codes, absmax values and bytes, and uses the same names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array, array_module, move
from ..ops.checks import on_host
from .code_books import code_book, dynamic_map, dynamic_values, nearest_codes, value_pairs

ABSMAX_BLOCK = 256  # absmax values per scale in double quantisation
TINY = 1e-38  # replaces an absmax of 0 as a divisor
CHUNK = 2**15  # bytes dequantised at a time, so that indices and weights fit in the cache of one core

# ------------------------------------------------------------------------------------------------------- stored arrays


@dataclass(frozen=True, eq=False)
class QuantizedAbsmax:
    """The largest magnitude of each block in 8 bits: dynamic_map[codes[i]] · absmax[i // 256] + offset for block i.

    Parameters
    ----------
    codes : ndarray, shape (blocks,), uint8
        The 8-bit code of the largest magnitude of each block.
    absmax : ndarray, shape (⌈blocks/256⌉,), float32
        One scale for every 256 blocks.
    offset : ndarray, shape (), float32
        The mean of the largest magnitudes. The mean is subtracted before quantisation, because magnitudes are positive,
        but the values of the 8-bit code are symmetric around 0.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.quantization import quantize_4bit
    >>> quantized = quantize_4bit(np.random.default_rng(0).normal(size=(128, 64)), double_quant=True)
    >>> quantized.absmax.size, quantized.absmax.nbytes  # 128 codes, a scale and the offset; float32 would be 512 bytes
    (128, 136)
    """

    codes: Array
    absmax: Array
    offset: Array

    @property
    def size(self) -> int:
        """The number of blocks."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """The stored size in bytes."""
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes


@dataclass(frozen=True, eq=False)
class Quantized4bit:
    """A matrix with four bits per weight: the result of `quantize_4bit`.

    Parameters
    ----------
    packed : ndarray, shape (⌈n/2⌉, 1), uint8
        The codes of the n weights, two codes per byte. The first of the two codes is in the high nibble.
    absmax : ndarray, shape (blocks,), float32, or QuantizedAbsmax
        The largest magnitude of each block. A block is `block_size` consecutive weights of the flattened matrix.
    shape : tuple of int
        The shape of the matrix.
    block_size : int
        Weights per block.
    quant_type : {"nf4", "fp4", "int4"}
        The code.
    dtype : numpy.dtype
        The dtype that `dequantize_4bit` returns by default.

    Raises
    ------
    ValueError
        If the sizes of `packed` and `absmax` do not fit `shape`, for example because a file was truncated.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.quantization import quantize_4bit
    >>> quantized = quantize_4bit(np.random.default_rng(0).normal(size=(128, 64)))
    >>> quantized
    Quantized4bit(shape=(128, 64), block_size=64, quant_type='nf4', dtype=dtype('float64'))
    >>> 8 * quantized.nbytes / quantized.size  # bits per weight
    4.5
    """

    packed: Array = field(repr=False)
    absmax: Array | QuantizedAbsmax = field(repr=False)
    shape: tuple[int, ...]
    block_size: int
    quant_type: str
    dtype: np.dtype

    def __post_init__(self) -> None:
        check_settings(self.block_size, self.quant_type)
        blocks = -(-self.size // self.block_size)
        expected = {"packed": (self.packed, "uint8", -(-self.size // 2))}
        if isinstance(self.absmax, QuantizedAbsmax):
            expected["absmax"] = (self.absmax.codes, "uint8", blocks)
            expected["the absmax of absmax"] = (self.absmax.absmax, "float32", -(-blocks // ABSMAX_BLOCK))
        else:
            expected["absmax"] = (self.absmax, "float32", blocks)
        for name, (x, dtype, size) in expected.items():
            if x.dtype != dtype:
                raise ValueError(f"{name} has dtype {x.dtype}; expected {dtype}")
            if x.size != size:
                raise ValueError(
                    f"{name} has {x.size} entries; expected {size} for weights of shape {self.shape} in blocks of "
                    f"{self.block_size}. Is the file truncated?"
                )

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        """The number of axes of the matrix."""
        return len(self.shape)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """The stored arrays: `packed`, and then `absmax` or the three arrays of a QuantizedAbsmax."""
        absmax = self.absmax
        if isinstance(absmax, QuantizedAbsmax):
            return self.packed, absmax.codes, absmax.absmax, absmax.offset
        return self.packed, absmax

    @property
    def nbytes(self) -> int:
        """The stored size in bytes: codes and absmax."""
        return self.packed.nbytes + self.absmax.nbytes

    def astype(self, dtype: DTypeLike) -> Quantized4bit:
        """Return a matrix with the same codes and another `dtype` for dequantisation. The stored numbers do not change.

        Parameters
        ----------
        dtype : DTypeLike
            The dtype that `dequantize_4bit` returns by default.

        Returns
        -------
        Quantized4bit
            The matrix, with the same arrays.
        """
        return replace(self, dtype=np.dtype(dtype))

    def move_to(self, like: Array | Quantized4bit) -> Quantized4bit:
        """Return the matrix on the device of `like`.

        Parameters
        ----------
        like : ndarray or Quantized4bit
            An array or a quantised matrix on the wanted device.

        Returns
        -------
        Quantized4bit
            The matrix on that device.
        """
        like = like.packed if isinstance(like, Quantized4bit) else like
        absmax = self.absmax
        if isinstance(absmax, QuantizedAbsmax):
            absmax = QuantizedAbsmax(*(move(x, like) for x in (absmax.codes, absmax.absmax, absmax.offset)))
        else:
            absmax = move(absmax, like)
        return replace(self, packed=move(self.packed, like), absmax=absmax)


def check_settings(block_size: int, quant_type: str) -> None:
    """Raise ValueError if the code is unknown or the block size is not a power of two from 2 to 4096."""
    code_book(quant_type)
    if block_size not in [2**k for k in range(1, 13)]:
        raise ValueError(f"block_size = {block_size!r}; expected a power of two from 2 to 4096")


# ----------------------------------------------------------------------------------------------------------- quantise


def quantize_4bit(W: Array, block_size: int = 64, quant_type: str = "nf4", double_quant: bool = False) -> Quantized4bit:
    """Quantise an array to four bits per weight.

    Parameters
    ----------
    W : ndarray, any shape, float
        The weights. The weights are converted to float32 first.
    block_size : int
        The number of consecutive weights of the flattened W per block: a power of two from 2 to 4096.
    quant_type : {"nf4", "fp4", "int4"}
        The code; see `code_book`.
    double_quant : bool
        If True, the largest magnitude of each block (absmax) is stored in 8 bits; see `QuantizedAbsmax`.

    Returns
    -------
    Quantized4bit
        The quantised weights. If the number of weights is odd, the second code of the last byte is the code of zero.

    Raises
    ------
    ValueError
        If W is empty or contains NaN or infinity, or if a setting is out of range.
    TypeError
        If W is not a float array.

    References
    ----------
    QLoRA (Dettmers et al. 2023, arXiv 2305.14314), sections 2 and 3; bitsandbytes.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.quantization import dequantize_4bit, quantize_4bit
    >>> W = np.random.default_rng(0).normal(size=(128, 64)).astype("float32")
    >>> error = dequantize_4bit(quantize_4bit(W)) - W
    >>> print(f"{np.linalg.norm(error) / np.linalg.norm(W):.3f}")  # relative error
    0.093
    """
    xp = array_module(W)
    check_settings(block_size, quant_type)
    if W.dtype.kind != "f":
        raise TypeError(f"W has dtype {W.dtype}; expected floats to quantise")
    if not W.size:
        raise ValueError(f"W has shape {W.shape}; expected at least one weight")
    w = W.reshape(-1).astype("float32")
    if not xp.isfinite(w).all():
        raise ValueError("W contains NaN or infinity, which cannot be quantised; are the weights damaged?")
    full = w.size - w.size % block_size
    blocks, rest = w[:full].reshape(full // block_size, block_size), w[full:]
    absmax = xp.abs(blocks).max(axis=1) if full else xp.empty(0, "float32")  # CuPy has no maximum of an empty array
    scaled = xp.zeros(w.size + w.size % 2, "float32")
    # bitsandbytes multiplies full blocks by 1/absmax, and divides a shorter last block, where it raises absmax to TINY
    scaled[:full] = (blocks * (1 / xp.maximum(absmax, TINY))[:, None]).reshape(-1)
    if rest.size:
        last = xp.maximum(xp.abs(rest).max(keepdims=True), TINY)
        scaled[full : w.size] = rest / last
        absmax = xp.concatenate([absmax, last])
    codes = nearest_codes(scaled, code_book(quant_type))
    packed = (codes[::2] * 16 + codes[1::2]).reshape(-1, 1)
    return Quantized4bit(
        packed, _quantize_absmax(absmax) if double_quant else absmax, tuple(W.shape), block_size, quant_type, W.dtype
    )


def _quantize_absmax(absmax: Array) -> QuantizedAbsmax:
    """Subtract the mean from the absmax values (blocks,) and quantise the differences to 8 bits."""
    xp = array_module(absmax)
    offset = xp.asarray(absmax.mean(dtype="float64").astype("float32"))
    centred = xp.zeros(-(-absmax.size // ABSMAX_BLOCK) * ABSMAX_BLOCK, "float32")
    centred[: absmax.size] = absmax - offset
    centred = centred.reshape(-1, ABSMAX_BLOCK)
    scale = xp.abs(centred).max(axis=1)
    codes = nearest_codes(centred * (1 / xp.maximum(scale, TINY))[:, None], dynamic_map())
    codes *= (scale > 0)[:, None]  # in a block of zeros any code is correct; bitsandbytes uses 0
    return QuantizedAbsmax(codes.reshape(-1)[: absmax.size], scale, offset)


# --------------------------------------------------------------------------------------------------------- dequantise


def dequantize_4bit(quantized: Quantized4bit, dtype: DTypeLike | None = None) -> Array:
    """Compute the weights from the codes, ŵ = c_q · absmax.

    Parameters
    ----------
    quantized : Quantized4bit
        The quantised weights.
    dtype : DTypeLike, optional
        The dtype of the result; None means `quantized.dtype`. The product is always computed in float32, and then
        converted to this dtype.

    Returns
    -------
    ndarray, shape `quantized.shape`
        The weights ŵ.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.quantization import dequantize_4bit, quantize_4bit
    >>> dequantize_4bit(quantize_4bit(np.array([0.5, -2.0, 0.0]))).round(3)  # the largest magnitude and 0 are exact
    array([ 0.492, -2.   ,  0.   ])
    """
    packed, absmax, block_size = quantized.packed.reshape(-1), quantized.absmax, quantized.block_size
    xp = array_module(packed)
    if isinstance(absmax, QuantizedAbsmax):
        absmax = _dequantize_absmax(absmax)
    pairs = value_pairs(quantized.quant_type, xp)
    w = xp.empty(2 * packed.size, "float32")
    two = w.view("float64")  # two weights as one number, as in the table of pairs
    step = CHUNK if on_host(packed) else packed.size  # on a GPU one large step is faster
    for i in range(0, packed.size, step):
        _look_up(pairs, packed[i : i + step], two[i : i + step])
        _scale(w[2 * i : 2 * (i + step)], absmax[2 * i // block_size :], block_size)
    return w[: quantized.size].reshape(quantized.shape).astype(dtype or quantized.dtype, copy=False)


def _dequantize_absmax(absmax: QuantizedAbsmax) -> Array:
    """Compute the absmax values (blocks,) from their 8-bit codes."""
    x = dynamic_values(array_module(absmax.codes))[absmax.codes]
    _scale(x, absmax.absmax, ABSMAX_BLOCK)
    x += absmax.offset
    return x


def _look_up(table: Array, indices: Array, out: Array) -> None:
    """Write table[indices] into `out`. For NumPy arrays, `take` with mode="clip" needs half the time of indexing."""
    if on_host(out):
        np.take(table, indices, out=out, mode="clip")
    else:
        out[:] = table[indices]


def _scale(x: Array, absmax: Array, block_size: int) -> None:
    """Multiply each block of x (n,) by the absmax of the block, in place. The last block may be shorter."""
    n = x.size // block_size
    blocks = x[: n * block_size].reshape(n, block_size)
    blocks *= absmax[:n, None]
    rest = x[n * block_size :]
    if rest.size:
        rest *= absmax[n : n + 1]
