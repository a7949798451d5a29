"""Run a student's program in a separate process with limits. There is a result even if the program fails or never ends.

The process contains no solution and does not judge. `Contained` sends the arguments to the process, calls the student's
function there, and returns its value. On Linux the process cannot read the solutions, open connections, or reach another
process; see sandbox/restrict.py. On macOS and Windows the limits protect against accidents, not against attacks. On
these systems, grade untrusted code in a container. On Windows only the time limits work; on macOS the memory limit does
not work.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from .reading import entries
from .sandbox.child import receive, send
from .sandbox.execute import MOST_ARRAYS, MOST_TEXT, Failure
from .sandbox.restrict import CPU_SECONDS, PRINTED
from .sandbox.wire import MOST_MESSAGE, decode, encode, mutable_parts, update

WALL_SECONDS = 4.0  # of real time, after which a program that does nothing is stopped
LAST_RESORT = 30.0  # limit of real time for all calls, even if the program is busy
IMPORT_SECONDS = 60.0  # of real time for the imports; the limits of computing time begin after the imports
LOOK = 0.1  # seconds between two checks of a process that computes
IDLE = 0.1  # seconds of processor time: a process that used less in WALL_SECONDS does nothing
WRITTEN, FILES = 32 << 20, 1000  # bytes and number of the files that a program may write
SHOWN = 2000  # characters of the printed output in a message
ENDLESS = f"did not return within {CPU_SECONDS:g} second of computing. Is there a loop that never stops?"
TOO_MUCH = f"wrote more than {WRITTEN >> 20} MB or {FILES} files"
WAITS = "did not return within {:g} seconds. Does it wait for something?"
PROTECTIONS = {  # right that `confine` removes → what a program with this right could do
    "files": "read the solutions and your files",
    "network": "open connections",
    "signals": "end other processes",
    "processes": "start processes",
}
PACKAGES = Path(__file__).parents[2]  # the folder of this lora_np
START = "import sys; sys.path.insert(0, sys.argv[1]); from sandbox import child; sys.path.pop(0); child.main()"
KEPT = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "TZ",
    "LD_LIBRARY_PATH",
    "DYLD_LIBRARY_PATH",
    "SYSTEMROOT",
    "VIRTUAL_ENV",
    "CONDA_PREFIX",
)


class Stopped(Exception):
    """The program did not finish. The message is the end of a sentence that begins with "your function"."""


class Failed(Exception):
    """The student's function raised an exception.

    Parameters
    ----------
    failure : Failure
        The exception.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.raised)
        self.failure = failure


