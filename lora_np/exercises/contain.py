"""Run a student's program in a separate process with limits. There is a result even if the program fails or never ends.

The limits protect against accidents, not against attacks. The program can read files and open network connections with
the rights of the user. A process that the program starts in another session can continue after the end of the program.
Grade untrusted code in a container. On Windows only the time limit works; on macOS the memory limit does not work.
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

CPU_SECONDS = 1.0  # of processor time; then the process is ended, for example because of an endless loop
WALL_SECONDS = 4.0  # of real time since the program started, for a program that sleeps or waits
LAST_RESORT = 30.0  # of real time since the process started, for systems without timers
MEMORY = 2 << 30  # bytes of address space; a larger allocation raises MemoryError in the process
PRINTED = 1 << 20  # bytes of any file, and so of the printed output
SHOWN = 2000  # characters of the printed output in a message
PACKAGES = Path(__file__).parents[2]  # the folder of this lora_np, which the process imports too


@dataclass(frozen=True)
class Stopped:
    """The result of a program that did not finish.

    Parameters
    ----------
    words : str
        The reason, as the end of a sentence that begins with "your function".
    """

    words: str


def contained(text: str, exercise: Exercise) -> tuple[list[Outcome] | Stopped, str]:
    """Run the program on the cases of the exercise, and return the outcomes and the printed text.

    The program runs in a separate process and in an empty folder. Raises RuntimeError if the process fails before it
    starts the program; then the cause is not in the student's program.
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
                start_new_session=True,  # its child processes are then ended with it
            )
        try:
            process.communicate(text.encode("utf-8", "replace"), LAST_RESORT)
        except subprocess.TimeoutExpired:
            return Stopped(f"did not return within {LAST_RESORT:g} seconds. Does it wait for something?"), ""
        finally:
            _kill(process)
        with printed.open(encoding="utf-8", errors="replace") as file:
            shown = file.read(SHOWN)
        return _read(result, printed.stat().st_size, process.returncode, shown), shown


def environment() -> dict[str, str]:
    """Return environment variables for one BLAS thread, plots without windows, and this package first on the path."""
    paths = [str(PACKAGES), *(os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p)]
    ours = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8", "MPLBACKEND": "Agg"}
    return os.environ | ours | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the process and the processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(result: Path, printed: int, returncode: int, shown: str) -> list[Outcome] | Stopped:
    """Return the outcomes from the file that the process wrote, or the reason why the process stopped."""
    if not result.exists():  # the child creates it before the program starts
        raise RuntimeError(f"the process that runs the students' code cannot start: {shown.strip()[-300:]}")
    if printed >= PRINTED:
        return Stopped(f"printed more than {PRINTED >> 20} MB. Is there a print in a loop?")
    if hasattr(signal, "SIGPROF") and returncode in (-signal.SIGPROF, -signal.SIGXCPU):
        return Stopped(f"did not return within {CPU_SECONDS:g} second of computing. Is there a loop that never stops?")
    if hasattr(signal, "SIGALRM") and returncode == -signal.SIGALRM:
        return Stopped(f"did not return within {WALL_SECONDS:g} seconds. Does it wait for something?")
    try:
        return [from_json(fields) for fields in json.loads(result.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError):
        how = f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        return Stopped(f"ended its whole process ({how}), so there is no result to check")
