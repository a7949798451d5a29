"""Write files so that a crash, a full disk or a power cut never leaves an incomplete file under the final name.

A file is written in four steps. SQLite and other databases use the same steps.

    write a temporary file → fsync the file → rename the file → fsync the folder

A rename replaces the old file at once, so a reader sees the old file or the new file. Without the first fsync, a power cut
after the rename can leave a file without its bytes. Without the second fsync, a power cut can undo the rename. A
caller that removes older files must wait until the four steps are done.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT)  # no space on the disk, no space in the user's quota
UNFINISHED = re.compile(r"(.+)\.[0-9a-f]{32}\.tmp")  # a temporary folder of write_atomically


class NotWritten(OSError):
    """Raised if the disk is full, or if writing fails for another reason. The message names the file."""


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all. When the function returns, the file also survives a power cut.

    Parameters
    ----------
    path : str or PathLike
        The file to write. The folder of the file is created if needed.
    write : callable
        A function that writes the file. The call is write(temporary); `temporary` is the Path of a file in a temporary
        folder beside `path`. If `write` raises an error, the file at `path` is unchanged.

    Raises
    ------
    OSError
        If the file cannot be written. If the disk is full, the message says so and names the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.files import write_atomically
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "note.txt"
    ...     write_atomically(path, lambda temporary: temporary.write_text("done"))
    ...     path.read_text()
    'done'
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")  # a folder, because `write` may add files
    temporary = unfinished / path.name
    try:
        make_folder(path.parent)
        unfinished.mkdir()
        temporary.touch()
        mode = temporary.stat().st_mode  # the permissions of an ordinary new file, if `write` creates the file again
        write(temporary)
        with temporary.open("r+b") as file:  # Windows flushes only files that are open for writing
            temporary.chmod(mode)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except NotWritten:  # raised for another file that `write` writes
        raise
    except OSError as error:
        if error.errno in FULL or (error.errno and error.filename is None):
            advice = "free some space" if error.errno in FULL else "check the disk"
            reason = f"{os.strerror(error.errno)}; this file was not written. To continue, {advice} and run the command again"
            raise NotWritten(error.errno, reason, str(path)) from error
        raise
    finally:
        if unfinished.exists():
            shutil.rmtree(unfinished)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write a UTF-8 file with "\n" at the end of each line. The file is written with `write_atomically`.

    Parameters
    ----------
    path : str or PathLike
        The file to write.
    text : str
        The content.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.files import write_text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_text(f"{folder}/note.txt", "ΔW = BA")
    ...     Path(folder, "note.txt").read_text(encoding="utf-8")
    'ΔW = BA'
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and its missing parents. After a power cut the folders are still there. Return the new folders."""
    if folder.is_dir():
        return []
    made = make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)
    return [*made, folder]


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Remove the temporary folders that a killed process left: the folders of all files, or only those of the file
    `name`.

    No other process may write these files at the same time.
    """
    for path in folder.glob("*.tmp"):
        found = UNFINISHED.fullmatch(path.name)
        if found and name in (None, found[1]):
            real = path.is_dir() and not path.is_symlink()  # older versions wrote a file
            shutil.rmtree(path) if real else path.unlink()


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk. On Windows, do nothing, because NTFS logs each rename and Windows has no
    such call."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # the process may write to the folder, but not list it
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
