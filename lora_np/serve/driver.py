"""The one thread that an engine belongs to: others hand it calls, and it steps while there is anything to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

from .engine import AdapterServer


class Driver:
    """Runs `engine` in a thread of its own, from `start` to `close`. The engine needs no lock: nobody else touches it."""

    def __init__(self, engine: AdapterServer) -> None:
        self.engine = engine
        self._calls: SimpleQueue[tuple[Future, Callable[..., Any], tuple, dict]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="lora_np serve", daemon=True)
        self._closed = False

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self.call(lambda: setattr(self, "_closed", True))
        self._thread.join()

    def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Future:
        """`function(…)` in the engine's thread, between two steps; its result or its error comes in the Future."""
        future: Future = Future()
        self._calls.put((future, function, arguments, settings))
        return future

    def _run(self) -> None:
        while not (self._closed and self.engine.idle):
            while (self.engine.idle and not self._closed) or not self._calls.empty():
                future, function, arguments, settings = self._calls.get()
                try:
                    future.set_result(function(*arguments, **settings))
                except Exception as error:  # it belongs to whoever called
                    future.set_exception(error)
            try:
                self.engine.step()
            except Exception as error:  # such as too little memory: these requests fail, and the next ones are served
                self.engine.abort(error)
