"""Named arrays in safetensors files.

Files are written completely or not at all (durable.py). Equal arrays and equal metadata give files with equal bytes. A
file is checked when it is read. Pickles are never read, because a pickle can run code.

A safetensors file has three parts: 8 bytes with the length of the header, the header in JSON, and the bytes of the arrays.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .durable import write_atomically

FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}  # the name of a dtype in safetensors → in ml_dtypes
DIRECT = {"F32": np.float32, "F16": np.float16} | dict.fromkeys(("BF16", *FLOAT8), np.float32)  # returned dtypes
CHUNK = 2**20  # how many numbers are converted at once
DIGEST = "lora_np.sha256"  # metadata key: SHA-256 of everything else in the file
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "bool": "BOOL"}
DTYPES |= {f"{kind}{bits}": f"{kind[0].upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)}


@dataclass(frozen=True, eq=False)
class StoredArrays(Mapping[str, np.ndarray]):
    """A mapping from names to arrays on disk. Each access `stored[name]` reads one array from the file.

    A loop over the arrays needs memory for only one array at a time.

    Parameters
    ----------
    shapes : dict of str to tuple of int
        The name and shape of each array.
    read : callable
        A function that reads one array: read(name) returns the array.
    metadata : dict
        The metadata of the file.
    files : dict of str to str
        The file name of each array, if the arrays are in several files.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.files import StoredArrays
    >>> stored = StoredArrays({"W": (2, 3)}, lambda name: np.zeros((2, 3)), {})
    >>> list(stored), stored["W"].shape
    (['W'], (2, 3))
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, Any]
    files: Mapping[str, str] = field(default_factory=dict)

    def label(self, name: str) -> str:
        """Return the name of an array for a message, with the file of the array if there are several files.

        Parameters
        ----------
        name : str
            The name of an array.

        Returns
        -------
        str
            The name, or the name and the file.
        """
        return f"{name} in {self.files[name]}" if name in self.files else name

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays and metadata to a safetensors file, with a SHA-256 digest that detects any changed byte.

    Parameters
    ----------
    path : str or PathLike
        The file to write. An existing file is replaced only when the new file is complete.
    arrays : dict of str to ndarray
        NumPy arrays by name, of any shapes.
    metadata : dict of str to str, optional
        Strings to store in the header of the file, in addition to the digest.

    Raises
    ------
    TypeError
        If the format does not support the dtype of an array, or if a value of the metadata is not a string.
    OSError
        If the file cannot be written, for example because the disk is full.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from lora_np.files import load_arrays, save_arrays
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_arrays(f"{folder}/x.safetensors", {"W": np.ones((2, 3))}, {"step": "7"})
    ...     arrays, metadata = load_arrays(f"{folder}/x.safetensors")
    >>> arrays["W"].shape, metadata["step"]
    ((2, 3), '7')
    """
    contiguous = {name: np.asarray(x, x.dtype.newbyteorder("<"), order="C") for name, x in arrays.items()}
    metadata = dict(metadata or {})
    for name, x in contiguous.items():
        if x.dtype.name not in DTYPES:
            raise TypeError(f"{path}: {name} has dtype {x.dtype}; expected one of {', '.join(DTYPES)}")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise TypeError(f"{path}: the metadata {key!r} is {value!r}; expected a string")
    metadata[DIGEST] = _digest(contiguous, metadata)
    write_atomically(path, lambda temporary: _write(temporary, contiguous, metadata))


def _write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. `save_file` of safetensors is not used, because it writes the metadata in random
    order."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))  # this order aligns every array
    end = 0
    for name in names:
        x = arrays[name]
        start, end = end, end + x.nbytes
        header[name] = {"dtype": DTYPES[x.dtype.name], "shape": list(x.shape), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read all arrays and the metadata of a safetensors file.

    Parameters
    ----------
    path : str or PathLike
        The file to read.

    Returns
    -------
    arrays : dict of str to ndarray
        The arrays by name. bfloat16 and float8 arrays are converted to float32, without loss.
    metadata : dict of str to str
        The strings that are stored in the header of the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a safetensors file, if it is truncated, or if its content does not match its digest.

    Examples
    --------
    >>> from pathlib import Path
    >>> import lora_np
    >>> from lora_np.files import load_arrays
    >>> arrays, metadata = load_arrays(Path(lora_np.__file__).parent / "assets/tiny/model.safetensors")
    >>> arrays["model.norm.weight"].shape
    (128,)
    """
    with _open(Path(path)) as stored:
        arrays = dict(stored)
    _check_digest(path, arrays, stored.metadata)
    return arrays, stored.metadata


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[StoredArrays]:
    """Open a safetensors file in a `with` statement, to read its arrays one at a time.

    The digest is checked when the file is opened. This check needs memory for only one array at a time.

    Parameters
    ----------
    path : str or PathLike
        The file to read.

    Yields
    ------
    StoredArrays
        The arrays, which are read when they are accessed.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is not a safetensors file, if it is truncated, or if its content does not match its digest.

    Examples
    --------
    >>> from pathlib import Path
    >>> import lora_np
    >>> from lora_np.files import open_arrays
    >>> with open_arrays(Path(lora_np.__file__).parent / "assets/tiny/model.safetensors") as stored:
    ...     stored.shapes["model.embed_tokens.weight"]
    (256, 128)
    """
    with _open(Path(path)) as stored:
        _check_digest(path, stored, stored.metadata)
        yield stored


