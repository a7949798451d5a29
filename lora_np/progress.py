"""One way to show progress: tqdm's bar where somebody watches, and a line now and then where nobody does."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Self

EVERY = 15.0  # seconds between lines where nobody watches a bar
QUIET = "LORA_NP_QUIET"  # an environment variable that says: this notebook is executed, not read


def watched() -> bool:
    """Whether somebody may be looking: a terminal, or a notebook that a person runs."""
    return sys.stderr.isatty() or ("ipykernel" in sys.modules and QUIET not in os.environ)


def duration(seconds: float) -> str:
    """As a person says it: "45 s", "12 min", "3 h 20 min"."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    """`with Progress(total, "convergence", unit="step") as bar: bar.update(1, loss=2.3)`.

    In a terminal or a notebook that a person runs: tqdm.auto's bar, or lines if tqdm is not installed. Elsewhere a bar would
    fill a log or freeze in a committed notebook: nothing is printed, or with `lines` a line at most every 15 seconds.
    `enabled=False` is silent everywhere. Of `total`, `done` were done before, by a run that this one continues.
    """

    def __init__(
        self, total: int, label: str, unit: str = "step", enabled: bool = True, lines: bool = False, done: int = 0
    ) -> None:
        self.total, self.label, self.unit, self.done, self.before = total, label, unit, done, done
        self.lines = enabled and lines and not watched()
        self.started = self.last = time.perf_counter()
        self.bar: Any = None
        if enabled and watched():
            try:
                from tqdm.auto import tqdm
            except ModuleNotFoundError:
                self.lines = True
            else:
                self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, leave=False)

    def update(self, n: int = 1, **shown: Any) -> None:
        """`n` more are done; `shown` is printed beside (a float to four digits)."""
        self.done += n
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(n)
        elif self.lines and (now := time.perf_counter()) - self.last > EVERY:
            self.last = now
            left = (now - self.started) / (self.done - self.before) * (self.total - self.done)
            extra = [f"{key} {f'{x:.4g}' if isinstance(x, float) else x}" for key, x in shown.items()]
            line = ", ".join([f"{self.done}/{self.total} {self.unit}s", f"{duration(left)} left", *extra])
            print(f"{self.label}: {line}", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """A line on stderr, above the bar where there is one."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
