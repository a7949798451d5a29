"""OpenAI's completions and chat protocol as data: bodies in, checked; answers out. What vLLM adds for adapters is in http.

Source: the OpenAI API reference (completions, chat completions, errors), and vLLM's OpenAI-compatible server.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..files.tokenizer import TextStream, Tokenizer

MAX_TOKENS = 16  # OpenAI's default for a completion; a chat's is what the model has room for
MAX_STOPS = 4
GREEDY = 1e-5  # a lower temperature is 0, as in vLLM: logits divided by it would be no numbers

# Fields of the protocol that are not here, and the values by which a client says that it does not use them.
NOT_HERE: dict[str, tuple] = {
    **dict.fromkeys(("n", "best_of"), (1,)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), (0,)),
    **dict.fromkeys(("logprobs", "echo", "parallel_tool_calls"), (False,)),
    **dict.fromkeys(("logit_bias",), ({},)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    **dict.fromkeys(("suffix", "top_logprobs", "modalities", "audio", "prediction", "reasoning_effort"), ()),
    "response_format": ({"type": "text"},),
}
WITHOUT_EFFECT = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
OURS = {"model", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "stream", "stream_options"}


class ProtocolError(Exception):
    """An answer that is an error: its HTTP status, and OpenAI's fields."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kinds = {404: "not_found_error", 429: "rate_limit_error"}
        self.status = status
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


@dataclass(frozen=True)
class Order:
    """A checked body. `max_tokens` None: as many as there is room for."""

    model: str
    prompt: str | list
    max_tokens: int | None
    sampling: dict[str, Any]
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_json(raw: bytes) -> dict[str, Any]:
    """A body as an object. Raises ProtocolError."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(400, f"the body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise ProtocolError(400, f"the body is a JSON {type(body).__name__}; expected an object")
    return body


def parse(body: dict[str, Any], chat: bool) -> Order:
    """Raises ProtocolError naming the field that is missing, wrong, or not supported."""
    what = "messages" if chat else "prompt"
    length = ("max_completion_tokens",) if chat else ()
    for key, value in body.items():
        if key in NOT_HERE:
            if value is not None and not any(value == off and type(value) is type(off) for off in NOT_HERE[key]):
                raise ProtocolError(400, f"{key} = {value!r} is not supported here", key, "unsupported_parameter")
        elif key not in OURS | WITHOUT_EFFECT | {what, *length}:
            raise ProtocolError(400, f"{key!r} is no field that is known here", key, "unknown_parameter")
    limits = [integer(body, name, 1) for name in ("max_tokens", *length)]
    temperature = number(body, "temperature", 0, 2)
    sampling = {
        "temperature": 1.0 if temperature is None else temperature if temperature >= GREEDY else 0.0,
        "top_p": number(body, "top_p", 0, 1, above=True),
        "top_k": integer(body, "top_k", 1),
        "seed": integer(body, "seed", 0, 2**63 - 1),
    }
    if sampling["seed"] is None:
        sampling["seed"] = secrets.randbits(63)
    options = typed(body, "stream_options", dict) or {}
    model = typed(body, "model", str)
    if model is None:
        raise ProtocolError(400, "model is missing: the base's name, or an adapter's", "model")
    return Order(
        model,
        messages(body) if chat else prompt(body),
        next((limit for limit in reversed(limits) if limit is not None), None if chat else MAX_TOKENS),
        sampling,
        stops(body),
        bool(typed(body, "stream", bool)),
        bool(typed(options, "include_usage", bool)),
    )


# ------------------------------------------------------------------------------------------------------------ the fields


def typed(body: dict[str, Any], name: str, kind: type) -> Any:
    """The value of a field, None where it is absent or null. Raises ProtocolError for another type."""
    value = body.get(name)
    if value is not None and type(value) is not kind:
        raise ProtocolError(400, f"{name} is {value!r}; expected a JSON {kind.__name__}", name)
    return value


def integer(body: dict[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    """A whole number in low … high."""
    value = typed(body, name, int)
    if value is not None and not (low <= value and (high is None or value <= high)):
        raise ProtocolError(
            400, f"{name} = {value}; expected at least {low}" + (f", at most {high}" * (high is not None)), name
        )
    return value


def number(body: dict[str, Any], name: str, low: float, high: float, above: bool = False) -> float | None:
    """A number in low … high; with `above`, low itself is out."""
    value = body.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not (low < value if above else low <= value) or not value <= high:
        raise ProtocolError(400, f"{name} = {value!r}; expected {low} {'<' if above else '≤'} {name} ≤ {high}", name)
    return float(value)


def stops(body: dict[str, Any]) -> tuple[str, ...]:
    """The strings that end an answer."""
    value = body.get("stop")
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MAX_STOPS or not all(isinstance(s, str) and s for s in found):
        raise ProtocolError(
            400, f"stop is {value!r}; expected a string or up to {MAX_STOPS} of them, none empty", "stop"
        )
    return tuple(found)


def prompt(body: dict[str, Any]) -> str | list[int]:
    """A completion's prompt: a text, or its tokens."""
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]  # a batch of one
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(token) is int for token in value)):
        return value
    raise ProtocolError(
        400, "prompt: expected one text, or a list of its tokens; several prompts are several requests", "prompt"
    )


def messages(body: dict[str, Any]) -> list[dict[str, str]]:
    """A chat's messages, the parts of a text put together."""
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise ProtocolError(400, "messages: expected a list of messages", "messages")
    found = []
    for i, message in enumerate(value):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise ProtocolError(400, f"messages[{i}]: expected a role, and a text as its content", "messages")
        found.append({"role": message["role"], "content": content})
    return found


# ----------------------------------------------------------------------------------------------------------- the answers


class Writer:
    """Tokens to text up to the first of the stop strings, which is not part of it; what may yet become one is held back."""

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int], stop: tuple[str, ...] = ()) -> None:
        self._stream, self._stop, self._held = TextStream(tokenizer, after), stop, ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that this token makes certain; `stopped` says whether it ended the answer."""
        text = self._held + self._stream.add(token)
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def end(self) -> str:
        """What was held back, when nothing more comes."""
        return "" if self.stopped else self._held + self._stream.end()


@dataclass
class Answer:
    """One request's answer in the protocol's words, whole or in chunks."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, finish_reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        """Not streamed."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._object("", [self._choice(said, finish_reason)]) | {"usage": usage}

    def chunk(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        """A piece of a stream."""
        said = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return self._object(".chunk", [self._choice(said, finish_reason)])

    def first(self) -> dict[str, Any]:
        """What a chat's stream begins with."""
        return self._object(".chunk", [self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def last(self, usage: dict[str, int]) -> dict[str, Any]:
        """What a stream ends with where the usage was asked for."""
        return self._object(".chunk", []) | {"usage": usage}

    def _choice(self, said: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}

    def _object(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """How many tokens were read and written."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
