"""The limits of an HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, replace

OTHER_FILES = 96  # open files of the model and of connections that are being opened and closed


@dataclass(frozen=True)
class ServerLimits:
    """How many connections a server has, and how many seconds a client may take for each step.

    `headers` starts with the connection or after the previous response, and `body` after the headers. `response` starts
    when the client last read a part of the response. `grace_period` starts with the first SIGTERM or SIGINT.
    """

    connections: int = 512
    headers: float = 10
    body: float = 30
    response: float = 30
    grace_period: float = 30


def within_open_files(limits: ServerLimits) -> ServerLimits:
    """Return the limits, with fewer connections if the system allows this process fewer open files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    return replace(limits, connections=min(limits.connections, max(8, soft - OTHER_FILES)))
