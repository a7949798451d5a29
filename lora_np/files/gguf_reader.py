"""A reader for GGUF files, the format of llama.cpp. The reader returns the metadata, and arrays dequantised to float32.

    file   = "GGUF" version:u32 arrays:u64 entries:u64 · entry × entries · info × arrays · padding · data
    entry  = key:string type:u32 value
    info   = name:string dimensions:u32 (size:u64) × dimensions type:u32 offset:u64     sizes from the last axis to the first
    string = length:u64 bytes;  array = type:u32 count:u64 values

All numbers are little-endian. This module reads the header itself, because the reader of the `gguf` package does not
check the header. A damaged count makes that reader loop forever. This module accepts a count only if the file has at
least that many bytes left. The `gguf` package provides the block size of each type and dequantises the blocks.

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
VERSIONS = (2, 3)  # version 1, with 32-bit sizes, is no longer in use
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
CHUNK = 2**16  # weights dequantised at a time, so that temporary arrays fit in the processor's cache


@dataclass(frozen=True)
class _Info:
    """The shape, the type and the position of one array in the file."""

    shape: tuple[int, ...]
    type: int  # gguf.GGMLQuantizationType
    start: int  # bytes from the start of the data section
    rows: tuple[int, int]  # number of rows, and bytes per row; each row is quantised separately


@contextmanager
def open_gguf(path: str | os.PathLike[str]) -> Iterator[StoredArrays]:
    """Open a GGUF file in a `with` statement, to read its metadata, and its arrays one at a time.

    Parameters
    ----------
    path : str or PathLike
        The file to read.

    Yields
    ------
    StoredArrays
        The arrays by their names in the file. An array is dequantised to float32 when it is accessed. Metadata values
        are Python numbers and strings, lists of strings, and NumPy arrays of numbers.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a GGUF file, if it is damaged, or if the `gguf` package cannot dequantise one of its arrays.

    References
    ----------
    https://github.com/ggml-org/ggml/blob/master/docs/gguf.md

    Examples
    --------
    >>> import struct
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.files import open_gguf
    >>> header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)  # version 3, no array, one entry
    >>> entry = struct.pack("<Q", 5) + b"layer" + struct.pack("<II", 4, 30)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "x.gguf"
    ...     _ = path.write_bytes(header + entry)
    ...     with open_gguf(path) as stored:
    ...         print(stored.metadata, len(stored))
    {'layer': 30} 0
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        data, start, metadata, infos = _read_header(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged or not supported: {error}") from None
    shapes = {name: info.shape for name, info in infos.items()}
    yield StoredArrays(shapes, lambda name: _dequantize(data, start, infos[name]), metadata)


def _dequantize(data: np.ndarray, start: int, info: _Info) -> np.ndarray:
    """Return one array in float32. The rows are dequantised a few at a time, to keep temporary arrays small."""
    from gguf.quants import GGMLQuantizationType, dequantize

    rows, row_bytes = info.rows
    begin = start + info.start
    packed = data[begin : begin + rows * row_bytes].reshape(rows, row_bytes)
    x = np.empty((rows, prod(info.shape) // rows), np.float32)
    step = max(1, CHUNK // x.shape[1])
    with np.errstate(all="ignore"):  # damaged scales give NaN; load_model checks for NaN
        for i in range(0, rows, step):
            x[i : i + step] = dequantize(packed[i : i + step], GGMLQuantizationType(info.type))
    return x.reshape(info.shape)


# ----------------------------------------------------------------------------------------------------------- the header


class _Cursor:
    """A read position in the file. `take` checks every size against the number of bytes left."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> int:
        """Move forward by `size` bytes, and return the position before the move."""
        begin, left = self.at, len(self.data) - self.at
        if size > left:
            raise ValueError(
                f"at byte {begin} the file claims {size} more bytes, but only {left} are left; download the file again"
            )
        self.at += size
        return begin

    def number(self, kind: str) -> Any:
        """Read one number; `kind` is a format letter of the `struct` module."""
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
                if 8 * count > len(self.data) - self.at:  # each string takes at least the 8 bytes of its length
                    raise ValueError(
                        f"at byte {self.at} the file claims {count} strings, which do not fit in the file; download "
                        "the file again"
                    )
                return [self.string() for _ in range(count)]
            return self.numbers(inner, count)
        return self.numbers(kind, 1)[0].item()

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in NUMBERS:
            raise ValueError(
                f"the value at byte {self.at} has type {kind}, which is not allowed here; download the file again"
            )
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize)).copy()


def _read_header(path: Path) -> tuple[np.ndarray, int, dict[str, Any], dict[str, _Info]]:
    """Read and check the header. Return the memory-mapped file, the start of the data, the metadata and one _Info per array."""
    if path.stat().st_size < 24:
        raise ValueError("the file is too short for a header")
    data = np.asarray(np.memmap(path, np.uint8, "r"))  # a plain array: its views are cheaper than those of a memmap
    cursor = _Cursor(data.data)
    cursor.take(4)
    if (magic := bytes(data[:4])) != MAGIC:
        raise ValueError(f"the file begins with {magic!r}, but a GGUF file begins with {MAGIC!r}")
    if (version := cursor.number("I")) not in VERSIONS:
        other = "; it was written for a big-endian machine" if version & 0xFFFF == 0 else ""
        raise ValueError(f"the file has GGUF version {version}; versions 2 and 3 are supported{other}")
    arrays, entries = cursor.number("Q"), cursor.number("Q")
    metadata: dict[str, Any] = {}
    for _ in range(entries):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"the key {key} appears twice")
        metadata[key] = cursor.value(cursor.number("I"))
    infos: dict[str, _Info] = {}
    for _ in range(arrays):
        name = cursor.string()
        if name in infos:
            raise ValueError(f"the array {name} appears twice")
        infos[name] = _read_info(name, cursor)
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment is {alignment!r}; expected a power of two")
    start = -(-cursor.at // alignment) * alignment  # the data begin at the next multiple of the alignment
    end = 0
    for name, info in sorted(infos.items(), key=lambda item: item[1].start):
        size = prod(info.rows)
        if info.start < end or start + info.start + size > len(data):
            raise ValueError(
                f"{name} ({size} bytes at {info.start}) reaches past the end of the data or overlaps another array"
            )
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
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]  # numbers per block, bytes per block
        dequantize(np.zeros((1, block_bytes), np.uint8), GGMLQuantizationType(kind))
    except (ValueError, KeyError):
        raise ValueError(f"{name} has type {kind}, which is unknown to the gguf package") from None
    except NotImplementedError:
        raise ValueError(
            f"{name} has type {GGMLQuantizationType(kind).name}, which the gguf package cannot dequantise"
        ) from None
    if min(shape) < 1 or shape[-1] % block:
        raise ValueError(f"{name} has shape {shape}; expected rows whose length is a multiple of {block}")
    return _Info(shape, kind, start, (prod(shape[:-1]), shape[-1] // block * block_bytes))
