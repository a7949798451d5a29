"""Threads for work that can take long, so that the event loop can continue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any


class Workers:
    """Calls functions in other threads, at most `threads` at once, each call with a time limit of `seconds`.

    Python cannot end a thread. A call that exceeds the time limit keeps its thread until the function returns, so the
    functions themselves must have limits on their work. The threads are daemons, so they do not delay the end of the
    process.
    """

    def __init__(self, threads: int, seconds: float) -> None:
        self.seconds, self._free = seconds, asyncio.Semaphore(threads)

    async def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in a thread and return its result, or raise its error.

        Raises TimeoutError if no thread becomes free within the time limit, or if the function does not return in time.
        """
        async with asyncio.timeout(self.seconds):
            await self._free.acquire()
            loop = asyncio.get_running_loop()
            result = loop.create_future()
            try:
                Thread(target=self._run, args=(loop, result, function, arguments), daemon=True).start()
            except BaseException:  # the system allows no more threads now
                self._free.release()
                raise
            return await result

    def _run(self, loop: Any, result: asyncio.Future, function: Callable[..., Any], arguments: tuple) -> None:
        try:
            returned, error = function(*arguments), None
        except Exception as raised:
            returned, error = None, raised
        except BaseException as raised:  # for example a panic of an extension written in Rust
            returned, error = None, RuntimeError(f"{type(raised).__name__}: {raised}")
        with suppress(RuntimeError):  # the event loop may be closed, and then there is no caller any more
            loop.call_soon_threadsafe(self._finish, result, returned, error)

    def _finish(self, result: asyncio.Future, returned: Any, error: Exception | None) -> None:
        self._free.release()
        if result.done():  # the caller did not wait
            return
        if error is None:
            result.set_result(returned)
        else:
            result.set_exception(error)
