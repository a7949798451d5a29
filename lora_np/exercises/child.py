"""Run a student's program in this process: set limits, run the cases, write the outcomes to a file, and exit."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from .contain import CPU_SECONDS, MEMORY, PRINTED, WALL_SECONDS
from .exercise import exercise
from .outcome import run_program, to_json


def limit() -> None:
    """Set the limits of this process, as far as the operating system supports them."""
    try:
        import resource
    except ImportError:
        return
    for kind, name, seconds in (
        (signal.SIGPROF, signal.ITIMER_PROF, CPU_SECONDS),
        (signal.SIGALRM, signal.ITIMER_REAL, WALL_SECONDS),
    ):
        signal.signal(kind, signal.SIG_DFL)  # the default ends the process
        signal.setitimer(name, seconds)
    seconds = int(CPU_SECONDS) + 5  # for a program that ignores the timers; counted from the start of the process
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: PRINTED}
    for which, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(which, (most, most))


def main(function: str, result: Path) -> None:
    """Read the program from stdin, run it on the cases, and write the outcomes to `result`."""
    text = sys.stdin.buffer.read().decode("utf-8")
    asked = exercise(function)
    asked.cases()  # imports what the cases need, before the limits are set
    result.touch()  # tells the parent that the program started
    limit()
    outcomes = [to_json(outcome) for outcome in run_program(text, asked, BaseException)]
    result.write_text(json.dumps(outcomes), encoding="utf-8")
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # ends threads that the program left running


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
