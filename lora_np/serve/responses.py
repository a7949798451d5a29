"""The bodies of responses, and the chunks of streams, in the form of OpenAI's API."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .logprobs import Spell, TokenLogprob, chat_logprobs, completion_logprobs


@dataclass(frozen=True)
class Piece:
    """New text of one choice. `logprobs` is None if the request did not ask for log probabilities."""

    index: int
    text: str
    finish_reason: str | None = None
    logprobs: Sequence[TokenLogprob] | None = None


@dataclass
class CompletionResponse:
    """Builds the response to one request, either one body or the chunks of a stream.

    `spell` returns the text of a token. If `include_usage` is True, the chunks of a stream have the field `usage`.
    """

    model: str
    chat: bool
    spell: Spell
    include_usage: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    offsets: Counter[int] = field(default_factory=Counter)  # of each choice: characters of its tokens so far

    def body(self, choices: Sequence[Piece], usage: dict[str, int]) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        found = []
        for piece in choices:
            content = {"message": {"role": "assistant", "content": piece.text}} if self.chat else {"text": piece.text}
            found.append(self._choice(piece, content))
        return self._object("", found) | {"usage": usage}

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """Return a chunk of a stream, with new text or with the finish reason."""
        content = {"delta": {"content": piece.text} if piece.text else {}} if self.chat else {"text": piece.text}
        return self._chunk([self._choice(piece, content)], None)

    def role_chunk(self, index: int) -> dict[str, Any]:
        """Return the first chunk of a choice in a chat's stream."""
        delta = {"delta": {"role": "assistant", "content": ""}}
        return self._chunk([self._choice(Piece(index, ""), delta)], None)

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """Return the last chunk of a stream, for a request with `include_usage`."""
        return self._chunk([], usage)

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None) -> dict[str, Any]:
        return self._object(".chunk", choices) | ({"usage": usage} if self.include_usage else {})

    def _choice(self, piece: Piece, content: dict[str, Any]) -> dict[str, Any]:
        logprobs: dict[str, Any] | None = None
        if piece.logprobs is not None and self.chat:
            logprobs = chat_logprobs(piece.logprobs, self.spell)
        elif piece.logprobs is not None:
            logprobs, self.offsets[piece.index] = completion_logprobs(
                piece.logprobs, self.spell, self.offsets[piece.index]
            )
        return {"index": piece.index, **content, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _object(self, suffix: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        kind = f"chat.completion{suffix}" if self.chat else "text_completion"
        name = f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the numbers of prompt tokens, generated tokens and all tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}
