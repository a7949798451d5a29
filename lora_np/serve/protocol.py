"""Requests and responses of OpenAI's completions and chat completions API, as data.

`parse` checks the body of a request; `CompletionResponse` builds the body of a response. vLLM's additions for adapters are in
`http.py`. Sources: OpenAI's API reference (completions, chat completions, errors) and vLLM's OpenAI-compatible server.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

MAX_TOKENS = 16  # OpenAI's default for a completion; a chat completion may use the whole context length
MAX_STOPS = 4  # as in OpenAI's API
MAX_STOP_LENGTH = 256  # characters; neither OpenAI nor vLLM documents a limit
SHOWN, MAX_MESSAGE = 60, 1000  # characters of a value in an error message, and of the whole message
GREEDY = 1e-5  # a lower temperature counts as 0, as in vLLM: logits divided by it can overflow

# Fields of the API that this server does not support, each with the values that are accepted because they switch it off.
UNSUPPORTED: dict[str, tuple] = {
    **dict.fromkeys(("n", "best_of"), (1,)),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), (0,)),
    **dict.fromkeys(("logprobs", "echo", "parallel_tool_calls"), (False,)),
    **dict.fromkeys(("logit_bias",), ({},)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    **dict.fromkeys(("suffix", "top_logprobs", "modalities", "audio", "prediction", "reasoning_effort"), ()),
    "response_format": ({"type": "text"},),
}
JSON_TYPES = {str: "string", int: "integer", bool: "boolean", dict: "object", list: "array"}
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
SUPPORTED = {"model", "max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "stream", "stream_options"}


class ProtocolError(Exception):
    """An error that is sent as a response: the HTTP status, and a body with the fields of OpenAI's API."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        kinds = {404: "not_found_error", 429: "rate_limit_error"}
        self.status = status
        message, param = encodable(message[:MAX_MESSAGE]), None if param is None else encodable(param)
        kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def encodable(text: str) -> str:
    """Return `text` with each half of a surrogate pair written as an escape sequence, so that UTF-8 can encode it."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown(value: Any) -> str:
    """Return a short text for an error message: a value in a request can have millions of characters."""
    if isinstance(value, list | dict):
        return f"a JSON {JSON_TYPES[type(value)]} with {len(value)} entries"
    if isinstance(value, str):
        return repr(value[:SHOWN]) + "…" * (len(value) > SHOWN)
    return f"{value!r:.{SHOWN}}"


@dataclass(frozen=True)
class CompletionRequest:
    """A checked request for a completion or a chat completion.

    `prompt` is a text, a list of token ids, or the messages of a chat. `max_tokens` is None if only the context length
    limits the answer.
    """

    model: str
    prompt: str | list
    max_tokens: int | None
    sampling: dict[str, Any]
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def parse_json(raw: bytes) -> dict[str, Any]:
    """Parse the body of a request. Raises ProtocolError if the body is not a JSON object."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ProtocolError(400, f"the body is a JSON {JSON_TYPES.get(type(body), 'value')}; expected an object")
    return body


