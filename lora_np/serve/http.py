"""The HTTP door: OpenAI's completions and chat protocol, as vLLM speaks it for adapters. `model` names the adapter.

    GET  /health   /v1/models
    POST /v1/completions   /v1/chat/completions      whole, or "stream": true
    POST /v1/load_lora_adapter {lora_name, lora_path}   /v1/unload_lora_adapter {lora_name}

Errors: 400 (413, 415) what was asked for is wrong, 404 there is no such model, 429 the queue is full, 503 the server is leaving.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeAlias

from ..files import Tokenizer
from ..nn import BASE
from ..optional import extra
from .adapters import UnknownAdapter
from .driver import Driver
from .engine import AdapterServer, QueueFull, Request
from .protocol import Answer, Order, ProtocolError, Writer, parse, parse_json, typed, usage

App: TypeAlias = Any  # Starlette's application, and its Response: imported where they are made, for they are optional
Response: TypeAlias = Any
HOST, PORT = "127.0.0.1", 8000
MAX_BODY = 2**23  # bytes: more than any prompt that a model of this library takes


class HttpRequest(Protocol):
    """What is read of a Starlette request: headers and body, and what ASGI sends after them."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def stream(self) -> AsyncIterator[bytes]: ...

    async def receive(self) -> Mapping[str, Any]: ...


class Door:
    """What the routes share: the engine behind its thread, the tokenizer, and the base's name."""

    def __init__(self, engine: AdapterServer, tokenizer: Tokenizer, base: str) -> None:
        self.driver, self.tokenizer, self.base = Driver(engine), tokenizer, base
        self.open = True  # False: what runs is finished, and nothing new is taken

    async def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """A call in the engine's thread. Raises ProtocolError for what the engine refuses."""
        if not self.open:
            raise ProtocolError(503, "the server is shutting down")
        try:
            return await asyncio.wrap_future(self.driver.call(function, *arguments, **settings))
        except QueueFull as error:
            raise ProtocolError(429, str(error), code="queue_full") from None
        except UnknownAdapter as error:
            raise ProtocolError(404, error.args[0], "model", "model_not_found") from None
        except (ValueError, TypeError, OSError) as error:
            raise ProtocolError(400, str(error)) from None

    def encode(self, order: Order, chat: bool) -> tuple[list[int], Writer]:
        """The tokens of a prompt or a conversation, and what writes behind them. Raises ProtocolError where they are none."""
        try:
            if isinstance(order.prompt, str):
                ids = self.tokenizer.encode(order.prompt).tolist()
            else:
                ids = self.tokenizer.apply_chat_template(order.prompt).tolist() if chat else order.prompt
            return ids, Writer(self.tokenizer, ids, order.stop)
        except ValueError as error:
            raise ProtocolError(400, str(error), "messages" if chat else "prompt") from None

    async def submit(self, order: Order, chat: bool) -> Ticket:
        """Queue an order. Raises ProtocolError."""
        ids, writer = self.encode(order, chat)
        limit = self.driver.engine.config.max_position_embeddings
        room = limit - len(ids)
        if room < (order.max_tokens or 1):
            message = (
                f"{len(ids)} tokens of prompt and {order.max_tokens or 1} new ones; this model takes {limit} in all"
            )
            raise ProtocolError(400, message, "messages" if chat else "prompt", "context_length_exceeded")
        ticket = Ticket(writer)
        eos = self.tokenizer.eos_token_id
        ticket.request = await self.call(
            self.driver.engine.submit,
            ids,
            BASE if order.model == self.base else order.model,
            order.max_tokens or room,
            stop_tokens=() if eos is None else (eos,),
            on_token=ticket.on_token,
            on_finish=ticket.on_finish,
            **order.sampling,
        )
        return ticket


class Ticket:
    """A request's way from the engine's thread to the event loop: pieces of text, then None."""

    def __init__(self, writer: Writer) -> None:
        self.writer, self.loop = writer, asyncio.get_running_loop()
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()
        self.request: Request
        self.watch: asyncio.Task  # kept, for the loop itself holds a task but weakly

    def on_token(self, token: int) -> bool:
        """In the engine's thread."""
        if text := self.writer.add(token):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, text)
        return self.writer.stopped

    def on_finish(self, request: Request) -> None:
        """In the engine's thread."""
        for piece in (self.writer.end(), None):
            if piece != "":
                self.loop.call_soon_threadsafe(self.pieces.put_nowait, piece)

    async def text(self) -> AsyncIterator[str]:
        """The pieces. Raises ProtocolError where the engine failed."""
        while (piece := await self.pieces.get()) is not None:
            yield piece
        if self.request.finish_reason not in ("stop", "length"):
            raise ProtocolError(500, f"the answer was not finished: {self.request.error or 'cancelled'}")

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        return usage(self.request.prompt.size, len(self.request.tokens))


# ------------------------------------------------------------------------------------------------------------ the routes


