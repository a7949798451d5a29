"""Who may send requests: checks of the headers Host, Origin and Authorization, before a route sees the request.

The three headers:

    Host           the name of the server in the URL; with DNS rebinding, this is the domain of the attacker's page
    Origin         the web site whose page sends the request, written by the browser
    Authorization  "Bearer " and an API key
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from .protocol import ProtocolError
from .refusals import log_refusal

Scope = Mapping[str, Any]  # the ASGI description of a request
LOOPBACK = "127.0.0.1"
OPEN_PATHS = {"/health"}  # these paths need no key, as in vLLM


@dataclass(frozen=True)
class Access:
    """The address at which a server listens, and the clients that may use it.

    `host` is the address. If `api_keys` is not empty, a request must have one of these keys. `allowed_hosts` are further
    names for the header Host. `allowed_origins` are web sites whose pages may send requests. Raises ValueError if another
    computer could reach the server without a key.
    """

    host: str = LOOPBACK
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.api_keys and not is_loopback(self.host):
            raise ValueError(
                f"--host {self.host}: other computers can reach this address, so the server needs an API key; set the"
                f" environment variable LORA_NP_API_KEY (or --api-key), or use --host {LOOPBACK}"
            )
        for key in self.api_keys:
            if not re.fullmatch(r"[!-~]+", key):
                raise ValueError("an API key is empty or has characters other than ASCII letters, digits and signs")
        for host in self.allowed_hosts:
            if not re.fullmatch(r"[\w.-]+|\[?[0-9a-fA-F:.]+\]?", host):
                raise ValueError(
                    f"--allowed-hosts {host}: expected a host name without a port, such as gpu.example.org"
                )
        for origin in self.allowed_origins:
            if not re.fullmatch(r"https?://[^\s/]+", origin):
                raise ValueError(f"--allowed-origins {origin}: expected an origin such as https://chat.example.org")

    def refusal(self, scope: Scope) -> ProtocolError | None:
        """Return the error of a request that is refused, or None."""
        host = _header(scope, b"host")
        if not self._is_own_name(host_name(host), scope):
            message = f"Host is {host!r}; expected a name of this server. Add a name with --allowed-hosts"
            return ProtocolError(403, message, code="host_not_allowed")
        origin = _header(scope, b"origin")
        own = (f"http://{host}".lower(), f"https://{host}".lower(), *map(str.lower, self.allowed_origins))
        if origin and origin.lower() not in own:
            message = (
                f"Origin is {origin!r}; pages of this web site may not use this server. Add it with --allowed-origins"
            )
            return ProtocolError(403, message, code="origin_not_allowed")
        if self.api_keys and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":  # a preflight has no key
            scheme, _, key = _header(scope, b"authorization").partition(" ")
            if scheme.lower() != "bearer" or not self._is_key(key.strip()):
                given = "the API key is wrong" if key else "the API key is missing"
                message = f"{given}; expected the header 'Authorization: Bearer KEY'"
                return ProtocolError(401, message, code="invalid_api_key")
        return None

    def _is_own_name(self, name: str, scope: Scope) -> bool:
        here = (scope.get("server") or ("",))[0]  # the address at which this connection arrived
        names = {here, *(host.lower().strip("[]") for host in (self.host, *self.allowed_hosts))}
        return is_loopback(name) or name in names - {""}

    def _is_key(self, given: str) -> bool:
        """Return True if the text is one of the keys. The duration of the comparison does not depend on the keys."""
        digests = [hashlib.sha256(key.encode()).digest() for key in (given, *self.api_keys)]
        return any([hmac.compare_digest(digests[0], digest) for digest in digests[1:]])


class AccessControl:
    """ASGI middleware: answers a request that `access` refuses, and passes all other requests to the application."""

    def __init__(self, app: Callable[..., Any], access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        error = self.access.refusal(scope) if scope["type"] == "http" else None
        if error is None:
            return await self.app(scope, receive, send)
        log_refusal(scope["client"], error.status, str(error))
        headers = [(b"content-type", b"application/json")]
        if error.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        body = json.dumps(error.body).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Return True if only this computer can reach the address `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(header: str) -> str:
    """Return the name in a header Host, in lower case and without the port: "[::1]:8000" → "::1"."""
    return re.sub(r":\d*$", "", header.lower()).strip("[]")


def _header(scope: Scope, name: bytes) -> str:
    """Return the value of a header. If a header occurs several times, its values are joined; the joined text equals no
    allowed value."""
    return ", ".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
