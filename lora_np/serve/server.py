"""Start and stop the HTTP server: uvicorn with limits for connections, and with signals that end it in two stages."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from ..optional import extra
from .access import is_loopback
from .limits import ServerLimits, within_open_files
from .refusals import LOGGER

App: TypeAlias = Any  # Starlette's application. Starlette is optional, so its types are not imported here
PORT = 8000
ACCEPTED_AT_ONCE = 16  # connections; further connections wait until `Connection` has made room for these
QUEUE = 2048  # connections that wait in the system until they are accepted, as in uvicorn


def make_server(
    app: App,
    port: int = PORT,
    on_start: Callable[[str], Any] = lambda url: None,
    limits: ServerLimits | None = None,
) -> Any:
    """Return a uvicorn.Server for the application that `create_app` returned.

    The first SIGTERM or SIGINT starts the grace period: running requests finish, and new requests get status 503. The
    server ends when no request is running. After a second signal, the process ends at once. At the end of the grace
    period, the process ends with status 1. `on_start` is called with the server's URL when the server accepts connections. Raises
    MissingExtra if uvicorn is not installed.
    """
    with extra("serve", "the HTTP server"):
        import uvicorn

        from .connections import Connection
    service, host = app.state.service, app.state.access.host
    bounds = within_open_files(limits or ServerLimits())

    class Server(uvicorn.Server):
        def run(self, sockets: Any = None) -> None:
            self.stopping, self.ended = threading.Event(), threading.Event()
            threading.Thread(target=self._limit_grace_period, daemon=True).start()
            try:
                super().run(sockets)
            finally:
                self.ended.set()
                self.stopping.set()

        def handle_exit(self, sig: int, frame: Any) -> None:
            """Start the grace period. Python can run this method in the middle of other code, so the method only sets
            variables."""
            for each in (sig, signal.SIGTERM, signal.SIGINT):
                # The next signal ends the process, even if all threads are busy. But process 1 of a container gets no
                # signal that has the default action.
                signal.signal(
                    each, signal.SIG_DFL if os.getpid() != 1 else lambda number, frame: os._exit(128 + number)
                )
            service.accepting = False
            self.stopping.set()

        def _limit_grace_period(self) -> None:
            """Wait for the first signal, then end the process after the grace period. A thread runs this method, so
            a busy event loop cannot delay it."""
            self.stopping.wait()
            if self.ended.is_set():
                return
            LOGGER.warning(
                "stopping: running requests have %g seconds to finish; a second signal stops the server at once",
                bounds.grace_period,
            )
            if not self.ended.wait(bounds.grace_period):
                LOGGER.warning("the grace period of %g seconds is over, so running requests end", bounds.grace_period)
                os._exit(1)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                for sock in self.servers[0].sockets:
                    with sock.dup() as listening:
                        listening.listen(QUEUE)  # asyncio had set it to ACCEPTED_AT_ONCE
                address, port = self.servers[0].sockets[0].getsockname()[:2]
                if not is_loopback(host):
                    LOGGER.warning(
                        "other computers can reach %s, and there is no TLS, so the API key and all texts can be read on the"
                        " network; use a proxy with TLS, or a network that you trust",
                        address,
                    )
                on_start(f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}")

        async def on_tick(self, counter: int) -> bool:
            """Return True to end the server. uvicorn calls this method ten times per second."""
            if counter % 10 == 0:
                for connection in list(self.server_state.connections):
                    connection.check()
            return await super().on_tick(counter) or (not service.accepting and service.thread.engine.idle)

    settings: dict[str, Any] = {"proxy_headers": False, "access_log": False, "ws": "none", "lifespan": "on"}
    settings |= {"backlog": ACCEPTED_AT_ONCE, "log_config": None, "log_level": "warning"}
    protocol = functools.partial(Connection, bounds)
    return Server(uvicorn.Config(app, host, port, http=protocol, **settings))
