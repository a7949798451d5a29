"""Show progress: a tqdm bar in a terminal or an interactive notebook, and optional lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

from .terminal import unfiltered, visible

INTERVAL = 15.0  # seconds between two printed lines
QUIET = "LORA_NP_QUIET"  # an environment variable; if it is set, a notebook shows no bars


def is_interactive() -> bool:
    """Return True in a terminal, and also in a notebook if LORA_NP_QUIET is not set."""
    return sys.stderr.isatty() or (in_notebook() and QUIET not in os.environ)


def in_notebook() -> bool:
    """Return True if this process is the kernel of a notebook. A process that only imports ipykernel is not a kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and "IPKernelApp" in shell.config


def duration(seconds: float) -> str:
    """Format a duration in seconds as text: "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    """Show progress in a `with` block: `with Progress(total, "convergence") as bar: bar.update(1, loss=2.3)`.

    In a terminal or an interactive notebook, progress is shown as a tqdm bar, or as lines if tqdm is not installed.
    Elsewhere nothing is printed by default, because a bar would fill a log file or a committed notebook. With
    `lines=True`, a line is printed at most every 15 seconds if there is no terminal and no interactive notebook. With
    `enabled=False`, nothing is printed at all. `done` is the number of steps, out of `total`, that an earlier
    interrupted run has already finished.
    """

    def __init__(
        self, total: int, label: str, unit: str = "step", enabled: bool = True, lines: bool = False, done: int = 0
    ) -> None:
        self.total, self.label, self.unit, self.done, self.before = total, label, unit, done, done
        self.lines = enabled and lines and not is_interactive()
        self.started = self.last = time.perf_counter()
        self.bar: Any = None
        if enabled and is_interactive():
            try:
                if in_notebook():
                    from tqdm.auto import tqdm
                else:
                    from tqdm import tqdm
            except ModuleNotFoundError:
                self.lines = True
            else:
                stream, label = unfiltered(sys.stderr), visible(label)
                self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, leave=False, file=stream)

    def update(self, n: int = 1, **shown: Any) -> None:
        """Count `n` more steps as done, and show the values of `shown` beside the bar or in the line."""
        self.done += n
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(n)
        elif self.lines and (now := time.perf_counter()) - self.last > INTERVAL:
            self.last = now
            left = (now - self.started) / (self.done - self.before) * (self.total - self.done)
            extra = [f"{key} {f'{x:.4g}' if isinstance(x, float) else x}" for key, x in shown.items()]
            line = ", ".join([f"{self.done}/{self.total} {self.unit}s", f"{duration(left)} left", *extra])
            print(f"{self.label}: {line}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Print a line on stderr, above the bar if a bar is shown."""
        if self.bar is not None:
            self.bar.write(visible(line), file=unfiltered(sys.stderr))
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
