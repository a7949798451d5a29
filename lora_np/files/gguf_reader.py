"""A GGUF file (llama.cpp's format): its metadata, and its arrays dequantised to float32 one at a time.

    file   = "GGUF" version:u32 arrays:u64 entries:u64 · entry × entries · info × arrays · padding · data
    entry  = key:string type:u32 value
    info   = name:string dimensions:u32 (size:u64) × dimensions type:u32 offset:u64     sizes from the last axis to the first
    string = length:u64 bytes;  array = type:u32 count:u64 values

All little-endian. The header is read here and not by the `gguf` package, whose reader believes it: a damaged count sends it
into a loop without end. Here a count is believed only when the file has that many bytes left. The numbers of every type, and
how to dequantise them, are the package's.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import extra
from .arrays import StoredArrays

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # 1 had 32-bit sizes, and no model that is still around
MAX_DIMENSIONS = 4  # ggml's GGML_MAX_DIMS
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
CHUNK = 2**16  # weights dequantised at a time: what the package's temporary arrays take stays in the processor's cache


@dataclass(frozen=True)
class _Info:
    """Where an array's bytes are, and what they mean."""

    shape: tuple[int, ...]
    type: int  # gguf.GGMLQuantizationType
    start: int  # from the beginning of the data
    rows: tuple[int, int]  # how many, and bytes in each: a row is quantised by itself


@contextmanager
def open_gguf(path: str | os.PathLike[str]) -> Iterator[StoredArrays]:
    """The arrays of a GGUF file under its own names, memory-mapped, and its metadata.

    Metadata are Python's numbers and strings, and arrays of numbers NumPy's. Each array comes as float32, whatever its type.
    Raises FileNotFoundError where there is no file, ValueError naming the file and what is wrong in it: another format, an
    end before its time, a size that cannot be, or a type that the `gguf` package does not dequantise.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        data, start, metadata, infos = _read_header(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not to be read here: {error}") from None
    shapes = {name: info.shape for name, info in infos.items()}
    yield StoredArrays(shapes, lambda name: _dequantize(data, start, infos[name]), metadata)


def _dequantize(data: np.ndarray, start: int, info: _Info) -> np.ndarray:
    """One array in float32, a few rows at a time, so that it costs little memory beside its own."""
    from gguf.quants import GGMLQuantizationType, dequantize

    rows, row_bytes = info.rows
    begin = start + info.start
    packed = data[begin : begin + rows * row_bytes].reshape(rows, row_bytes)
    x = np.empty((rows, prod(info.shape) // rows), np.float32)
    step = max(1, CHUNK // x.shape[1])
    with np.errstate(all="ignore"):  # damaged scales give NaN, which whoever reads the array sees
        for i in range(0, rows, step):
            x[i : i + step] = dequantize(packed[i : i + step], GGMLQuantizationType(info.type))
    return x.reshape(info.shape)


# ----------------------------------------------------------------------------------------------------------- the header


class _Cursor:
    """Reads on from `at`. Every size goes through `take`, which refuses what the file does not have."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        begin, left = self.at, len(self.data) - self.at
        if size > left:
            raise ValueError(f"at byte {begin} it claims {size} more, and {left} are left; get it again")
        self.at += size
        return begin

    def number(self, kind: str) -> Any:
        """One number: kind is struct's letter."""
        return struct.unpack_from("<" + kind, self.data, self.take(struct.calcsize("<" + kind)))[0]

    def string(self) -> str:
        size = self.number("Q")
        begin = self.take(size)
        return str(self.data[begin : begin + size], "utf-8")  # UnicodeDecodeError is a ValueError

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, count = self.number("I"), self.number("Q")
            if inner == STRING:
                if 8 * count > len(self.data) - self.at:  # each string has at least its length
                    raise ValueError(f"at byte {self.at} it claims {count} strings; get it again")
                return [self.string() for _ in range(count)]
            return self.numbers(inner, count)
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise ValueError(f"at byte {self.at} is a value of type {kind}, which GGUF does not have here")
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize)).copy()


def _read_header(path: Path) -> tuple[np.ndarray, int, dict[str, Any], dict[str, _Info]]:
    """The file mapped into memory, where its data begin, the metadata, and the arrays' places, all checked."""
    if path.stat().st_size < 24:
        raise ValueError("it has no header")
    data = np.asarray(np.memmap(path, np.uint8, "r"))  # a plain array, of which views are cheap
    cursor = _Cursor(data.data)
    cursor.take(4)
    if (magic := bytes(data[:4])) != MAGIC:
        raise ValueError(f"it begins with {magic!r} and not with {MAGIC!r}, so it is no GGUF file")
    if (version := cursor.number("I")) not in VERSIONS:
        other = "; it was written for a big-endian machine" if version & 0xFFFF == 0 else ""
        raise ValueError(f"GGUF version {version}; versions 2 and 3 are read{other}")
    arrays, entries = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"{key} is there twice")
        metadata[key] = cursor.value(cursor.number("I"))
    infos: dict[str, _Info] = {}
    for _ in range(arrays):
        name = cursor.string()
        if name in infos:
            raise ValueError(f"{name} is there twice")
        infos[name] = _read_info(name, cursor)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}; expected a power of two")
    start = -(-cursor.at // alignment) * alignment  # the data begin at the next multiple
    end = 0
    for name, info in sorted(infos.items(), key=lambda item: item[1].start):
        size = prod(info.rows)
        if info.start < end or start + info.start + size > len(data):
            raise ValueError(f"{name}, {size} bytes at {info.start}, is past the end of the data or over another array")
        end = info.start + size
    return data, start, metadata, infos


def _read_info(name: str, cursor: _Cursor) -> _Info:
    with extra("models", "a .gguf file"):
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

    dimensions = cursor.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    kind, start = cursor.number("I"), cursor.number("Q")
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]  # numbers in a block, and its bytes
        dequantize(np.zeros((1, block_bytes), np.uint8), GGMLQuantizationType(kind))
    except (ValueError, KeyError):
        raise ValueError(f"{name} has type {kind}, which the gguf package does not know") from None
    except NotImplementedError:
        raise ValueError(f"{name} has type {GGMLQuantizationType(kind).name}, which cannot be dequantised") from None
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{name} has shape {shape}; expected rows of whole blocks of {block}")
    return _Info(shape, kind, start, (prod(shape[:-1]), shape[-1] // block * block_bytes))
