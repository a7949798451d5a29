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


class Progress:
    """`with Progress(total, "convergence", unit="step") as bar: bar.update(1, loss=2.3)`.

    In a terminal or a notebook that a person runs: tqdm.auto's bar. Elsewhere, where a bar would fill a log or freeze in a
    committed notebook: nothing, or with `lines` a line at most every 15 seconds. `enabled=False` is silent everywhere.
    """

    def __init__(self, total: int, label: str, unit: str = "step", enabled: bool = True, lines: bool = False) -> None:
        self.total, self.label, self.unit, self.done = total, label, unit, 0
        self.lines = enabled and lines and not watched()
        self.started = self.last = time.perf_counter()
        self.bar: Any = None
        if enabled and watched():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, desc=label, unit=unit, leave=False)

    def update(self, n: int = 1, **shown: Any) -> None:
        """`n` more are done; `shown` is printed beside (a float to four digits)."""
        self.done += n
        if self.bar is not None:
            self.bar.set_postfix(shown, refresh=False)
            self.bar.update(n)
        elif self.lines and (now := time.perf_counter()) - self.last > EVERY:
            self.last = now
            left = (now - self.started) / self.done * (self.total - self.done)
            extra = "".join(f", {key} {value:.4g}" for key, value in shown.items() if isinstance(value, float))
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}s, {left:.0f} s left{extra}",
                file=sys.stderr,
                flush=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()
