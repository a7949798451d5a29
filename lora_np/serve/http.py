"""The HTTP server: OpenAI's completions and chat completions API, with vLLM's additions for adapters.

A request's field `model` names the adapter.

    GET  /health   /v1/models   /v1/models/NAME
    POST /v1/completions   /v1/chat/completions      one body, or a stream if "stream": true
    POST /v1/load_lora_adapter {lora_name, lora_path}   /v1/unload_lora_adapter {lora_name}

Status codes of errors: 400 wrong request, 401 no API key, 403 not allowed, 404 unknown model or path, 405 wrong HTTP
method, 408 the client is too slow, 413 body too long, 415 body is not JSON, 429 full queue, 500 internal error, 503 too
many connections, or the server is shutting down.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias

from ..files import Tokenizer
from ..optional import extra
from .access import Access, AccessControl
from .adapters import check_adapter_name
from .completions import CompletionService, PendingCompletion
from .engine import AdapterServer
from .protocol import ProtocolError, parse, parse_json, typed
from .refusals import log_refusal
from .responses import CompletionResponse

App: TypeAlias = Any  # Starlette's application. Starlette is optional, so its types are not imported here
Response: TypeAlias = Any
REFUSALS = {403, 413, 415, 429, 503}  # these errors are logged; for other errors, the response is enough
MAX_BODY = 2**21  # bytes; 131,072 token ids need half of this. Parsing more would delay other requests


class HttpRequest(Protocol):
    """The parts of a Starlette request that this module uses: address, path, headers, body and later ASGI messages."""

    @property
    def client(self) -> tuple[str, int] | None: ...

    @property
    def path_params(self) -> Mapping[str, str]: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    def stream(self) -> AsyncIterator[bytes]: ...

    async def receive(self) -> Mapping[str, Any]: ...


# ------------------------------------------------------------------------------------------------------------ the routes


def create_app(
    engine: AdapterServer,
    tokenizer: Tokenizer,
    base: str,
    access: Access | None = None,
    runtime_lora_updating: bool = False,
) -> App:
    """Return the server as an ASGI application; `app.state.service` is its CompletionService.

    `access` says which clients may use the server; by default only clients on this computer. If `runtime_lora_updating` is
    True, clients may load and unload adapters. Raises MissingExtra if Starlette is not installed.
    """
    Starlette, JSONResponse, Route, CORSMiddleware = _starlette()
    access = access or Access()
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
                if error.status in REFUSALS:
                    log_refusal(request.client, error.status, str(error))
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
        route("/v1/models/{name:path}", "GET", model),
        route("/v1/completions", "POST", lambda service, request: complete(service, request, chat=False)),
        route("/v1/chat/completions", "POST", lambda service, request: complete(service, request, chat=True)),
        route("/v1/load_lora_adapter", "POST", load if runtime_lora_updating else not_enabled),
        route("/v1/unload_lora_adapter", "POST", unload if runtime_lora_updating else not_enabled),
    ]
    app = Starlette(
        routes=routes, lifespan=lifespan, exception_handlers={404: http_error, 405: http_error, 500: internal_error}
    )
    if access.allowed_origins:  # browsers require a header in the response before a page of another origin may read it
        app.add_middleware(
            CORSMiddleware, allow_origins=access.allowed_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(AccessControl, access=access)  # the middleware that is added last is called first
    app.state.service, app.state.access = service, access
    return app


def _starlette() -> tuple[Any, Any, Any, Any]:
    with extra("serve", "the HTTP server"):
        from starlette.applications import Starlette
        from starlette.middleware.cors import CORSMiddleware
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    return Starlette, JSONResponse, Route, CORSMiddleware


async def health(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Return the number of running requests and of waiting requests. The status is 503 if the server is shutting down."""
    running, waiting = await service.call(
        lambda: (len(service.thread.engine.running), len(service.thread.engine.waiting))
    )
    return {"status": "ok", "running": running, "waiting": waiting}


async def models(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """List the base model and its adapters."""
    names = await service.call(service.thread.engine.adapters.names)
    return {"object": "list", "data": [_card(service, name) for name in (service.base, *names)]}


async def model(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Describe one model: the base model or an adapter."""
    name = request.path_params["name"]
    if name != service.base:
        await service.call(service.thread.engine.adapters.check, name)
    return _card(service, name)


def _card(service: CompletionService, name: str) -> dict[str, Any]:
    parent = None if name == service.base else service.base
    return {"id": name, "object": "model", "created": 0, "owned_by": "lora_np", "root": name, "parent": parent}


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


async def not_enabled(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Refuse to load or unload an adapter."""
    raise ProtocolError(
        403, "loading and unloading adapters is off; start the server with --adapters FOLDER to allow it"
    )


async def unload(service: CompletionService, request: HttpRequest) -> dict[str, Any]:
    """Unload an adapter."""
    name = _required_string(await _json_body(request), "lora_name")
    await service.call(service.thread.engine.unload_adapter, name)
    return {"status": "ok", "lora_name": name}


async def _json_body(request: HttpRequest) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    The header Content-Type must be application/json. If a page of another site sends a request with this type, the
    browser first asks the server for permission.
    """
    from starlette.requests import ClientDisconnect

    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ProtocolError(415, f"Content-Type is {content_type!r}; expected 'application/json'")
    length = request.headers.get("content-length", "0")  # uvicorn refuses other values than digits
    too_long = ProtocolError(413, f"the body exceeds the limit of {MAX_BODY} bytes")
    if int(length) > MAX_BODY:
        raise too_long
    raw = bytearray()
    try:
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > MAX_BODY:
                raise too_long
    except ClientDisconnect:
        raise ProtocolError(400, "the client disconnected before the end of the body") from None
    return parse_json(bytes(raw))


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
    response = CompletionResponse(completion.model, chat, service.spell, completion.include_usage)
    pending.watch = asyncio.create_task(_cancel_if_disconnected(pending, request))
    if completion.stream:
        return StreamingResponse(_events(pending, response), media_type="text/event-stream")
    choices = await pending.whole()
    if completion.logprobs is None:
        return response.body(choices, pending.usage())
    return await asyncio.to_thread(response.body, choices, pending.usage())  # many log probabilities take a second


async def _cancel_if_disconnected(pending: PendingCompletion, request: HttpRequest) -> None:
    """Wait until the client disconnects, then cancel the request. A finished request is not changed."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    pending.cancel()


async def _events(pending: PendingCompletion, response: CompletionResponse) -> AsyncIterator[str]:
    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"

    try:
        if response.chat:
            for choice in pending.choices:
                yield event(response.role_chunk(choice.index))
        async for piece in pending.pieces():
            yield event(response.chunk(piece))
        if response.include_usage:
            yield event(response.usage_chunk(pending.usage()))
        yield "data: [DONE]\n\n"
    except ProtocolError as error:  # status 200 is already sent, so the error is an event
        yield event(error.body)
