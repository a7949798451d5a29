"""Connections with limits: slow clients are disconnected, and do not keep other clients out.

uvicorn waits without a limit for the headers and the body of a request, and for a client that does not read its response.
Here each of these steps has a time limit, and the number of connections is limited. If there are too many connections,
the connection that has waited longest for its client is closed, and the new connection takes its place.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from ..optional import extra
from .limits import ServerLimits
from .protocol import ProtocolError
from .refusals import ClientLogger, log_refusal

with extra("serve", "the HTTP server"):
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

LATE = {
    "headers": "the headers of a request did not arrive within {:g} seconds",
    "body": "the body of the request did not arrive within {:g} seconds",
    "response": "the client did not read its response for {:g} seconds",
}


class Connection(H11Protocol):
    """One connection. The server calls `check` once per second."""

    def __init__(self, limits: ServerLimits, **settings: Any) -> None:
        super().__init__(**settings)
        self.limits = limits
        self.surplus = False  # True if there are too many connections, and all others wait for the server
        self.step: tuple[str, Any] | None  # the result of `waits_for` at the last check,
        self.since: float  # and the time from which it has been the same

    def waits_for(self) -> tuple[str, Any] | None:
        """Return the step that the client must do next; None if the server must do the next step.

        The first entry of the pair is the name of the step and of its time limit. The second entry changes with each
        request; for "response" it also changes when the client reads.
        """
        if unread := self.transport.get_write_buffer_size():
            return "response", unread
        if self.conn.their_state is h11.IDLE:
            return "headers", self.cycle
        if self.conn.their_state is h11.SEND_BODY:
            return "body", self.cycle
        return None

    def check(self) -> None:
        """Refuse the request if the client exceeds the time limit of its step."""
        step, now = self.waits_for(), self.loop.time()
        if step != self.step:
            self.step, self.since = step, now
        elif step is not None and now - self.since >= (limit := getattr(self.limits, step[0])):
            self.refuse(408, LATE[step[0]].format(limit))

    def refuse(self, status: int, reason: str) -> None:
        """Log the reason, send the reason as the response to an incomplete request, and close the connection."""
        log_refusal(self.client, status, reason)
        if self._request_began() and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(ProtocolError(status, reason).body)
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # `close` would wait until the client reads
        else:
            self.transport.close()

    def _request_began(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY or bool(self.conn.trailing_data[0])

    # ------------------------------------------------------------------------------------------- called by uvicorn

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.logger = ClientLogger(self.client)
        self.step, self.since = self.waits_for(), self.loop.time()
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def _make_room(self) -> None:
        """Close the connection that has waited longest for its client."""
        others = [other for other in self.connections - {self} if not other.transport.is_closing()]
        if len(others) < self.limits.connections:
            return
        for other in sorted(others, key=lambda other: other.since):
            if other.step is not None and other.step == other.waits_for():
                return other.refuse(503, f"closed for a new connection: {self._too_many()}")
        self.surplus = True

    def data_received(self, data: bytes) -> None:
        if self.surplus:
            self.conn.receive_data(data)
            return self.refuse(503, f"{self._too_many()}; try again later")
        super().data_received(data)

    def _too_many(self) -> str:
        return f"the server has reached its limit of {self.limits.connections} connections"

    def shutdown(self) -> None:
        """Close the connection, or let a running request finish."""
        if self._request_began() and self.waits_for() in (("headers", self.cycle), ("body", self.cycle)):
            self.refuse(503, "the server is shutting down and accepts no new requests")
        else:
            super().shutdown()
