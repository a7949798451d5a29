"""One thread that runs an engine. Other threads send function calls to this thread. The thread runs these calls between
two steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any

from .engine import AdapterServer


class EngineThread:
    """Runs `engine` in its own thread, from `start` to `close`.

    The engine needs no lock, because only this thread uses it.
    """

    def __init__(self, engine: AdapterServer) -> None:
        self.engine = engine
        self._calls: SimpleQueue[tuple[Future, Callable[..., Any], tuple, dict]] = SimpleQueue()
        self._thread = Thread(target=self._run, name="lora_np serve", daemon=True)
        self._closed = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Finish all requests, then end the thread."""
        self.call(lambda: setattr(self, "_closed", True))
        self._thread.join()

    def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Future:
        """Let the engine's thread call a function between two steps; return a Future with the result or the error."""
        future: Future = Future()
        self._calls.put((future, function, arguments, settings))
        return future

    def _run(self) -> None:
        while not (self._closed and self.engine.idle):
            wait = self.engine.idle and not self._closed
            for _ in range(max(wait, self._calls.qsize())):  # calls that arrive meanwhile are run after the next step
                self._run_call(*self._calls.get())
            try:
                self.engine.step()
            except BaseException as error:  # for example MemoryError: running requests fail, later requests are served
                self.engine.abort(error)

    def _run_call(self, future: Future, function: Callable[..., Any], arguments: tuple, settings: dict) -> None:
        """Call a function and pass its result or its error to the caller, unless the caller has cancelled the call."""
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*arguments, **settings))
        except BaseException as error:  # the caller reads it from the future
            future.set_exception(error)
