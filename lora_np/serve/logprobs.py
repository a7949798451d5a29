"""Log probabilities of tokens, and the two forms in which OpenAI's API returns them.

    log p(i) = z_i − log Σ_j exp(z_j)          z (v,): the logits of the model, before penalties and temperature

vLLM calls these numbers "raw logprobs". The stop token that ends an answer has an entry too, although it is not part of
the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Spell: TypeAlias = Callable[[int], str]  # the text of one token


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its log probability, and the most likely tokens at its position, the most likely token first.

    The first token of a prompt follows no token, so `logprob` is None, and `top` is empty.
    """

    token: int
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


def token_logprob(logits: np.ndarray, token: int, k: int) -> TokenLogprob:
    """Return the log probabilities of `token` and of the k most likely tokens, for logits (v,).

    Raises FloatingPointError if the log probability is not a finite number.
    """
    z = logits.astype(np.float64)
    z -= z.max()
    z -= math.log(np.exp(z).sum())
    if not math.isfinite(z[token]):
        raise FloatingPointError(
            f"the log probability of token {token} is {z[token]}; expected a finite number. Check the weights of the model "
            "and of its adapter"
        )
    k = min(k, z.size)
    top = np.argpartition(z, z.size - k)[z.size - k :].tolist() if k else []
    return TokenLogprob(
        int(token), float(z[token]), tuple((i, float(z[i])) for i in sorted(top, key=lambda i: (-z[i], i)))
    )


def completion_logprobs(entries: Sequence[TokenLogprob], spell: Spell, offset: int) -> tuple[dict[str, Any], int]:
    """Return `logprobs` of a completion, and the offset of the token that follows.

    `offset` is the number of characters before the first token. If two tokens have the same text, the more likely token
    is in `top_logprobs`.
    """
    tokens, offsets, tops = [spell(entry.token) for entry in entries], [], []
    for entry, text in zip(entries, tokens, strict=True):
        offsets.append(offset)
        offset += len(text)
        top: dict[str, float] | None = None
        if entry.logprob is not None:
            top = {}
            for token, logprob in (*entry.top, (entry.token, entry.logprob)):
                top.setdefault(spell(token), logprob)
        tops.append(top)
    values = [entry.logprob for entry in entries]
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets}, offset


def chat_logprobs(entries: Sequence[TokenLogprob], spell: Spell) -> dict[str, Any]:
    """Return `logprobs` of a chat completion. `bytes` is null for a token that is a part of a character."""

    def shown(token: int, logprob: float | None) -> dict[str, Any]:
        text = spell(token)
        encoded = None if text == part_of_a_character(token) else list(text.encode())
        return {"token": text, "logprob": logprob, "bytes": encoded}

    return {
        "content": [
            shown(entry.token, entry.logprob) | {"top_logprobs": [shown(*pair) for pair in entry.top]}
            for entry in entries
        ],
        "refusal": None,
    }


def part_of_a_character(token: int) -> str:
    """Return vLLM's name for a token that has no text of its own."""
    return f"token_id:{token}"
