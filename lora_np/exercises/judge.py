"""A process that reads submissions and returns verdicts: `python -m lora_np.exercises.judge`, started by grade.py.

Reading a submission can fail in ways that end a process, for example in Python's parser. So the grader itself reads no
submission. If a judge ends or takes too long, only the answer that it was reading has no verdict.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .answers import SUFFIXES, answer_files, find_answer
from .contain import PACKAGES, python_path
from .diagnose import KINDS, Verdict
from .exercise import Exercise, exercise
from .outcome import echo
from .sandbox.child import receive, send

SECONDS = 300.0  # for one answer; an ordinary answer takes less than a second
MEMORY = 4 << 30  # bytes of address space
MOST_MESSAGE = 1 << 20  # bytes of a verdict


class Judge:
    """A judge in a separate process. The process is started when it is needed. Use a judge in one thread only.

    Parameters
    ----------
    hidden : sequence of str
        Files and folders that answers must not read.
    """

    def __init__(self, hidden: Sequence[str]) -> None:
        self.hidden = list(hidden)
        self._process: subprocess.Popen[bytes] | None = None

    def verdict(self, path: Path, asked: Exercise) -> Verdict:
        """Return the verdict on one submission's answer to one exercise."""
        if self._process is not None and self._process.poll() is not None:
            self.close()  # it ended after its last verdict, for example because memory was full
        process = self._process or self._start()
        assert process.stdin and process.stdout
        timer = threading.Timer(SECONDS, process.kill)
        timer.start()
        try:
            name = os.fsencode(os.path.abspath(path)).hex()
            send(process.stdin, {"path": name, "function": asked.function, "hidden": self.hidden})
            return checked(receive(process.stdout, MOST_MESSAGE), asked)
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            late = not timer.is_alive()
            self.close()
            why = f"takes more than {SECONDS:g} seconds" if late else "ends the process that reads it"
            return Verdict(asked.function, "unreadable", f"reading or judging this answer {why}")
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-m", __name__]
        paths = os.pathsep.join([str(PACKAGES), *python_path()])
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            command,
            stdin=pipe,
            stdout=pipe,
            cwd=tempfile.gettempdir(),
            env=os.environ | {"PYTHONPATH": paths},
            start_new_session=True,  # so that Ctrl-C ends only the grader, and signals to this group end only the judge
        )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if pipe:
                        pipe.close()
            self._process = None


def checked(fields: Any, asked: Exercise) -> Verdict:
    """Return the verdict that a judge sent; raise KeyError, TypeError or ValueError if a field is wrong."""
    mistakes = {mistake.name: mistake for mistake in asked.mistakes}
    kind, words, details = fields["kind"], fields["words"], fields["details"]
    if kind not in KINDS or not isinstance(words, str) or not isinstance(details, str):
        raise ValueError("the judge's reply has wrong fields; expected the fields of a verdict")
    return Verdict(asked.function, kind, words, tuple(mistakes[name] for name in fields["mistakes"]), details)


def as_fields(said: Verdict) -> dict[str, Any]:
    """Return a verdict as JSON's types, for `checked`."""
    return {k: v for k, v in vars(said).items() if k != "function"} | {"mistakes": [m.name for m in said.mistakes]}


def judged(path: Path, asked: Exercise, hidden: Sequence[str]) -> Verdict:
    """Return the verdict on one submission's answer to one exercise, in this process."""
    if path.is_symlink():
        return Verdict(asked.function, "unreadable", "this is a link; hand in the files themselves")
    if not path.is_dir() and path.suffix.lower() not in SUFFIXES:
        words = "this is not a folder and not a notebook; unpack it if it is an archive"
        return Verdict(asked.function, "unreadable", words)
    try:
        return find_answer(answer_files(path) if path.is_dir() else [path], asked, hidden)
    except ValueError as error:
        return Verdict(asked.function, "unreadable", echo(str(error)))
    except Exception as error:  # a fault of the grader is reported, and grading continues
        return Verdict(asked.function, "unreadable", f"the grader failed on it: {echo(repr(error))}")


def main() -> None:
    """Judge answers until the grader closes the stream."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")  # Python's warnings about students' code
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    while (task := receive(requests, MOST_MESSAGE)) is not None:
        path = Path(os.fsdecode(bytes.fromhex(task["path"])))
        send(replies, as_fields(judged(path, exercise(task["function"]), task["hidden"])))


if __name__ == "__main__":
    main()
