"""Named arrays in a safetensors file: written under a temporary name and renamed, checked when read, never unpickled."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

DIGEST = "lora_np.sha256"  # the metadata key under which a file written here carries the digest of all else in it


@dataclass(frozen=True, eq=False)
class StoredArrays(Mapping[str, np.ndarray]):
    """Arrays that are still on disk: their shapes are known, and `stored[name]` reads one, anew each time it is asked for.

    So whoever goes through them one by one never holds two copies of a model, whatever its size.
    """

    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]
    metadata: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Call `write(temporary)`, then rename what it wrote to `path`: a reader sees the old file or the new, never half."""
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # a folder: safetensors adds a file of its own
    unfinished.mkdir(parents=True)
    temporary = unfinished / path.name
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # an ordinary new file's; safetensors makes one that only its owner may read
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(unfinished)


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write host arrays and string metadata, with a digest by which a reader notices a changed byte."""
    from safetensors.numpy import save_file

    contiguous = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    metadata = dict(metadata or {})
    metadata[DIGEST] = _digest(contiguous, metadata)
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays, all in memory, and the metadata of a safetensors file. bfloat16 comes as float32, which NumPy has.

    Raises FileNotFoundError where there is none; ValueError where it is truncated, is not safetensors, or carries a digest
    that its arrays and metadata do not have.
    """
    with _open(Path(path)) as stored:
        arrays = dict(stored)
    _check_digest(path, arrays, stored.metadata)
    return arrays, stored.metadata


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[StoredArrays]:
    """The arrays of a safetensors file, memory-mapped: `with open_arrays(path) as stored: stored[name]`.

    Raises as `load_arrays` does, and before it yields; the digest is taken of one array at a time.
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
        file = safe_open(path, framework="numpy")  # checks every size in the header against the file's own
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); get or make it again") from None
    with file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, a file is no dict
        dtypes = {name: slice_.get_dtype() for name, slice_ in slices.items()}
        if "BF16" in dtypes.values():
            import ml_dtypes  # noqa: F401, teaches NumPy, and through it safetensors, what bfloat16 is

        def read(name: str) -> np.ndarray:
            try:
                x = file.get_tensor(name)
            except TypeError:
                raise ValueError(f"{path}: {name} is {dtypes[name]}, a number format that NumPy has not") from None
            return x.astype(np.float32) if dtypes[name] == "BF16" else x  # exact: its 16 bits are float32's upper half

        shapes = {name: tuple(slice_.get_shape()) for name, slice_ in slices.items()}
        yield StoredArrays(shapes, read, dict(file.metadata() or {}))


def _check_digest(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    if DIGEST in metadata and metadata[DIGEST] != _digest(arrays, metadata):
        raise ValueError(f"{path} was changed after it was written: it does not match its own digest; get it again")


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, and over all metadata but the digest itself."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {DIGEST}):
        digest.update(f"{key} {metadata[key]!r}\n".encode())
    for name in sorted(arrays):
        x = arrays[name]
        x = x.astype(np.float32) if x.dtype.name == "bfloat16" else x  # as it will be read
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(x.data.cast("B") if x.size else b"")
    return digest.hexdigest()
