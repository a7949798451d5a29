"""Pass requests of the API to the engine, and turn the engine's tokens into text.

The event loop serves all clients, so it must not wait for one request. The length of a text is checked first. Then another
thread encodes the text, with a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from functools import cache
from typing import Any

from ..files import Tokenizer
from ..nn import BASE
from .adapters import UnknownAdapter
from .engine import AdapterServer
from .engine_thread import EngineThread
from .logprobs import part_of_a_character
from .protocol import CompletionRequest, ProtocolError
from .request import QueueFull, Request
from .responses import Piece, usage
from .stop_strings import StopStringStream
from .workers import Workers

ENCODERS, ENCODING_SECONDS = (
    2,
    10.0,
)  # requests whose texts are encoded at the same time, and the time limit for one request
MAX_LOGPROBS = 2**17  # per request: about 15 MB of JSON; 6,000 tokens with the 20 most likely tokens fit


class CompletionService:
    """The state that all routes share: the engine in its thread, the tokenizer, and the base model's name.

    Raises ValueError if an adapter has the name of the base model.
    """

    def __init__(self, engine: AdapterServer, tokenizer: Tokenizer, base: str) -> None:
        engine.adapters.reserve(base)
        self.thread, self.tokenizer, self.base = EngineThread(engine), tokenizer, base
        self.encoders = Workers(ENCODERS, ENCODING_SECONDS)
        self.accepting = True  # False after the first signal: running requests are finished, new ones are refused
        # As in vLLM, a text with too many characters is refused before it is encoded.
        tokens = (tokenizer.convert_ids_to_tokens(i) or "" for i in range(tokenizer.vocab_size))
        self.max_tokens = engine.config.max_position_embeddings
        self.max_characters = self.max_tokens * max(map(len, tokens))
        self.spell = cache(self._spell)  # at most one text per token of the vocabulary

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
            raise ProtocolError(400, self.thread.engine.adapters.without_roots(str(error))) from None

    async def submit(self, completion: CompletionRequest, chat: bool) -> PendingCompletion:
        """Add the answers that a request asks for to the engine's queue: all answers, or none. Raises ProtocolError."""
        field = "messages" if chat else "prompt"
        for prompt in completion.prompts:
            self._check_length(prompt, field)
        try:
            prompts = await self.encoders.call(self._encode, completion, chat)
        except TimeoutError:
            seconds = self.encoders.seconds
            message = f"{field} could not be encoded within {seconds:g} seconds; shorten the text, or try again later"
            raise ProtocolError(503, message, field) from None
        except ValueError as error:
            raise ProtocolError(400, str(error), field) from None
        settings = self._settings(completion)
        choices: list[Choice] = []
        pending = PendingCompletion(choices, self.thread)
        for ids, echo, streams in prompts:
            new = self._max_new_tokens(completion, len(ids), field)
            for row, stream in enumerate(streams):
                with_logprobs = completion.logprobs is not None
                choices.append(Choice(len(choices), stream, echo, with_logprobs, pending.put, (ids, new, row)))
        self._check_logprobs(completion, choices)
        adapter = BASE if completion.model == self.base else completion.model
        try:
            await self.call(pending.submit, adapter, settings)
        except asyncio.CancelledError:  # the engine may have accepted the request already
            pending.cancel()
            raise
        return pending

    def _settings(self, completion: CompletionRequest) -> dict[str, Any]:
        """Return the settings for `AdapterServer.submit`, which are the same for all answers to a request."""
        vocabulary = self.thread.engine.config.vocab_size
        if (largest := max(completion.stop_token_ids, default=0)) >= vocabulary:
            message = f"stop_token_ids contains {largest}; expected token ids from 0 to {vocabulary - 1}"
            raise ProtocolError(400, message, "stop_token_ids")
        echoed = completion.echo and (completion.logprobs is not None or completion.max_tokens == 0)
        return completion.sampling | {
            "stop_tokens": frozenset(completion.stop_token_ids).union(  # one object for all answers
                () if completion.ignore_eos else self.tokenizer.stop_token_ids
            ),
            "logprobs": completion.logprobs,
            "prompt_logprobs": (completion.logprobs or 0) if echoed else None,
        }

    def _max_new_tokens(self, completion: CompletionRequest, size: int, field: str) -> int:
        """Return the largest number of new tokens after a prompt of `size` tokens."""
        room, wanted = self.max_tokens - size, completion.max_tokens
        if room < (least := 1 if wanted is None else wanted):
            message = (
                f"{size} prompt tokens + {least} new tokens exceed this model's limit of"
                f" {self.max_tokens} tokens; shorten the prompt, or ask for fewer new tokens"
            )
            raise ProtocolError(400, message, field, "context_length_exceeded")
        return room if wanted is None else wanted

    def _check_logprobs(self, completion: CompletionRequest, choices: Sequence[Choice]) -> None:
        """Raise ProtocolError if a request asks for more than MAX_LOGPROBS log probabilities."""
        if completion.logprobs is None:
            return
        tokens = sum(choice.new + completion.echo * len(choice.ids) for choice in choices)
        if (found := tokens * (completion.logprobs + 1)) > MAX_LOGPROBS:
            message = (
                f"logprobs: {tokens} tokens with {completion.logprobs + 1} log probabilities each are {found}; expected at "
                f"most {MAX_LOGPROBS} per request. Send fewer prompts, or ask for fewer new tokens"
            )
            raise ProtocolError(400, message, "logprobs")

    def _spell(self, token: int) -> str:
        """Return the text of a token, with its leading space. If the token is only a part of a character, return
        `token_id:ID`."""
        if token >= self.tokenizer.vocab_size:
            return part_of_a_character(token)
        once, twice = self.tokenizer.decode([token]), self.tokenizer.decode([token, token])
        text = twice[len(once) :]  # some vocabularies remove the space at the start of a text
        return part_of_a_character(token) if "\ufffd" in twice else text

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
                f"{field} has {found} {unit}, but this server accepts at most {limit} {unit},"
                f" because the model reads at most {self.max_tokens} tokens; shorten {field}"
            )
            raise ProtocolError(400, message, field, "context_length_exceeded")

    def _encode(self, completion: CompletionRequest, chat: bool) -> list[tuple[list[int], str, list[StopStringStream]]]:
        """Return for each prompt its token ids, the text to repeat in the answers, and one stream per answer to decode
        the answer.

        Raises ValueError if a prompt cannot be encoded.
        """
        found = []
        for prompt in completion.prompts:
            ids = self._ids(prompt, chat)
            after = ids if len(ids) < self.max_tokens else []  # `submit` refuses a longer prompt, so there is no answer
            echo = ""
            if completion.echo:
                echo = prompt if isinstance(prompt, str) else self.tokenizer.decode(ids)
            streams = [StopStringStream(self.tokenizer, after, completion.stop) for _ in range(completion.n)]
            found.append((ids, echo, streams))
        return found

    def _ids(self, prompt: str | list, chat: bool) -> list[int]:
        """Return the token ids of a text, of token ids, or of the messages of a chat."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt).tolist()
        if not chat:
            return prompt
        text = self.tokenizer.apply_chat_template(prompt, tokenize=False)
        if len(text) > self.max_characters:
            raise ValueError(
                f"the chat template returned {len(text)} characters; at most {self.max_characters} are accepted"
            )
        return self.tokenizer.encode(text, add_special_tokens=False).tolist()


class Choice:
    """One answer of a completion: turns the tokens of the engine's thread into pieces of text.

    `echo` is the text of the prompt, if the answer must begin with the prompt. `put` is called with each piece.
    """

    def __init__(
        self,
        index: int,
        stream: StopStringStream,
        echo: str,
        with_logprobs: bool,
        put: Callable[[Piece], None],
        prompt: tuple[list[int], int, int],
    ) -> None:
        self.index, self.stream, self.with_logprobs, self.put = index, stream, with_logprobs, put
        self.ids, self.new, self.row = prompt  # token ids, largest number of new tokens, row of the random numbers
        self.echo, self.started, self.sent = echo, False, 0  # sent: number of log probabilities of the answer
        self.request: Request

    def submit(self, engine: AdapterServer, adapter: str, settings: dict[str, Any]) -> None:
        """Add the request to the engine's queue. The engine's thread calls this method."""
        self.request = engine.submit(
            self.ids, adapter, self.new, row=self.row, on_token=self.on_token, on_finish=self.on_finish, **settings
        )

    def on_token(self, token: int) -> bool:
        """Send new text; return True if the text now contains a stop string. The engine's thread calls this method."""
        if text := self.stream.add(token):
            self._send(self.request, text, None)
        return self.stream.stopped

    def on_finish(self, request: Request) -> None:
        """Send the last piece of text. The engine's thread calls this method."""
        text = ""
        try:
            text = self.stream.end()
        finally:  # the client waits for the end, even if the tokens cannot be decoded
            self._send(request, text, request.finish_reason)

    def _send(self, request: Request, text: str, finish_reason: str | None) -> None:
        text, logprobs = text if self.started else self.echo + text, None
        if self.with_logprobs:
            logprobs = request.token_logprobs[self.sent :]
            self.sent += len(logprobs)
            if not self.started:
                logprobs = request.prompt_token_logprobs + logprobs
        self.started = True
        self.put(Piece(self.index, text, finish_reason, logprobs))


