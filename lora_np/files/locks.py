"""A lock that keeps two processes from writing the same files. The operating system releases the lock when the process ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .durable import make_folder

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        """Lock a byte after the end of the file's text, because on Windows no other process can read a locked byte."""
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of network file systems without locks


@contextmanager
def lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock in a `with` statement. The file of the lock contains the id of the process.

    The lock ends with the process, even if the process is killed. A killed process leaves the file of the lock, and the
    next process uses this file. At the end of the `with` statement, the file is removed. Folders that were created for
    the file are also removed if they are empty.

    Parameters
    ----------
    path : str or PathLike
        The file of the lock. The folder of the file is created if needed.

    Yields
    ------
    None
        The lock is held until the end of the `with` statement.

    Raises
    ------
    BlockingIOError
        If another process, or another call in this process, holds the lock.

    Examples
    --------
    >>> import os, tempfile
    >>> from lora_np.files import lock
    >>> with tempfile.TemporaryDirectory() as folder, lock(f"{folder}/run.lock"):
    ...     os.listdir(folder)
    ['run.lock']
    """
    path = Path(path)
    made = make_folder(path.parent)
    descriptor = _acquire(path)
    try:
        with suppress(OSError):  # the disk is full; the text is only for the message
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if sys.platform == "win32":
            os.close(descriptor)  # first, because Windows cannot remove an open file
            with suppress(OSError):  # another process has opened the file
                path.unlink(missing_ok=True)
        else:
            path.unlink(missing_ok=True)
            os.close(descriptor)  # last: _acquire then sees that the locked file was removed
        for folder in reversed(made):
            with suppress(OSError):  # the folder is not empty
                folder.rmdir()


def _acquire(path: Path) -> int:
    """Return the descriptor of the locked file."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
        except OSError as error:
            if error.errno in NO_LOCKS:
                warnings.warn(f"{path.parent} is on a disk without locks; start only one run there", stacklevel=4)
                return descriptor
            owner = os.read(descriptor, 300).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise BlockingIOError(
                f"{path} is held by {owner}, which writes to the same files; "
                "wait until that run ends, stop it, or choose another folder"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # the process that held the lock has just removed the file
