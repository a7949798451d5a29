"""Keep freed memory for the next step. A training step frees and allocates the same large arrays again and again.

glibc returns large freed arrays to the operating system, which then gives fresh pages for the next arrays and fills
them with zeros. In a LoRA step of the model "tiny", these pages cost a fifth of the time. CuPy has its own memory pool.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH = "LORA_NP_KEEP_MEMORY"  # the value 0 turns this off
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # the parameters of mallopt, from malloc.h
AFTERWARDS = {
    MMAP_THRESHOLD: 2**25,
    TRIM_THRESHOLD: 2**26,
}  # the values that glibc chooses in a process that has used large arrays


@contextmanager
def keep_freed_memory() -> Iterator[bool]:
    """Keep the memory of freed arrays in the process until the context ends; then return unused memory.

    Yields True if freed memory is kept. Yields False if nothing changes: if the C library is not glibc, or if the
    environment variable LORA_NP_KEEP_MEMORY is 0.
    """
    libc = _glibc() if os.environ.get(SWITCH, "1") != "0" else None
    if libc is None:
        yield False
        return
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    if not libc.mallopt(MMAP_THRESHOLD, 2**30):
        libc.mallopt(MMAP_THRESHOLD, 2**25)  # the largest value of older versions
    try:
        yield True
    finally:
        for parameter, value in AFTERWARDS.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the C library of this process if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim  # noqa: B018  musl, macOS: an AttributeError
        return libc
    except (AttributeError, OSError, TypeError):  # TypeError: Windows has no library of the process
        return None
