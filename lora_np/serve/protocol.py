"""Requests of OpenAI's completions and chat completions API, as data.

`parse` checks the body of a request. `fields.py` lists the fields. vLLM's additions for adapters are in `http.py`. Sources:
OpenAI's API reference (completions, chat completions, errors) and vLLM's OpenAI-compatible server.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

from .fields import CHAT_FIELDS, COMPLETION_FIELDS, Field

MAX_TOKENS = 16  # OpenAI's default for a completion; a chat completion may use the whole context length
MAX_CHOICES = 128  # prompts times n; OpenAI's limit of n
MAX_TOP_LOGPROBS = 20  # as in OpenAI's API of chats and in vLLM
MAX_STOPS = 4  # as in OpenAI's API
MAX_STOP_LENGTH = 256  # characters; neither OpenAI nor vLLM documents a limit
SHOWN, MAX_MESSAGE = 60, 1000  # characters of a value in an error message, and of the whole message
REPETITION_PENALTY = 0.01, 100.0  # far beyond useful values, and no logit overflows
STREAM_OPTIONS = ("include_usage", "include_obfuscation")  # this server never obfuscates
UNSUPPORTED_PARTS = ("tool_calls", "function_call", "audio")  # of a message
GREEDY = 1e-5  # a lower temperature counts as 0, as in vLLM: logits divided by it can overflow

JSON_TYPES = {str: "string", int: "integer", bool: "boolean", dict: "object", list: "array"}


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
    """Return a short text for an error message, because a value in a request can have millions of characters."""
    if isinstance(value, list | dict):
        return f"a JSON {JSON_TYPES[type(value)]} with {len(value)} entries"
    if isinstance(value, str):
        return repr(value[:SHOWN]) + "…" * (len(value) > SHOWN)
    return f"{value!r:.{SHOWN}}"


@dataclass(frozen=True)
class CompletionRequest:
    """A checked request for completions or chat completions.

    A prompt is a text, a list of token ids, or the messages of a chat. `max_tokens` is None if only the context length
    limits the answer. `logprobs` is the number of most likely tokens per position, or None for no log probabilities.
    """

    model: str
    prompts: list[str | list]
    n: int
    max_tokens: int | None
    sampling: dict[str, Any]
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    logprobs: int | None
    echo: bool
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
    fields = CHAT_FIELDS if chat else COMPLETION_FIELDS
    for key, value in body.items():
        check_field(fields, key, value)
    if (model := typed(body, "model", str)) is None:
        raise ProtocolError(
            400, "the field model is missing; expected the name of the base model or of an adapter", "model"
        )
    prompts: list[str | list] = [messages(body)] if chat else prompts_of(body)
    echo = not chat and bool(typed(body, "echo", bool))
    stream = bool(typed(body, "stream", bool))
    return CompletionRequest(
        model,
        prompts,
        number_of_choices(body, len(prompts)),
        max_tokens(body, chat, echo),
        sampling(body),
        stops(body),
        stop_token_ids(body),
        bool(typed(body, "ignore_eos", bool)),
        chat_logprobs(body) if chat else integer(body, "logprobs", 0, MAX_TOP_LOGPROBS),
        echo,
        stream,
        include_usage(body, stream),
    )


def check_field(fields: dict[str, Field], key: str, value: Any) -> None:
    """Raise ProtocolError if a field is unknown, or if the server does not support its value."""
    if key not in fields:
        names = ", ".join(sorted(name for name, field in fields.items() if field.honoured))
        message = f"unknown field {shown(key)}; supported fields are {names}"
        raise ProtocolError(400, message, key[:SHOWN], "unknown_parameter")
    if not fields[key].accepts(value):
        message = f"this server does not support {key} = {shown(value)}; leave it out"
        raise ProtocolError(400, message, key, "unsupported_parameter")


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


def sampling(body: dict[str, Any]) -> dict[str, Any]:
    """Return the settings for choosing the next token, under the names of the arguments of `generate`."""
    temperature, top_k, seed = (
        number(body, "temperature", 0, 2),
        integer(body, "top_k", -1),
        integer(body, "seed", 0, 2**63 - 1),
    )
    penalties = {
        "repetition_penalty": number(body, "repetition_penalty", *REPETITION_PENALTY),
        "presence_penalty": number(body, "presence_penalty", -2, 2),
        "frequency_penalty": number(body, "frequency_penalty", -2, 2),
    }
    return {
        "temperature": 1.0 if temperature is None else temperature if temperature >= GREEDY else 0.0,
        "top_p": number(body, "top_p", 0, 1, above=True),
        "top_k": top_k if top_k is not None and top_k > 0 else None,  # 0 and -1 mean all tokens, as in vLLM
        "min_p": number(body, "min_p", 0, 1) or None,
        "seed": secrets.randbits(63) if seed is None else seed,
        **{name: value for name, value in penalties.items() if value is not None},
    }


def max_tokens(body: dict[str, Any], chat: bool, echo: bool) -> int | None:
    """Return the largest number of new tokens. A request with `echo` may ask for 0 new tokens, and so for the prompt alone."""
    limit = integer(body, "max_tokens", 0 if echo else 1)
    if not chat:
        return MAX_TOKENS if limit is None else limit
    newer = integer(body, "max_completion_tokens", 1)
    return limit if newer is None else newer


def number_of_choices(body: dict[str, Any], prompts: int) -> int:
    """Return n, the number of answers per prompt."""
    n = integer(body, "n", 1, MAX_CHOICES) or 1
    if n * prompts > MAX_CHOICES:
        message = (
            f"{prompts} prompts with n = {n} are {n * prompts} answers; expected at most {MAX_CHOICES} per request"
        )
        raise ProtocolError(400, message, "prompt" if n == 1 else "n")
    return n


def chat_logprobs(body: dict[str, Any]) -> int | None:
    """Return the number of most likely tokens per position in a chat completion, or None for no log probabilities."""
    wanted, top = typed(body, "logprobs", bool), integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise ProtocolError(400, f"top_logprobs = {top} needs logprobs = true", "top_logprobs")
    return (top or 0) if wanted else None


def include_usage(body: dict[str, Any], stream: bool) -> bool:
    """Return True if a stream must end with the numbers of tokens."""
    options = typed(body, "stream_options", dict)
    if options is None:
        return False
    if not stream:
        raise ProtocolError(400, "stream_options needs stream = true; leave stream_options out", "stream_options")
    for name in options:
        if name not in STREAM_OPTIONS:
            message = f"stream_options contains {shown(name)}; supported options are {', '.join(STREAM_OPTIONS)}"
            raise ProtocolError(400, message, "stream_options", "unknown_parameter")
    typed(options, "include_obfuscation", bool)
    return bool(typed(options, "include_usage", bool))


def stop_token_ids(body: dict[str, Any]) -> tuple[int, ...]:
    """Return the token ids that end an answer, in addition to the stop tokens of the model."""
    value = typed(body, "stop_token_ids", list) or []
    if not all(type(token) is int and token >= 0 for token in value):
        raise ProtocolError(400, f"stop_token_ids = {shown(value)}; expected a list of token ids", "stop_token_ids")
    return tuple(value)


def prompts_of(body: dict[str, Any]) -> list[str | list]:
    """Return the prompts of a completion. Each prompt is a text or a list of token ids."""
    value = body.get("prompt")
    found: list[Any] = value if isinstance(value, list) and value and isinstance(value[0], str | list) else [value]
    if all(isinstance(prompt, str) for prompt in found) or all(is_token_ids(prompt) for prompt in found):
        return found
    expected = "a text, a list of token ids, a list of texts, or a list of lists of token ids"
    raise ProtocolError(400, f"prompt = {shown(value)}; expected {expected}", "prompt")


def is_token_ids(value: Any) -> bool:
    """Return True if a JSON value is a list of at least one integer."""
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


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
        for name in UNSUPPORTED_PARTS:
            if message.get(name):
                text = f"this server does not support messages[{i}].{name}; leave it out"
                raise ProtocolError(400, text, "messages", "unsupported_parameter")
        found.append({"role": message["role"], "content": content})
    return found
