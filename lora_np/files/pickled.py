"""Read a .bin file of PyTorch without running any code of the file.

A .bin file is a ZIP archive without compression:

    archive/data.pkl    a pickle: a dictionary from names to calls of `_rebuild_tensor_v2`
    archive/data/0      the numbers of the first tensor, archive/data/1 the numbers of the second tensor, …

A pickle is a program that can call any function it names. The unpickler in this module accepts only the few names that
a dictionary of tensors needs, and calls functions of this module instead of PyTorch's functions. Any other name raises
an error. PyTorch offers the same protection with `weights_only=True`.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LARGEST_PICKLE = 64_000_000  # bytes of data.pkl; the numbers of the tensors are not in it
STORAGES = {  # PyTorch's storages → dtype
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Storage(NamedTuple):
    """The numbers of a tensor: the name of their entry in the archive, their dtype, and the number of elements."""

    entry: str
    dtype: str
    size: int


class Tensor(NamedTuple):
    """A tensor: its storage, the index of its first element, its shape and its strides, in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pickled(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a .bin, .pt or .pth file that PyTorch wrote.

    Parameters
    ----------
    path : str or PathLike
        The file. It contains a dictionary from names to tensors.

    Returns
    -------
    dict of str to ndarray
        The tensors by name, in the dtypes of the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not an uncompressed archive of PyTorch, if it is damaged, or if it contains objects other than
        tensors.

    Examples
    --------
    >>> from lora_np.files import read_pickled
    >>> read_pickled("README.md")
    Traceback (most recent call last):
        ...
    ValueError: README.md is not a ZIP archive of PyTorch (File is not a zip file); save it with PyTorch 1.6 or newer
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{path} is not a ZIP archive of PyTorch ({error}); save it with PyTorch 1.6 or newer"
        ) from None
    except Exception as error:  # a damaged pickle can raise any error
        raise ValueError(f"{path} cannot be read: {error}") from None


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    entries = {info.filename: info for info in archive.infolist()}
    programs = [name for name in entries if name.endswith("/data.pkl")]
    if len(programs) != 1 or any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise ValueError("expected an uncompressed archive with one data.pkl, as torch.save writes it")
    (program,) = programs
    folder = program.removesuffix("data.pkl")
    if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("the numbers are big-endian; expected little-endian numbers")
    if entries[program].file_size > LARGEST_PICKLE:
        raise ValueError(f"data.pkl has {entries[program].file_size:,} bytes; expected at most {LARGEST_PICKLE:,}")
    found = _Unpickler(io.BytesIO(archive.read(program))).load()
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(x, Tensor) for name, x in found.items()
    ):
        raise ValueError("expected a dictionary from names to tensors")
    return {name: _array(archive, f"{folder}data/", x) for name, x in found.items()}


def _array(archive: zipfile.ZipFile, folder: str, tensor: Tensor) -> np.ndarray:
    """Return a copy of a tensor. Raises ValueError if the tensor reaches past the end of its storage."""
    storage, offset, shape, strides = tensor
    for numbers in ((storage.size, offset), shape, strides):
        if not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(
                f"a tensor has shape {shape}, strides {strides} and offset {offset}; expected whole numbers"
            )
    data = archive.read(folder + storage.entry)
    if storage.dtype == "bfloat16":
        import ml_dtypes

        x = np.frombuffer(data, ml_dtypes.bfloat16)
    else:
        x = np.frombuffer(data, storage.dtype)
    size, last = (
        prod(int(n) for n in shape),
        offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)),
    )
    if len(x) != storage.size or size > len(x) or (size and last >= len(x)):
        raise ValueError(
            f"a tensor of shape {shape} and strides {strides} at {offset} does not fit in {len(x)} numbers"
        )
    steps = tuple(step * x.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(x[offset:], shape, steps).copy() if size else np.empty(shape, x.dtype)


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise pickle.UnpicklingError("a tensor has no storage, no shape or no strides")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows only the names that a dictionary of tensors needs."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        }
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"the file calls {module}.{name}; only files of tensors can be read")
        return known[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, entry, _, size = pid
        if kind != "storage" or dtype not in STORAGES.values() or not isinstance(entry, str):
            raise pickle.UnpicklingError(f"the file contains an unknown object {pid!s:.80}")
        return Storage(entry, dtype, size)
