"""The HTTP server: OpenAI's completions and chat completions API, with vLLM's additions for adapters.

A request's field `model` names the adapter.

    GET  /health   /v1/models
    POST /v1/completions   /v1/chat/completions      one body, or a stream if "stream": true
    POST /v1/load_lora_adapter {lora_name, lora_path}   /v1/unload_lora_adapter {lora_name}

Status codes of errors: 400 wrong request, 404 unknown model or path, 405 wrong HTTP method, 413 body too long, 415 body
is not JSON, 429 full queue, 500 internal error, 503 the server is shutting down.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias

from ..files import Tokenizer
from ..optional import extra
from .adapters import check_adapter_name
from .completions import CompletionService, PendingCompletion
from .engine import AdapterServer
from .protocol import CompletionResponse, ProtocolError, parse, parse_json, typed

App: TypeAlias = Any  # Starlette's application. Starlette is optional, so its types are not imported here
Response: TypeAlias = Any
HOST, PORT = "127.0.0.1", 8000
MAX_BODY = 2**23  # bytes; longer than any prompt for a model of this library


class HttpRequest(Protocol):
    """The parts of a Starlette request that this module uses: headers, body and later ASGI messages."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def stream(self) -> AsyncIterator[bytes]: ...

    async def receive(self) -> Mapping[str, Any]: ...


# ------------------------------------------------------------------------------------------------------------ the routes


def create_app(engine: AdapterServer, tokenizer: Tokenizer, base: str) -> App:
    """Return the server as an ASGI application; `app.state.service` is its CompletionService.

    Raises MissingExtra if Starlette is not installed.
    """
    Starlette, JSONResponse, Route = _starlette()
    service = CompletionService(engine, tokenizer, base)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        service.thread.start()
        yield
        await asyncio.to_thread(service.thread.close)

    def route(path: str, method: str, handler: Callable[..., Any]) -> Any:
        async def endpoint(request: HttpRequest) -> Response:
            try:
                answer = await handler(service, request)
            except ProtocolError as error:
                return JSONResponse(error.body, error.status)
            return JSONResponse(answer) if isinstance(answer, dict) else answer

        return Route(path, endpoint, methods=[method])

    async def http_error(request: HttpRequest, error: Any) -> Response:
        return JSONResponse(ProtocolError(error.status_code, error.detail).body, error.status_code, error.headers)

    async def internal_error(request: HttpRequest, error: Exception) -> Response:
        return JSONResponse(ProtocolError(500, f"internal server error: {type(error).__name__}").body, 500)

    routes = [
        route("/health", "GET", health),
        route("/v1/models", "GET", models),
        route("/v1/completions", "POST", lambda service, request: complete(service, request, chat=False)),
        route("/v1/chat/completions", "POST", lambda service, request: complete(service, request, chat=True)),
        route("/v1/load_lora_adapter", "POST", load),
        route("/v1/unload_lora_adapter", "POST", unload),
    ]
    app = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={404: http_error, 405: http_error, 500: internal_error}
    )
    app.state.service = service
    return app


def _starlette() -> tuple[Any, Any, Any]:
    with extra("serve", "the HTTP server"):
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    return Starlette, JSONResponse, Route


async def health(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Return the number of running requests and of waiting requests; status 503 if the server is shutting down."""
    running, waiting = await service.call(
        lambda: (len(service.thread.engine.running), len(service.thread.engine.waiting))
    )
    return {"status": "ok", "running": running, "waiting": waiting}


async def models(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """List the base model and its adapters."""
    names = await service.call(service.thread.engine.adapters.names)
    kind = {"object": "model", "created": 0, "owned_by": "lora_np"}
    cards = [{"id": name, **kind, "root": name, "parent": service.base} for name in names]
    return {"object": "list", "data": [{"id": service.base, **kind, "root": service.base, "parent": None}, *cards]}


async def load(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Load an adapter."""
    body = await _json_body(request)
    name, path = (_required_string(body, field) for field in ("lora_name", "lora_path"))
    try:
        check_adapter_name(name, service.base)
    except ValueError as error:
        raise ProtocolError(400, str(error), "lora_name") from None
    await service.call(service.thread.engine.load_adapter, name, path)
    return {"status": "ok", "lora_name": name}


async def unload(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Unload an adapter."""
    name = _required_string(await _json_body(request), "lora_name")
    await service.call(service.thread.engine.unload_adapter, name)
    return {"status": "ok", "lora_name": name}


async def _json_body(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    The header Content-Type must be application/json. For a page of another site, a browser sends this type only if the
    server allows the request.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ProtocolError(415, f"Content-Type is {content_type!r}; expected 'application/json'")
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise ProtocolError(413, f"the body exceeds the limit of {MAX_BODY} bytes")
    return parse_json(raw)


def _required_string(body: dict[str, Any], field: str) -> str:
    if not (value := typed(body, field, str)):
        raise ProtocolError(400, f"the field {field} is missing or empty", field)
    return value


async def complete(service: CompletionService, request: HttpRequest, chat: bool) -> Any:
    """Generate text and return one body or a stream of server-sent events.

    If the client disconnects, the request is cancelled.
    """
    from starlette.responses import StreamingResponse

    completion = parse(await _json_body(request), chat)
    pending = await service.submit(completion, chat)
    response = CompletionResponse(completion.model, chat)
    pending.watch = asyncio.create_task(_cancel_if_disconnected(pending, request))
    if completion.stream:
        return StreamingResponse(_events(pending, response, completion.include_usage), media_type="text/event-stream")
    text = "".join([piece async for piece in pending.text()])
    return response.body(text, pending.request.finish_reason, pending.usage())


async def _cancel_if_disconnected(pending: PendingCompletion, request: HttpRequest) -> None:
    """Wait until the client disconnects, then cancel the request. A finished request is not changed."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    pending.cancel()


async def _events(pending: PendingCompletion, response: CompletionResponse, include_usage: bool) -> AsyncIterator[str]:
    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"

    try:
        if response.chat:
            yield event(response.role_chunk())
        async for piece in pending.text():
            yield event(response.chunk(piece))
        yield event(response.chunk("", pending.request.finish_reason))
        if include_usage:
            yield event(response.usage_chunk(pending.usage()))
        yield "data: [DONE]\n\n"
    except ProtocolError as error:  # status 200 is already sent, so the error is an event
        yield event(error.body)


# ------------------------------------------------------------------------------------------------------------ the server


def make_server(
    app: App,
    host: str = HOST,
    port: int = PORT,
    on_start: Callable[[str], Any] = lambda url: None,
) -> Any:
    """Return a uvicorn.Server for the application.

    After the first SIGTERM or SIGINT, the server finishes the running requests and answers new requests with status
    503. After a second signal, the server stops at once. `on_start` is called with the server's URL when the server
    accepts connections. Raises MissingExtra if uvicorn is not installed.
    """
    with extra("serve", "the HTTP server"):
        import uvicorn
    service = app.state.service

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if not service.accepting or sig not in (signal.SIGTERM, signal.SIGINT):
                super().handle_exit(sig, frame)
            service.accepting = False

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_start("http://{}:{}".format(*self.servers[0].sockets[0].getsockname()[:2]))

        async def on_tick(self, counter: int) -> bool:
            """Return True to end the server. uvicorn calls this method ten times per second."""
            return await super().on_tick(counter) or (not service.accepting and service.thread.engine.idle)

    return Server(uvicorn.Config(app, host=host, port=port, log_level="warning", lifespan="on"))
