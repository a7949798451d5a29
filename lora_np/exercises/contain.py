"""A student's program in a process of its own, with limits: whatever it does, an answer about it comes back.

These contain accidents, not attacks: the process can still read files and open sockets as its user may, and a process that it
starts in a session of its own outlives it. Grade what strangers send you in a container. Windows has no such limits, and macOS
none on memory; there the clock alone holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .exercise import Exercise
from .outcome import Outcome, from_json

CPU_SECONDS = 1.0  # of processor time: then it is killed, as an endless loop
WALL_SECONDS = 4.0  # of the clock, from where the program begins: for one that sleeps or waits
LAST_RESORT = 30.0  # of the clock, from the process's start, where the system has no timers
MEMORY = 2 << 30  # bytes of address space: a wild allocation raises MemoryError there, and troubles nobody else
PRINTED = 1 << 20  # bytes of any file: a flood of prints ends there
SHOWN = 2000  # characters of what it printed
PACKAGES = Path(__file__).parents[2]  # where this lora_np lies, which the process must find too


@dataclass(frozen=True)
class Stopped:
    """The program never came to its end; `words` says why, as the end of "your function …"."""

    words: str


def contained(text: str, exercise: Exercise) -> tuple[list[Outcome] | Stopped, str]:
    """Run the program on the exercise's cases in a process of its own, in an empty folder: the outcomes, and what it printed.

    Raises RuntimeError where the process did not come as far as the program: that is no student's fault.
    """
    with tempfile.TemporaryDirectory(prefix="lora_np_", ignore_cleanup_errors=True) as folder:
        printed, result, empty = (Path(folder) / name for name in ("printed.txt", "outcomes.json", "empty"))
        empty.mkdir()
        with printed.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.child", exercise.function, str(result)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=empty,
                env=environment(),
                start_new_session=True,  # so that its children can be killed with it
            )
        try:
            process.communicate(text.encode("utf-8", "replace"), LAST_RESORT)
        except subprocess.TimeoutExpired:
            return Stopped(f"did not come back within {LAST_RESORT:g} seconds: does it wait for something?"), ""
        finally:
            _kill(process)
        with printed.open(encoding="utf-8", errors="replace") as file:
            shown = file.read(SHOWN)
        return _read(result, printed.stat().st_size, process.returncode, shown), shown


def environment() -> dict[str, str]:
    """One thread, no windows, and this package first on the path; Python's -P keeps the current folder off it."""
    paths = [str(PACKAGES), *(os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}
    return os.environ | ours | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started, which may have outlived it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(result: Path, printed: int, returncode: int, shown: str) -> list[Outcome] | Stopped:
    if not result.exists():  # the child makes it before the program begins
        raise RuntimeError(f"the process that runs answers does not start here: {shown.strip()[-300:]}")
    if printed >= PRINTED:
        return Stopped(f"printed more than {PRINTED >> 20} MB: is there a print in a loop?")
    if hasattr(signal, "SIGPROF") and returncode in (-signal.SIGPROF, -signal.SIGXCPU):
        return Stopped(f"ran for {CPU_SECONDS:g} second without an end: is there a loop that never stops?")
    if hasattr(signal, "SIGALRM") and returncode == -signal.SIGALRM:
        return Stopped(f"did not come back within {WALL_SECONDS:g} seconds: does it wait for something?")
    try:
        return [from_json(fields) for fields in json.loads(result.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return Stopped(f"ended its whole process ({how}), so there is nothing to check")
