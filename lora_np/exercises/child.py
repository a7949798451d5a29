"""The process that a student's program runs in: it limits itself, tries the program, writes down what came of it, and ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from .exercise import exercise
from .outcome import run_program, to_json

CPU_SECONDS = 1.0  # of processor time: then it is killed, as an endless loop
MEMORY = 2 << 30  # bytes of address space: a wild allocation raises MemoryError here, and troubles nobody else
PRINTED = 1 << 20  # bytes of any file: a flood of prints ends there
RESULT = "outcomes.json"


def limit() -> None:
    """Set this process's limits, as far as the system has them."""
    try:
        import resource
    except ImportError:
        return
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    seconds = int(CPU_SECONDS) + 5  # for a program that ignores the timer; counted from the process's start
    limits = {resource.RLIMIT_CPU: seconds, resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: PRINTED}
    for kind, most in limits.items():
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (most, most))


def main(function: str) -> None:
    """Read the program from stdin, try it, write the outcomes beside it."""
    text = sys.stdin.buffer.read().decode("utf-8")
    asked = exercise(function)
    limit()
    written = json.dumps([to_json(outcome) for outcome in run_program(text, asked)])
    Path(RESULT).write_text(written, encoding="utf-8")
    os._exit(0)  # whatever threads it left behind


if __name__ == "__main__":
    main(sys.argv[1])
