"""Four bits a weight: NF4, the plain codes that it is compared with, and double quantisation (QLoRA, arXiv 2305.14314).

A block of consecutive weights w keeps its largest magnitude, absmax = max |w|, and of each weight the code q, four bits, whose
value c_q is nearest to w/absmax:

    q = argmin_q |w/absmax − c_q|,        ŵ = c_q · absmax

    bits a weight                           block 64
    codes                4                  4
    absmax, float32      32/block           0.5       → 4.5
    … or, double quant   8/block + 32/(256·block)     → 4.127: absmax is itself quantised, to 8 bits in blocks of 256

Codes, absmax and bytes are those of bitsandbytes, whose names these are too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..backend import Array, array_module, move
from ..ops.checks import on_host

QUANT_TYPES = ("nf4", "fp4", "int4")
ABSMAX_BLOCK = 256  # how many absmax share one scale in double quantisation
TINY = 1e-38  # an absmax to divide by where all weights are 0
CHUNK = 2**15  # bytes dequantised at a time, so that their indices and their weights stay in a core's own cache

# ------------------------------------------------------------------------------------------------------------ code books


@cache
def code_book(quant_type: str) -> tuple[float, ...]:
    """The 16 values c_q of a type, by code, each a float32 number.

    nf4: as many weights on each code where weights are normal. The codes are quantiles of N(0, 1), eight above zero and seven
        below, evenly spaced in probability from ½ out to 1 − ½(1/30 + 1/32) = 0.9677083, divided by the largest; and zero
        itself, so that a weight of 0 stays 0. Source: arXiv 2305.14314, section 3; bitsandbytes' `create_normal_map`, from
        which this differs by no bit (the probabilities are float32 there). The paper's equation 4 gives other numbers.
    fp4: one sign bit, two of exponent, one of mantissa, in the order of the bits; ±12 the largest. Source: bitsandbytes.
    int4: (q − 8)/7, evenly spaced. q = 0 is not used: the others are symmetric.

    Raises ValueError for another type.
    """
    if quant_type == "nf4":
        quantile = NormalDist().inv_cdf
        above = [quantile(p) for p in _float32_steps(0.9677083, 0.5, 9)[:-1]]
        below = [-quantile(p) for p in _float32_steps(0.9677083, 0.5, 8)[:-1]]
        codes = sorted([*below, 0.0, *above])
    elif quant_type == "fp4":
        magnitudes = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0]
        codes = magnitudes + [0.0 - x for x in magnitudes]  # no −0
    elif quant_type == "int4":
        codes = [q - 8.0 for q in range(16)]
        return tuple(float(np.float32(c / 7)) for c in codes)
    else:
        raise ValueError(f"unknown quant_type {quant_type!r}; expected one of {', '.join(QUANT_TYPES)}")
    return tuple(float(np.float32(c) / np.float32(max(codes))) for c in codes)


@cache
def dynamic_map() -> tuple[float, ...]:
    """The 256 values of the 8-bit code of double quantisation, ascending: −0.993 … 0 … 0.993 and 1.

    A decimal exponent from 10⁻⁶ to 10⁰ that takes one bit more for each step down, and a fraction in (0.1, 1) on the bits that
    are left: 1, 2, 4, …, 64 values a decade and sign. Source: Dettmers 2015, arXiv 1511.04561; bitsandbytes'
    `create_dynamic_map`, from which this differs by no bit.
    """
    codes = [0.0, 1.0]
    for i in range(7):
        edges = _float32_steps(0.1, 1.0, 2**i + 1)
        for low, high in pairwise(edges):
            code = float(np.float32(10.0 ** (i - 6)) * (np.float32(low + high) / np.float32(2)))
            codes += [code, -code]
    return tuple(sorted(codes))


def _float32_steps(start: float, stop: float, n: int) -> list[float]:
    """n evenly spaced float32 numbers, counted from the nearer end, to the bit as torch.linspace has them."""
    start, stop = float(np.float32(start)), float(np.float32(stop))
    step = float(np.float32(np.float32(stop - start) / np.float32(n - 1)))
    return [float(np.float32(start + step * i if i < n // 2 else stop - step * (n - 1 - i))) for i in range(n)]


@cache
def _boundaries(codes: tuple[float, ...], xp: Any) -> tuple[Array, Array]:
    """(midpoints between neighbouring values, the codes in the order of their values), on the device of `xp`."""
    order = sorted(range(len(codes)), key=codes.__getitem__)
    midpoints = [(codes[a] + codes[b]) / 2 for a, b in pairwise(order)]
    return xp.asarray(midpoints, "float32"), xp.asarray(order, "uint8")


@cache
def _pairs(quant_type: str, xp: Any) -> Array:
    """byte → its two values, high nibble first, as one number of 64 bits: a look-up then fetches both at once."""
    codes = code_book(quant_type)
    pairs = [[codes[byte >> 4], codes[byte & 15]] for byte in range(256)]
    return xp.asarray(pairs, "float32").view("float64").reshape(-1)


@cache
def _dynamic(xp: Any) -> Array:
    return xp.asarray(dynamic_map(), "float32")


def _nearest(x: Array, codes: tuple[float, ...]) -> Array:
    """The code of the value nearest to each x, uint8; on a midpoint the lower value."""
    xp = array_module(x)
    midpoints, order = _boundaries(codes, xp)
    return order[xp.searchsorted(midpoints, x, side="left")]


# ------------------------------------------------------------------------------------------------------- what is stored


@dataclass(frozen=True, eq=False)
class QuantizedAbsmax:
    """The absmax of all blocks in 8 bits: absmax_i = dynamic_map[codes_i] · absmax[i // 256] + offset.

    codes (blocks,) uint8; absmax (⌈blocks/256⌉,) float32; offset () float32, their mean: magnitudes are positive, and the
    map is symmetric.
    """

    codes: Array
    absmax: Array
    offset: Array

    @property
    def size(self) -> int:
        return self.codes.size

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.absmax.nbytes + self.offset.nbytes


@dataclass(frozen=True, eq=False)
class Quantized4bit:
    """A matrix in four bits a weight: what `quantize_4bit` returns, and all that is kept of the weights.

    packed (⌈n/2⌉, 1) uint8, two codes a byte, the first in the high nibble, blocks running through the flattened matrix.
    absmax (blocks,) float32, or a QuantizedAbsmax.
    shape, dtype: of the matrix, as `dequantize_4bit` gives it. Like an array it has a `size`, in weights, and `astype`.

    Raises ValueError where packed and absmax are not as long as the shape asks, as in a file that was cut.
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
        for what, (x, dtype, size) in expected.items():
            if x.dtype != dtype:
                raise ValueError(f"{what} has dtype {x.dtype}; expected {dtype}")
            if x.size != size:
                raise ValueError(
                    f"{what} has {x.size} entries; {self.shape} weights in blocks of {self.block_size} have {size}: "
                    "is the file truncated?"
                )

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def arrays(self) -> tuple[Array, ...]:
        """All that is stored: packed, and absmax or what it is made from."""
        absmax = self.absmax
        if isinstance(absmax, QuantizedAbsmax):
            return self.packed, absmax.codes, absmax.absmax, absmax.offset
        return self.packed, absmax

    @property
    def nbytes(self) -> int:
        """Bytes that are stored: codes, absmax and what absmax is made from."""
        return self.packed.nbytes + self.absmax.nbytes

    def astype(self, dtype: DTypeLike) -> Quantized4bit:
        """The same codes, to be dequantised to another dtype: the numbers that were stored stay as they are."""
        return replace(self, dtype=np.dtype(dtype))

    def move_to(self, like: Array | Quantized4bit) -> Quantized4bit:
        """The same where `like` lives."""
        like = like.packed if isinstance(like, Quantized4bit) else like
        absmax = self.absmax
        if isinstance(absmax, QuantizedAbsmax):
            absmax = QuantizedAbsmax(*(move(x, like) for x in (absmax.codes, absmax.absmax, absmax.offset)))
        else:
            absmax = move(absmax, like)
        return replace(self, packed=move(self.packed, like), absmax=absmax)


def check_settings(block_size: int, quant_type: str) -> None:
    """Raise ValueError for a type that is not here, or a block size that is not a power of two from 2 to 4096."""
    code_book(quant_type)
    if block_size not in [2**k for k in range(1, 13)]:
        raise ValueError(f"block_size = {block_size!r}; expected a power of two from 2 to 4096")


# ------------------------------------------------------------------------------------------------------------ there …


def quantize_4bit(W: Array, block_size: int = 64, quant_type: str = "nf4", double_quant: bool = False) -> Quantized4bit:
    """W (any shape) → its codes and absmax, in blocks of `block_size` along the flattened W.

    quant_type: "nf4", "fp4" or "int4", see `code_book`. double_quant: keep absmax in 8 bits, see `QuantizedAbsmax`.
    The arithmetic is float32's. An odd last byte is filled up with the code of zero.

    Raises ValueError for NaN or infinity in W, an empty W, a type that is not here, a block size that is not a power of two;
    TypeError where W is no float array. Source: arXiv 2305.14314, sections 2 and 3; bitsandbytes.
    """
    xp = array_module(W)
    check_settings(block_size, quant_type)
    if W.dtype.kind != "f":
        raise TypeError(f"W has dtype {W.dtype}; expected floats to quantise")
    if not W.size:
        raise ValueError(f"W has shape {W.shape}: there is nothing to quantise")
    w = W.reshape(-1).astype("float32")
    if not xp.isfinite(w).all():
        raise ValueError("W holds NaN or infinity, which no code stands for: the weights are damaged")
    full = w.size - w.size % block_size
    blocks, rest = w[:full].reshape(full // block_size, block_size), w[full:]
    absmax = xp.abs(blocks).max(axis=1) if full else xp.empty(0, "float32")  # CuPy knows no maximum of nothing
    scaled = xp.zeros(w.size + w.size % 2, "float32")
    # bitsandbytes multiplies full blocks by 1/absmax and divides the rest, and an absmax of 0 it lifts there alone: to the bit
    scaled[:full] = (blocks * (1 / xp.maximum(absmax, TINY))[:, None]).reshape(-1)
    if rest.size:
        last = xp.maximum(xp.abs(rest).max(keepdims=True), TINY)
        scaled[full : w.size] = rest / last
        absmax = xp.concatenate([absmax, last])
    codes = _nearest(scaled, code_book(quant_type))
    packed = (codes[::2] * 16 + codes[1::2]).reshape(-1, 1)
    return Quantized4bit(
        packed, _quantize_absmax(absmax) if double_quant else absmax, tuple(W.shape), block_size, quant_type, W.dtype
    )


def _quantize_absmax(absmax: Array) -> QuantizedAbsmax:
    """absmax (blocks,) to 8 bits around its mean."""
    xp = array_module(absmax)
    offset = xp.asarray(absmax.mean(dtype="float64").astype("float32"))
    centred = xp.zeros(-(-absmax.size // ABSMAX_BLOCK) * ABSMAX_BLOCK, "float32")
    centred[: absmax.size] = absmax - offset
    centred = centred.reshape(-1, ABSMAX_BLOCK)
    scale = xp.abs(centred).max(axis=1)
    codes = _nearest(centred * (1 / xp.maximum(scale, TINY))[:, None], dynamic_map())
    codes *= (scale > 0)[:, None]  # in a block of zeros any code does; bitsandbytes' is 0
    return QuantizedAbsmax(codes.reshape(-1)[: absmax.size], scale, offset)


# ------------------------------------------------------------------------------------------------------- … and back


def dequantize_4bit(quantized: Quantized4bit, dtype: DTypeLike | None = None) -> Array:
    """ŵ = c_q · absmax, an array of `quantized.shape` and of `dtype`, if it is given, or `quantized.dtype`.

    The product is float32's whatever the dtype, so that ŵ is the same number in each.
    """
    packed, absmax, block_size = quantized.packed.reshape(-1), quantized.absmax, quantized.block_size
    xp = array_module(packed)
    if isinstance(absmax, QuantizedAbsmax):
        absmax = _dequantize_absmax(absmax)
    pairs = _pairs(quantized.quant_type, xp)
    w = xp.empty(2 * packed.size, "float32")
    two = w.view("float64")  # two weights at once, as the table has them
    step = CHUNK if on_host(packed) else packed.size  # a GPU would rather have it all in one go
    for i in range(0, packed.size, step):
        _look_up(pairs, packed[i : i + step], two[i : i + step])
        _scale(w[2 * i : 2 * (i + step)], absmax[2 * i // block_size :], block_size)
    return w[: quantized.size].reshape(quantized.shape).astype(dtype or quantized.dtype, copy=False)


def _dequantize_absmax(absmax: QuantizedAbsmax) -> Array:
    x = _dynamic(array_module(absmax.codes))[absmax.codes]
    _scale(x, absmax.absmax, ABSMAX_BLOCK)
    x += absmax.offset
    return x


def _look_up(table: Array, indices: Array, out: Array) -> None:
    """out = table[indices]; NumPy's take writes it in place, in half the time, where it need not check the indices."""
    if on_host(out):
        np.take(table, indices, out=out, mode="clip")
    else:
        out[:] = table[indices]


def _scale(x: Array, absmax: Array, block_size: int) -> None:
    """x *= absmax of its block, in place, for x (n,) that starts with a block; the last one may be shorter."""
    n = x.size // block_size
    blocks = x[: n * block_size].reshape(n, block_size)
    blocks *= absmax[:n, None]
    rest = x[n * block_size :]
    if rest.size:
        rest *= absmax[n : n + 1]