def create_app(engine: AdapterServer, tokenizer: Tokenizer, base: str) -> App:
    """The door as an ASGI application; `app.state.door` is its Door. Raises MissingExtra if Starlette is not installed."""
    Starlette, JSONResponse, Route = _starlette()
    door = Door(engine, tokenizer, base)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        door.driver.start()
        yield
        await asyncio.to_thread(door.driver.close)

    def route(path: str, method: str, handler: Callable[..., Any]) -> Any:
        async def endpoint(request: HttpRequest) -> Response:
            try:
                answer = await handler(door, request)
            except ProtocolError as error:
                return JSONResponse(error.body, error.status)
            return JSONResponse(answer) if isinstance(answer, dict) else answer

        return Route(path, endpoint, methods=[method])

    async def wrong(request: HttpRequest, error: Any) -> Response:
        return JSONResponse(ProtocolError(error.status_code, error.detail).body, error.status_code, error.headers)

    async def failed(request: HttpRequest, error: Exception) -> Response:
        return JSONResponse(ProtocolError(500, f"{type(error).__name__}: a mistake of this server's").body, 500)

    routes = [
        route("/health", "GET", health),
        route("/v1/models", "GET", models),
        route("/v1/completions", "POST", lambda door, request: complete(door, request, chat=False)),
        route("/v1/chat/completions", "POST", lambda door, request: complete(door, request, chat=True)),
        route("/v1/load_lora_adapter", "POST", load),
        route("/v1/unload_lora_adapter", "POST", unload),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={404: wrong, 405: wrong, 500: failed})
    app.state.door = door
    return app


def _starlette() -> tuple[Any, Any, Any]:
    with extra("serve", "the HTTP server"):
        from starlette.applications import Starlette
        from starlette.responses import JSONResponse
        from starlette.routing import Route
    return Starlette, JSONResponse, Route


async def health(door: Door, request: HttpRequest) -> dict[str, Any]:
    """200 while requests are taken."""
    running, waiting = await door.call(lambda: (len(door.driver.engine.running), len(door.driver.engine.waiting)))
    return {"status": "ok", "running": running, "waiting": waiting}


async def models(door: Door, request: HttpRequest) -> dict[str, Any]:
    """The base and its adapters."""
    names = await door.call(door.driver.engine.adapters.names)
    kind = {"object": "model", "created": 0, "owned_by": "lora_np"}
    cards = [{"id": name, **kind, "root": name, "parent": door.base} for name in names]
    return {"object": "list", "data": [{"id": door.base, **kind, "root": door.base, "parent": None}, *cards]}


async def load(door: Door, request: HttpRequest) -> dict[str, Any]:
    """From now on serve another adapter."""
    body = await _body(request)
    name, path = (_needed(body, field) for field in ("lora_name", "lora_path"))
    if name == door.base:
        raise ProtocolError(400, f"{name!r} is the base's name", "lora_name")
    await door.call(door.driver.engine.load_adapter, name, path)
    return {"status": "ok", "lora_name": name}


async def unload(door: Door, request: HttpRequest) -> dict[str, Any]:
    """Serve one less."""
    name = _needed(await _body(request), "lora_name")
    await door.call(door.driver.engine.unload_adapter, name)
    return {"status": "ok", "lora_name": name}


async def _body(request: HttpRequest) -> dict[str, Any]:
    """The JSON object that came. It must say that it is one: a page in a browser may then not send it from elsewhere."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ProtocolError(415, "expected Content-Type: application/json")
    raw = b""
    async for chunk in request.stream():
        raw += chunk
        if len(raw) > MAX_BODY:
            raise ProtocolError(413, f"the body is longer than {MAX_BODY} bytes")
    return parse_json(raw)


def _needed(body: dict[str, Any], field: str) -> str:
    if not (value := typed(body, field, str)):
        raise ProtocolError(400, f"{field} is missing", field)
    return value


async def complete(door: Door, request: HttpRequest, chat: bool) -> Any:
    """An answer, whole or as server-sent events. A client who goes away frees his place."""
    from starlette.responses import StreamingResponse

    order = parse(await _body(request), chat)
    ticket, answer = await door.submit(order, chat), Answer(order.model, chat)
    ticket.watch = asyncio.create_task(_cancel_when_gone(door, ticket, request))
    if order.stream:
        return StreamingResponse(_events(ticket, answer, order.include_usage), media_type="text/event-stream")
    text = "".join([piece async for piece in ticket.text()])
    return answer.whole(text, ticket.request.finish_reason, ticket.usage())


async def _cancel_when_gone(door: Door, ticket: Ticket, request: HttpRequest) -> None:
    """The server says "disconnect" after the answer too; the request has finished then, and stays as it is."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    door.driver.call(door.driver.engine.cancel, ticket.request)


async def _events(ticket: Ticket, answer: Answer, include_usage: bool) -> AsyncIterator[str]:
    def event(data: dict[str, Any]) -> str:
        return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"

    try:
        if answer.chat:
            yield event(answer.first())
        async for piece in ticket.text():
            yield event(answer.chunk(piece))
        yield event(answer.chunk("", ticket.request.finish_reason))
        if include_usage:
            yield event(answer.last(ticket.usage()))
        yield "data: [DONE]\n\n"
    except ProtocolError as error:  # the status has been sent
        yield event(error.body)


# ------------------------------------------------------------------------------------------------------------ the server


def make_server(
    app: App,
    host: str = HOST,
    port: int = PORT,
    on_start: Callable[[str], Any] = lambda url: None,
) -> Any:
    """A uvicorn.Server that leaves well: the first SIGTERM or SIGINT finishes what runs, the second one does not wait.

    Until all is finished new requests are answered, with 503. `on_start` gets the address once it listens. Raises
    MissingExtra if uvicorn is not installed.
    """
    with extra("serve", "the HTTP server"):
        import uvicorn
    door = app.state.door

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            if not door.open or sig not in (signal.SIGTERM, signal.SIGINT):
                super().handle_exit(sig, frame)
            door.open = False

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                on_start("http://{}:{}".format(*self.servers[0].sockets[0].getsockname()[:2]))

        async def on_tick(self, counter: int) -> bool:
            """Called ten times a second; True ends the server."""
            return await super().on_tick(counter) or (not door.open and door.driver.engine.idle)

    return Server(uvicorn.Config(app, host=host, port=port, log_level="warning", lifespan="on"))