@contextmanager
def _open(path: Path) -> Iterator[StoredArrays]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        file = safe_open(path, framework="numpy")  # compares every size in the header with the file size
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged or not a safetensors file ({error!s:.300}); download or write it again"
        ) from None
    with file, path.open("rb") as raw:
        begin = _begin_of_data(raw)
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, file is not a dict
        dtypes = {name: slice_.get_dtype() for name, slice_ in slices.items()}

        def read(name: str) -> np.ndarray:
            if dtypes[name] in DIRECT:
                return _read_direct(raw, begin[name], tuple(slices[name].get_shape()), dtypes[name])
            try:
                x = file.get_tensor(name)
            except (TypeError, AttributeError):
                raise ValueError(
                    f"{path}: {name} has dtype {dtypes[name]}, which NumPy does not support; convert the file to float32"
                ) from None
            return x

        shapes = {name: tuple(slice_.get_shape()) for name, slice_ in slices.items()}
        yield StoredArrays(shapes, read, dict(file.metadata() or {}))


def _begin_of_data(raw: BinaryIO) -> dict[str, int]:
    """Return the position of each array's first byte. The caller has already checked the header with `safe_open`."""
    size = int.from_bytes(raw.read(8), "little")
    header = json.loads(raw.read(size))
    return {name: 8 + size + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _read_direct(raw: BinaryIO, begin: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Read one array of floats from the file. bfloat16 and 8-bit numbers become float32, without loss.

    The package safetensors maps the whole file into memory and copies each array twice, but this function needs memory
    only for the array. The package cannot read 8-bit floats into NumPy arrays.
    """
    x = np.empty(prod(shape), DIRECT[dtype])
    raw.seek(begin)
    if dtype in ("F32", "F16"):
        raw.readinto(x.data.cast("B"))  # type: ignore[attr-defined]
    for start in range(0, x.size if dtype not in ("F32", "F16") else 0, CHUNK):
        part = slice(start, min(start + CHUNK, x.size))
        if dtype == "BF16":  # the upper half of float32
            np.left_shift(np.fromfile(raw, "<u2", part.stop - start), 16, out=x.view(np.uint32)[part], dtype=np.uint32)
        else:
            x[part] = np.frombuffer(raw.read(part.stop - start), _float8(dtype))
    return x.reshape(shape)


def _float8(dtype: str) -> np.dtype:
    import ml_dtypes

    return np.dtype(getattr(ml_dtypes, FLOAT8[dtype]))


def _check_digest(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    if DIGEST in metadata and metadata[DIGEST] != _digest(arrays, metadata):
        raise ValueError(
            f"{path} was changed after it was written, so its content does not match its digest; download or write the file again"
        )


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """Return one SHA-256 of the arrays (names, dtypes, shapes, bytes) and of all metadata except the digest."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {DIGEST}):
        digest.update(f"{key} {metadata[key]!r}\n".encode())
    for name in sorted(arrays):
        x = arrays[name]
        x = x.astype(np.float32) if x.dtype.name == "bfloat16" else x  # the dtype that a reader gets
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(x.data.cast("B") if x.size else b"")
    return digest.hexdigest()
