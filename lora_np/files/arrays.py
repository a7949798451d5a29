"""Named arrays in a safetensors file: written under a temporary name and renamed, checked when read, never unpickled."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

DIGEST = "lora_np.sha256"  # the metadata key under which a file written here carries the digest of all else in it


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Call `write(temporary)`, then rename the temporary file to `path`: a reader sees the old file or the new, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # an ordinary new file's; safetensors makes one that only its owner may read
        write(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write host arrays and string metadata, with a digest by which `load_arrays` notices a changed byte."""
    from safetensors.numpy import save_file

    contiguous = {name: np.asarray(x, order="C") for name, x in arrays.items()}
    metadata = dict(metadata or {})
    metadata[DIGEST] = _digest(contiguous, metadata)
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata))


def load_arrays(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of a safetensors file.

    Raises FileNotFoundError where there is none; ValueError where it is truncated, is not safetensors, or carries a digest
    that its arrays and metadata do not have.
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
    if DIGEST in metadata and metadata[DIGEST] != _digest(arrays, metadata):
        raise ValueError(f"{path} was changed after it was written: it does not match its own digest; get it again")
    return arrays, metadata


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, and over all metadata but the digest itself."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() - {DIGEST}):
        digest.update(f"{key} {metadata[key]!r}\n".encode())
    for name in sorted(arrays):
        x = arrays[name]
        digest.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(x.data.cast("B") if x.size else b"")
    return digest.hexdigest()
