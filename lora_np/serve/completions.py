"""From a request of the API to the engine, and from the engine's tokens to text.

The event loop serves all clients, so it never waits for one request: texts are encoded in other threads, with a time limit,
after their lengths have been checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..files import Tokenizer
from ..nn import BASE
from .adapters import UnknownAdapter
from .engine import AdapterServer
from .engine_thread import EngineThread
from .protocol import CompletionRequest, ProtocolError, usage
from .request import QueueFull, Request
from .stop_strings import StopStringStream
from .workers import Workers

ENCODERS, ENCODING_SECONDS = 2, 10.0  # texts that are encoded at the same time, and the time limit for one text


class CompletionService:
    """The state that all routes share: the engine in its thread, the tokenizer, and the base model's name.

    Raises ValueError if an adapter has the name of the base model.
    """

    def __init__(self, engine: AdapterServer, tokenizer: Tokenizer, base: str) -> None:
        engine.adapters.reserve(base)
        self.thread, self.tokenizer, self.base = EngineThread(engine), tokenizer, base
        self.encoders = Workers(ENCODERS, ENCODING_SECONDS)
        self.accepting = True  # False after the first signal: running requests are finished, new ones are refused
        # As in vLLM, a text is refused by its number of characters before it is encoded
        tokens = (tokenizer.convert_ids_to_tokens(i) or "" for i in range(tokenizer.vocab_size))
        self.max_tokens = engine.config.max_position_embeddings
        self.max_characters = self.max_tokens * max(map(len, tokens))

    async def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """Call a function in the engine's thread and return its result.

        Raises ProtocolError if the engine raises an error or the server is shutting down.
        """
        if not self.accepting:
            raise ProtocolError(503, "the server is shutting down and accepts no new requests")
        try:
            return await asyncio.wrap_future(self.thread.call(function, *arguments, **settings))
        except QueueFull as error:
            raise ProtocolError(429, str(error), code="queue_full") from None
        except UnknownAdapter as error:
            raise ProtocolError(404, error.args[0], "model", "model_not_found") from None
        except (ValueError, TypeError, OSError) as error:
            raise ProtocolError(400, str(error)) from None

    async def submit(self, completion: CompletionRequest, chat: bool) -> PendingCompletion:
        """Add a request to the engine's queue. Raises ProtocolError."""
        field = "messages" if chat else "prompt"
        self._check_length(completion.prompt, field)
        try:
            ids, stream = await self.encoders.call(self._encode, completion, chat)
        except TimeoutError:
            seconds = self.encoders.seconds
            message = f"{field} could not be encoded within {seconds:g} seconds; shorten the text, or try again later"
            raise ProtocolError(503, message, field) from None
        except ValueError as error:
            raise ProtocolError(400, str(error), field) from None
        room = self.max_tokens - len(ids)
        if room < (completion.max_tokens or 1):
            message = (
                f"{len(ids)} prompt tokens + {completion.max_tokens or 1} new tokens exceed this model's limit of"
                f" {self.max_tokens} tokens; shorten the prompt, or ask for fewer new tokens"
            )
            raise ProtocolError(400, message, field, "context_length_exceeded")
        pending = PendingCompletion(stream, self.thread)
        try:
            await self.call(
                pending.submit,
                ids,
                BASE if completion.model == self.base else completion.model,
                completion.max_tokens or room,
                stop_tokens=() if self.tokenizer.eos_token_id is None else (self.tokenizer.eos_token_id,),
                **completion.sampling,
            )
        except asyncio.CancelledError:  # the engine may have accepted the request already
            pending.cancel()
            raise
        return pending

    def _check_length(self, prompt: str | list, field: str) -> None:
        """Raise ProtocolError if a prompt is certainly too long for the model. The check is quick for any prompt."""
        limit = self.max_tokens
        if isinstance(prompt, str):
            found, unit, limit = len(prompt), "characters", self.max_characters
        elif len(prompt) > limit or field == "prompt":
            found, unit = len(prompt), "messages" if field == "messages" else "tokens"
        else:
            found = sum(len(message["role"]) + len(message["content"]) for message in prompt)
            unit, limit = "characters", self.max_characters
        if found > limit:
            message = (
                f"{field} has {found} {unit}; this server accepts at most {limit} {unit},"
                f" because the model reads at most {self.max_tokens} tokens: shorten {field}"
            )
            raise ProtocolError(400, message, field, "context_length_exceeded")

    def _encode(self, completion: CompletionRequest, chat: bool) -> tuple[list[int], StopStringStream]:
        """Return the token ids of a prompt or a chat, and the stream that decodes the answer.

        Raises ValueError if the prompt cannot be encoded.
        """
        prompt = completion.prompt
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt).tolist()
        elif chat:
            text = self.tokenizer.apply_chat_template(prompt, tokenize=False)
            if len(text) > self.max_characters:
                raise ValueError(
                    f"the chat template returned {len(text)} characters; at most {self.max_characters} are accepted"
                )
            ids = self.tokenizer.encode(text, add_special_tokens=False).tolist()
        else:
            ids = prompt
        after = ids if len(ids) < self.max_tokens else []  # `submit` refuses a longer prompt, so there is no answer
        return ids, StopStringStream(self.tokenizer, after, completion.stop)


class PendingCompletion:
    """A completion in progress: it receives tokens from the engine's thread and sends text to the event loop."""

    def __init__(self, stream: StopStringStream, thread: EngineThread) -> None:
        self.stream, self.thread, self.loop = stream, thread, asyncio.get_running_loop()
        self.pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None follows the last piece of text
        self.request: Request  # set by `submit`
        self.watch: asyncio.Task  # a reference to the task; the event loop itself has only a weak one

    def submit(self, *arguments: Any, **settings: Any) -> None:
        """Add the request to the engine's queue. The engine's thread calls this method."""
        self.request = self.thread.engine.submit(
            *arguments, on_token=self.on_token, on_finish=self.on_finish, **settings
        )

    def cancel(self) -> None:
        """Ask the engine's thread to cancel the request. A finished request is not changed."""

        def cancel() -> None:
            if hasattr(self, "request"):  # else `submit` was cancelled before the engine's thread called it
                self.thread.engine.cancel(self.request)

        self.thread.call(cancel)

    def on_token(self, token: int) -> bool:
        """Decode a token; return True if the text now contains a stop string. The engine's thread calls this method."""
        if text := self.stream.add(token):
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, text)
        return self.stream.stopped

    def on_finish(self, request: Request) -> None:
        """Send the last piece of text to the event loop. The engine's thread calls this method."""
        try:
            if text := self.stream.end():
                self.loop.call_soon_threadsafe(self.pieces.put_nowait, text)
        finally:  # also if the tokens cannot be decoded: the client waits for the end
            self.loop.call_soon_threadsafe(self.pieces.put_nowait, None)

    async def text(self) -> AsyncIterator[str]:
        """Yield the pieces of text. If the caller stops early, the request is cancelled.

        Raises ProtocolError if the engine failed.
        """
        try:
            while (piece := await self.pieces.get()) is not None:
                yield piece
        finally:
            if self.request.finish_reason is None:
                self.cancel()
        if self.request.finish_reason not in ("stop", "length"):
            raise ProtocolError(500, f"generation failed: {self.request.error or 'the request was cancelled'}")

    def usage(self) -> dict[str, int]:
        """Return the numbers of prompt tokens and generated tokens."""
        return usage(self.request.prompt.size, len(self.request.tokens))
