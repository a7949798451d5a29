"""Ctrl-C and SIGTERM during training: the state after the last complete update is saved before the program stops.

Python can raise KeyboardInterrupt between any two instructions, even when an optimizer has updated only a part of the
parameters. This module delays the exception until the update is complete.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Interrupts:
    """A `with` block in which Ctrl-C raises KeyboardInterrupt once, but never inside a block `with interrupts.held()`.

    After the first Ctrl-C, another Ctrl-C has no effect until the end of the block. Therefore the second Ctrl-C cannot
    stop the program while the program saves. SIGTERM is handled in the same way if its handler raises
    KeyboardInterrupt. If the caller has installed a handler, this handler is not replaced. Python runs handlers only in
    the main thread, so in other threads the block does nothing.
    """

    def __enter__(self) -> Self:
        self.came = self.holding = False
        self.before: list[signal.Signals] = []
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is signal.default_int_handler:
                    signal.signal(number, self._handle)
                    self.before.append(number)
        return self

    def __exit__(self, *error: Any) -> None:
        for number in self.before:
            signal.signal(number, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.came = not self.came, True
        if first and not self.holding:
            raise KeyboardInterrupt

    @contextmanager
    def held(self) -> Iterator[None]:
        """Delay Ctrl-C until the end of a `with` block."""
        before, self.holding = self.came, True
        yield
        self.holding = False
        if self.came and not before:
            raise KeyboardInterrupt


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Make SIGTERM raise KeyboardInterrupt in a `with` block. Schedulers and containers stop programs with SIGTERM."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