class PendingCompletion:
    """A completion in progress: its choices send pieces of text from the engine's thread to the event loop."""

    def __init__(self, choices: Sequence[Choice], thread: EngineThread) -> None:
        self.choices, self.thread, self.loop = choices, thread, asyncio.get_running_loop()
        self.queue: asyncio.Queue[Piece] = asyncio.Queue()
        self.watch: asyncio.Task  # a reference to the task; the event loop itself has only a weak one

    def put(self, piece: Piece) -> None:
        """Send a piece of text to the event loop. The engine's thread calls this method."""
        self.loop.call_soon_threadsafe(self.queue.put_nowait, piece)

    def submit(self, adapter: str, settings: dict[str, Any]) -> None:
        """Add all requests to the engine's queue, or none of them. The engine's thread calls this method."""
        try:
            for choice in self.choices:
                choice.submit(self.thread.engine, adapter, settings)
        except BaseException:
            self._cancel()
            raise

    def cancel(self) -> None:
        """Ask the engine's thread to cancel the requests. A finished request is not changed."""
        self.thread.call(self._cancel)

    def _cancel(self) -> None:
        for choice in self.choices:
            if hasattr(choice, "request"):  # else `submit` was cancelled before the engine's thread called it
                self.thread.engine.cancel(choice.request)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces of text of all choices. If the caller stops early, the requests are cancelled.

        Raises ProtocolError if the engine failed.
        """
        running = len(self.choices)
        try:
            while running:
                piece = await self.queue.get()
                if piece.finish_reason not in (None, "stop", "length"):
                    error = self.choices[piece.index].request.error or "the request was cancelled"
                    error = self.thread.engine.adapters.without_roots(str(error))
                    raise ProtocolError(500, f"generation failed: {error}")
                running -= piece.finish_reason is not None
                yield piece
        finally:
            if running:
                self.cancel()

    async def whole(self) -> list[Piece]:
        """Wait for the end of all choices, and return one piece per choice. Raises ProtocolError if the engine failed."""
        parts: list[list[Piece]] = [[] for _ in self.choices]
        async for piece in self.pieces():
            parts[piece.index].append(piece)
        return [
            Piece(
                index,
                "".join(part.text for part in own),
                own[-1].finish_reason,
                None if own[-1].logprobs is None else [entry for part in own for entry in part.logprobs or ()],
            )
            for index, own in enumerate(parts)
        ]

    def usage(self) -> dict[str, int]:
        """Return the numbers of prompt tokens and generated tokens. A prompt with several answers is counted once."""
        prompt_tokens = sum(len(choice.ids) for choice in self.choices if choice.row == 0)
        return usage(prompt_tokens, sum(len(choice.request.tokens) for choice in self.choices))
