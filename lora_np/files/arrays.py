"""Named arrays in a safetensors file: written under a temporary name and renamed, checked when read, never unpickled."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

DIGEST = "sha256"  # the metadata key under which a file written here carries the digest of its own arrays


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Call `write(temporary)`, then rename the temporary file to `path`: a reader sees the old file or the new, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write host arrays and string metadata, with a digest by which `load_arrays` notices a changed byte."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    metadata = dict(metadata or {}) | {DIGEST: _digest(contiguous)}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file.

    Raises FileNotFoundError where there is none; ValueError where it is truncated, is not safetensors, or carries a digest
    that its arrays do not have.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, a file is no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); get or make it again") from None
    if DIGEST in metadata and metadata[DIGEST] != _digest(arrays):
        raise ValueError(f"{path} was changed after it was written: its arrays do not match their digest; get it again")
    return arrays, metadata


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        x = arrays[name]
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).data.cast("B") if x.size else b"")
    return digest.hexdigest()
