"""The verdicts on a class, on disk. If the grader is stopped, the next run continues from these verdicts.

The journal is a file beside the table, with one line of JSON when an answer begins and one line for each verdict. The
journal is removed when all answers are graded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from .diagnose import Verdict
from .exercise import exercise, exercises
from .judge import as_fields, checked
from .reading import entries

SUFFIX = ".unfinished"
MOST_ATTEMPTS = 3  # times that the grader may end while it runs one answer


class Journal:
    """Verdicts by student and exercise; each verdict is written to disk as soon as it is known.

    Parameters
    ----------
    path : Path, optional
        The file; None keeps the verdicts only in memory. Lines of an earlier run that was stopped are read. Lines about
        a submission that has changed since then are ignored.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.verdicts: dict[str, Verdict] = {}
        self.attempts: Counter[str] = Counter()
        if path is None:
            return
        for line in _lines(path):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that was not finished
                self._read(json.loads(line))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
        self._file = os.open(path, flags, 0o600)
        self._append("")  # ends a line that was not finished

    def _read(self, entry: dict[str, Any]) -> None:
        key = entry["key"]
        if "fields" in entry:
            self.verdicts[key] = checked(entry["fields"], exercise(json.loads(key)[1]))
        self.attempts[key] += 0 if "fields" in entry else entry["attempt"]

    def begin(self, key: str) -> None:
        """Note that an answer runs now."""
        self._append(json.dumps({"key": key, "attempt": 1}))

    def withdraw(self, key: str) -> None:
        """Note that an answer was interrupted from the keyboard, which is not the answer's fault."""
        self._append(json.dumps({"key": key, "attempt": -1}))

    def finish(self, key: str, said: Verdict) -> None:
        """Note a verdict."""
        self.verdicts[key] = said
        self._append(json.dumps({"key": key, "fields": as_fields(said)}))

    def _append(self, line: str) -> None:
        if self.path is not None:
            with contextlib.suppress(OSError):  # a full disk: the verdict stays in memory, and the table comes later
                os.write(self._file, f"{line}\n".encode())
                os.fsync(self._file)

    def remove(self) -> None:
        """Remove the file, because the table is complete."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file."""
        if self.path is not None:
            os.close(self._file)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def key_of(path: Path, function: str) -> str:
    """Return the name of an answer in the journal. The name changes if a file of the submission or an exercise
    changes."""
    digest = hashlib.sha256(_version())
    try:
        found = [path, *(Path(entry.path) for entry in entries(path))] if path.is_dir() else [path]
        for file in sorted(found):
            state = file.lstat()
            digest.update(f"{os.fsencode(file)!r} {state.st_size} {state.st_mtime_ns}\n".encode())
    except (ValueError, OSError) as error:
        digest.update(repr(error).encode())
    return json.dumps([os.fsencode(path.name).hex(), function, digest.hexdigest()])


def _version() -> bytes:
    """Return a digest of the exercises, their cases and their solutions."""
    catalogue = Path(__file__).parent / "catalogue"
    files = [*(asked.source for asked in exercises()), *sorted(catalogue.glob("*.py"))]
    return b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