def parse(body: dict[str, Any], chat: bool) -> CompletionRequest:
    """Check all fields of a body. Raises ProtocolError with the name of a missing, wrong, unknown or unsupported field."""
    required = "messages" if chat else "prompt"
    limit_names = ("max_tokens", "max_completion_tokens") if chat else ("max_tokens",)
    supported = SUPPORTED | {required, *limit_names}
    for key, value in body.items():
        if key in UNSUPPORTED:
            if value is not None and not any(value == off and type(value) is type(off) for off in UNSUPPORTED[key]):
                raise ProtocolError(
                    400,
                    f"this server does not support {key} = {shown(value)}; leave it out",
                    key,
                    "unsupported_parameter",
                )
        elif key not in supported | IGNORED:
            names = ", ".join(sorted(supported))
            message = f"unknown field {shown(key)}; supported fields are {names}"
            raise ProtocolError(400, message, key[:SHOWN], "unknown_parameter")
    limits = [integer(body, name, 1) for name in limit_names]
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
        raise ProtocolError(
            400, "the field model is missing; expected the name of the base model or of an adapter", "model"
        )
    return CompletionRequest(
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
    """Return the value of a field, or None if the field is missing or null.

    Raises ProtocolError if the value is not of type `kind`.
    """
    value = body.get(name)
    if value is not None and type(value) is not kind:
        raise ProtocolError(400, f"{name} = {shown(value)}; expected a JSON {JSON_TYPES[kind]}", name)
    return value


def integer(body: dict[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    """Return the value of a field that must be an integer from `low` to `high`; None if the field is missing."""
    value = typed(body, name, int)
    if value is not None and not (low <= value and (high is None or value <= high)):
        raise ProtocolError(
            400, f"{name} = {shown(value)}; expected at least {low}" + (f", at most {high}" * (high is not None)), name
        )
    return value


def number(body: dict[str, Any], name: str, low: float, high: float, above: bool = False) -> float | None:
    """Return the value of a field that must be a number from `low` to `high`; None if the field is missing.

    If `above` is True, the value must be greater than `low`.
    """
    value = body.get(name)
    if value is None:
        return None
    if type(value) not in (int, float) or not (low < value if above else low <= value) or not value <= high:
        raise ProtocolError(
            400, f"{name} = {shown(value)}; expected {low} {'<' if above else '≤'} {name} ≤ {high}", name
        )
    return float(value)


def stops(body: dict[str, Any]) -> tuple[str, ...]:
    """Return the stop strings, which end an answer."""
    value = body.get("stop")
    found = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(found, list)
        or len(found) > MAX_STOPS
        or not all(isinstance(string, str) and 0 < len(string) <= MAX_STOP_LENGTH for string in found)
    ):
        expected = f"one string or up to {MAX_STOPS} strings, each of 1 to {MAX_STOP_LENGTH} characters"
        raise ProtocolError(400, f"stop = {shown(value)}; expected {expected}", "stop")
    return tuple(found)


def prompt(body: dict[str, Any]) -> str | list[int]:
    """Return the prompt of a completion: a text or token ids."""
    value = body.get("prompt")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]  # a batch of one
    if isinstance(value, str) or (isinstance(value, list) and value and all(type(token) is int for token in value)):
        return value
    raise ProtocolError(
        400, "prompt: expected one text or one list of token ids; send one request per prompt", "prompt"
    )


def messages(body: dict[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a chat; the text parts of a message are joined to one text."""
    value = body.get("messages")
    if not isinstance(value, list) or not value:
        raise ProtocolError(400, "messages: expected a list of at least one message", "messages")
    found = []
    for i, message in enumerate(value):
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise ProtocolError(400, f"messages[{i}]: expected a role and a text as content", "messages")
        found.append({"role": message["role"], "content": content})
    return found


# --------------------------------------------------------------------------------------------------------- the responses


@dataclass
class CompletionResponse:
    """Builds the response to one request, either one body or the chunks of a stream."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def body(self, text: str, finish_reason: str | None, usage: dict[str, int]) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return self._object("", [self._choice(content, finish_reason)]) | {"usage": usage}

    def chunk(self, text: str, finish_reason: str | None = None) -> dict[str, Any]:
        """Return a chunk of a stream, with new text or with the finish reason."""
        content = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        return self._object(".chunk", [self._choice(content, finish_reason)])

    def role_chunk(self) -> dict[str, Any]:
        """Return the first chunk of a chat's stream."""
        return self._object(".chunk", [self._choice({"delta": {"role": "assistant", "content": ""}}, None)])

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the last chunk of a stream, for a request with `include_usage`."""
        return self._object(".chunk", []) | {"usage": usage}

    def _choice(self, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        return {"index": 0, **content, "logprobs": None, "finish_reason": finish_reason}

    def _object(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the numbers of prompt tokens, generated tokens and all tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
