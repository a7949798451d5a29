"""A student's program in a process of its own, with limits: whatever it does, an answer about it comes back.

These contain accidents, not attacks: the process can still read files and open sockets as its user may. Grade what strangers
send you in a container. Where the system has no such limits (Windows has none, macOS not all), WALL_SECONDS alone holds.
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

from .child import CPU_SECONDS, PRINTED, RESULT
from .exercise import Exercise
from .outcome import Outcome, from_json

WALL_SECONDS = 6.0  # from its start, for a program that sleeps or waits


@dataclass(frozen=True)
class Stopped:
    """The program never came to its end; `words` says why, as the end of "your function …"."""

    words: str


def contained(text: str, exercise: Exercise) -> list[Outcome] | Stopped:
    """Run the program on the exercise's cases in a process of its own, in an empty folder, and collect the outcomes."""
    with tempfile.TemporaryDirectory(prefix="lora_np_", ignore_cleanup_errors=True) as folder:
        printed = Path(folder) / "printed.txt"
        with printed.open("wb") as output:
            command = [
                sys.executable,
                "-P",
                "-m",
                f"{__package__}.child",
                exercise.function,
            ]  # -P: nothing of this folder
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                cwd=folder,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
                start_new_session=True,  # so that its children can be killed with it
            )
        try:
            process.communicate(text.encode("utf-8", "replace"), WALL_SECONDS)
        except subprocess.TimeoutExpired:
            return Stopped(f"did not come back within {WALL_SECONDS:g} seconds: does it wait for something?")
        finally:
            _kill(process)
        return _read(Path(folder) / RESULT, printed.stat().st_size, process.returncode)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started, which may have outlived it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(result: Path, printed: int, returncode: int) -> list[Outcome] | Stopped:
    if printed >= PRINTED:
        return Stopped(f"printed more than {PRINTED >> 20} MB: is there a print in a loop that does not end?")
    if hasattr(signal, "SIGPROF") and returncode in (-signal.SIGPROF, -signal.SIGXCPU):
        return Stopped(f"ran for {CPU_SECONDS:g} second without an end: is there a loop that never stops?")
    try:
        return [from_json(fields) for fields in json.loads(result.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return Stopped(f"ended its whole process ({how}), so there is nothing to check")