class Contained:
    """A student's function in a separate process. A `with` block starts the process and ends it. Calling
    the object runs the function in the process.

    The call sends copies of the arguments to the process. If the function changes a copy, the original argument gets
    the same change. The call raises `Failed` if the function raised an exception, and `Stopped` if the process reached
    a limit.

    Parameters
    ----------
    text : str
        The student's program.
    function : str
        The name of the function.
    hidden : sequence of str
        Files and folders that the process must not read, besides lora_np.
    """

    def __init__(self, text: str, function: str, hidden: Sequence[str] = ()) -> None:
        self.text, self.function, self.hidden = text, function, [*hidden, *own_folders()]
        self.held: list[str] = []  # the rights that the process has lost
        self.passed_over: list[Failure] = []
        self.is_defined = False
        self._waited = 0.0  # seconds, for replies since the imports
        self._cpu_before: float | None = None  # seconds of processor time that the imports used

    def __enter__(self) -> Contained:
        """Start the process, but not yet the program; `start` executes the program."""
        self._folder = tempfile.TemporaryDirectory(prefix="lora_np_", ignore_cleanup_errors=True)
        empty = Path(self._folder.name) / "empty"
        empty.mkdir()
        self._printed = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, str(Path(__file__).parent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            cwd=empty,
            env=environment(empty),
            start_new_session=True,  # so that its child processes are ended too
        )
        self._wanted = threading.Semaphore(0)
        self._replies: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process and remove its files."""
        _kill(self._process)
        self._wanted.release()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if pipe:
                    pipe.close()
        self._printed.close()
        try:
            self._folder.cleanup()
        except RecursionError:  # very deep folders, which rm can remove
            subprocess.run(["rm", "-rf", self._folder.name], check=False)

    def start(self) -> None:
        """Execute the program. Raises RuntimeError if the process fails before it executes the program."""
        task = {"text": self.text, "function": self.function, "hidden": self.hidden, "own": self._folder.name}
        try:
            self.held = list(map(str, self._ask(task)["held"]))
        except Stopped:
            shown = self.printed().strip()[-300:]
            raise RuntimeError(f"the process that runs the students' code cannot start: {shown}") from None
        self._reply(IMPORT_SECONDS, f"did not finish its imports within {IMPORT_SECONDS:g} seconds")
        self._waited, self._cpu_before = 0.0, self._cpu()
        with checked():
            reply = self._reply()
            self.passed_over = [as_failure(fields) for fields in reply["passed_over"]]
            self.is_defined = bool(reply["defined"])

    def __call__(self, *arguments: Any) -> Any:
        """Call the student's function."""
        parts = mutable_parts(arguments)
        sent = [encode(argument) for argument in arguments]
        known = {id(argument): encoded for argument, encoded in zip(arguments, sent, strict=True)}
        reply = self._ask({"arguments": sent})
        with checked():
            if "failed" in reply:
                failure = as_failure(reply["failed"])
            else:
                failure = None
                for part, content in zip(parts, reply["parts"], strict=True):
                    if content != known.get(id(part)):
                        update(part, content, parts)
                value = decode(reply["value"], parts)
        if failure is not None:
            raise Failed(failure)
        return value

    def printed(self) -> str:
        """Return the beginning of the text that the program printed."""
        self._printed.seek(0)
        return self._printed.read(4 * SHOWN).decode("utf-8", "replace")[:SHOWN]

    def _ask(self, message: Any) -> Any:
        """Send a message and return the reply."""
        assert self._process.stdin
        with contextlib.suppress(OSError):  # the process has ended; `_reply` finds the reason
            send(self._process.stdin, message)
        return self._reply()

    def _reply(self, most: float = LAST_RESORT, words: str = WAITS.format(LAST_RESORT)) -> Any:
        """Return the next message of the process; raise `Stopped` if the process ends or reaches a limit."""
        self._wanted.release()
        began = looked = time.monotonic()
        cpu: float | None = None
        while True:
            with contextlib.suppress(queue.Empty):
                reply = self._replies.get(timeout=LOOK)
                break
            self._check_files()
            now, used = time.monotonic(), self._cpu()
            cpu = used if cpu is None else cpu
            if self._waited + now - began > most:
                self._stop(words)
            if self._cpu_before is not None and used - self._cpu_before > CPU_SECONDS + 1:
                self._stop(ENDLESS)  # the program has switched off its timer
            if self._cpu_before is not None and now - looked > WALL_SECONDS:
                if used - cpu < IDLE:  # otherwise the machine is busy with other processes
                    self._stop(WAITS.format(WALL_SECONDS))
                looked, cpu = now, used
        self._waited += time.monotonic() - began
        if os.fstat(self._printed.fileno()).st_size >= PRINTED:
            self._stop(f"printed more than {PRINTED >> 20} MB. Is there a print in a loop?")
        if not isinstance(reply, dict):
            raise Stopped(self._reason())
        return reply

    def _stop(self, words: str) -> NoReturn:
        """End the process because of a limit."""
        _kill(self._process)
        raise Stopped(words)

    def _listen(self) -> None:
        """Read one message of the process each time that `_wanted` is released; put None in the queue at the end."""
        assert self._process.stdout
        reply: Any = {}
        while isinstance(reply, dict):
            self._wanted.acquire()
            try:
                reply = receive(self._process.stdout, MOST_MESSAGE)
            except (OSError, ValueError, RecursionError, MemoryError):
                reply = None
            self._replies.put(reply)

    def _cpu(self) -> float:
        """Return the seconds of processor time that the process has used; 0 on systems other than Linux."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii", errors="replace")
            return sum(map(int, fields.rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, AttributeError):
            return 0.0

    def _check_files(self) -> None:
        """Stop the process if its files are too large or too many."""
        size, count = 0, 0
        try:
            for entry in entries(Path(self._folder.name)):
                size, count = size + entry.stat(follow_symlinks=False).st_size, count + 1
        except FileNotFoundError:  # a file was removed meanwhile
            return
        except (OSError, ValueError):  # more entries than `entries` yields, or a path that is too long
            count = FILES + 1
        if size > WRITTEN or count > FILES:
            self._stop(TOO_MUCH)

    def _reason(self) -> str:
        """Return the reason why the process ended, as the end of a sentence."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        returncode = self._process.poll()
        _kill(self._process)
        if returncode is None:
            return "ended its whole process (a garbled reply), so there is no result to check"
        if hasattr(signal, "SIGPROF") and returncode in (-signal.SIGPROF, -signal.SIGXCPU):
            return ENDLESS
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return f"ended its whole process ({how}), so there is no result to check"


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Raise `Stopped` if the `with` block reads a reply with wrong fields."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError, MemoryError):
        raise Stopped("ended its whole process (a garbled reply), so there is no result to check") from None


def as_failure(fields: Any) -> Failure:
    """Return the `Failure` that the process sent as JSON; raise TypeError or ValueError if a field is wrong."""
    raised, line, columns, shapes = fields
    if not isinstance(raised, str) or not isinstance(line, int | None) or not isinstance(shapes, dict):
        raise TypeError("the fields of a failure are wrong; expected raised, line, columns and shapes")
    if columns is not None:
        columns = int(columns[0]), int(columns[1])
    texts = {str(name)[:100]: str(shape)[:100] for name, shape in list(shapes.items())[:MOST_ARRAYS]}
    return Failure(raised[:MOST_TEXT], line, columns, texts)


def missing_protection() -> str:
    """Return a sentence that names the protections that this system does not have, or "" if it has all of them."""
    with Contained("", "f") as contained:
        contained.start()
    missing = [words for name, words in PROTECTIONS.items() if name not in contained.held]
    if not missing:
        return ""
    return f"on this system an answer can {', '.join(missing)}; if you do not know the students, run the grader in a container"


def own_folders() -> list[str]:
    """Return the folders that a student's program must not read: every installed lora_np, and the clone that contains
    this file."""
    installed = [path for path in (os.path.join(folder, "lora_np") for folder in sys.path) if os.path.isdir(path)]
    in_packages = PACKAGES.name in ("site-packages", "dist-packages")
    return [str(PACKAGES / "lora_np" if in_packages else PACKAGES), *installed]


def python_path() -> list[str]:
    """Return the absolute folders of PYTHONPATH. Relative folders are left out, because they could belong to a submission."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(path)]


def environment(own: Path) -> dict[str, str]:
    """Return the environment variables of the process. They select one BLAS thread, plots without windows and the
    folder `own` for files, and contain no secrets."""
    paths = [path for path in python_path() if not os.path.isdir(os.path.join(path, "lora_np"))]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}
    ours |= {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ours |= dict.fromkeys(("HOME", "USERPROFILE", "TMPDIR", "TEMP", "TMP"), str(own))
    return {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("LC_")} | ours


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and the processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
