"""The log of refused requests and connections: one line for each, with the client's address and the reason."""

from __future__ import annotations

import logging
from typing import Any

LOGGER = logging.getLogger("lora_np.serve")
MAX_REASON = 300  # characters


def log_refusal(client: Any, status: int, reason: str) -> None:
    """Log the address of a client, the HTTP status, and the reason.

    The reason can contain text of the client. Control characters in the reason are escaped, so that a client cannot
    write a second line or control the terminal.
    """
    line = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}…"
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    LOGGER.warning("refused %s: %d, %s", address(client), status, line)


class ClientLogger(logging.LoggerAdapter):
    """Adds the address of a client to uvicorn's messages."""

    level = logging.WARNING  # uvicorn reads this attribute

    def __init__(self, client: Any) -> None:
        super().__init__(LOGGER)
        self.address = address(client)

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"{self.address}: {msg}", kwargs


def address(client: Any) -> str:
    """Return the address and the port of a client, as one text."""
    return "unknown address" if client is None else "{}:{}".format(*client)
