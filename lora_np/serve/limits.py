"""The limits of an HTTP server."""

from __future__ import annotations

from dataclasses import dataclass, replace

OTHER_FILES = 96  # open files of the model and of connections that are being opened and closed


@dataclass(frozen=True)
class ServerLimits:
    """How many connections a server has, and how many seconds a client may take for each step.

    The time `headers` starts with the connection or after the previous response. The time `body` starts after the
    headers. The time `response` starts again whenever the client reads a part of the response. The time `grace_period`
    starts with the first SIGTERM or SIGINT.
    """

    connections: int = 512
    headers: float = 10
    body: float = 30
    response: float = 30
    grace_period: float = 30


def within_open_files(limits: ServerLimits) -> ServerLimits:
    """Return the limits, with fewer connections if the system does not allow this process as many open files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return limits
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return limits
    return replace(limits, connections=min(limits.connections, max(8, soft - OTHER_FILES)))
