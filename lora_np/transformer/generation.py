"""Text from a model, a token at a time: each new token is computed alone, on keys and values kept from those before it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..backend import to_host
from ..nn import Context, Rows
from .cache import KeyValueCache
from .model import Transformer

# Tokens of a prompt that are read at once. What the layers keep for a backward is let go piece by piece: for 2000 tokens
# of SmolLM2 that takes 0.3 GB instead of 3.7, and no longer.
PIECE = 128


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits z (v,).

    temperature: 0 takes the likeliest (greedy); otherwise p = softmax(z / temperature), from which it is drawn.
    top_k: only the k likeliest may be drawn. top_p: only the fewest whose probabilities reach p together (nucleus
    sampling, Holtzman et al. 2020). Both at once: first top_k, then top_p, as Hugging Face does. What is as likely as the
    last one that stays, stays too.

    Raises ValueError for a setting out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature = {self.temperature}; expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k}; expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}; expected 0 < top_p ≤ 1")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """p (v,) that the next token is drawn from, in float64; what top_k and top_p cut off has 0."""
        z = logits.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < z.size:
            z[z < np.partition(z, -self.top_k)[-self.top_k]] = -np.inf
        p = np.exp(z - z.max())
        p /= p.sum()
        if self.top_p is not None:
            falling = np.sort(p)[::-1]
            before = np.cumsum(falling) - falling  # what the likelier ones reach without this one
            p[p < falling[before < self.top_p][-1]] = 0  # by value, as top_k: a fifth of the time of sorting their ids
            p /= p.sum()
        return p

    def choose(self, logits: np.ndarray, rng: np.random.Generator) -> int:
        """The next token's id."""
        if self.temperature == 0:
            return int(logits.argmax())
        return int(rng.choice(logits.size, p=self.probabilities(logits)))


class Adapted(Protocol):
    """What `generate` requires of a model with adapters: a PeftModel has it."""

    @property
    def model(self) -> Transformer: ...

    def adapter_rows(self, adapter_names: Sequence[str] | None, rows: int, /) -> str | Rows | None: ...

    def new_cache(self, rows: int, adapter: Any, /) -> KeyValueCache: ...  # adapter: what `adapter_rows` returned


def generate(
    model: Transformer | Adapted,
    prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray,
    max_new_tokens: int = 40,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_tokens: Collection[int] = (),
    seed: int = 0,
    adapter_names: Sequence[str] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` tokens, all prompts in one batch.

    Args:
        model: a Transformer, or a PeftModel with its active adapter.
        prompts: a list of token ids for each prompt, of any lengths (a tokenizer's encode, or data.encode for "tiny").
        temperature, top_k, top_p: see `Sampling`; the default is greedy.
        stop_tokens: a row ends when it draws one of these, which is not part of the result.
        seed: each row draws from a generator of its own, [seed, row], so that what a row says does not depend on the rest
            of the batch.
        adapter_names: for a PeftModel, the adapter of each row, "__base__" for none: a mixed batch.
        on_token: called as on_token(row, token) for each new token as soon as it is known: streaming.

    Returns the new tokens of each row. Raises ValueError for no prompt, an empty one, ids out of range, a length that the
    model cannot hold, or an adapter that is not there.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
    if isinstance(prompts, str) or not len(prompts) or not all(np.ndim(prompt) for prompt in prompts):
        raise ValueError(
            f"prompts is {prompts!r:.60}; expected a list with the token ids of each prompt: encode text with a tokenizer "
            "first, and write [prompt] for a single one"
        )
    sampling = Sampling(temperature, top_k, top_p)
    transformer, adapter = _unwrap(model, adapter_names, len(prompts))
    tokens, mask = _pad_left(prompts)
    if adapter is None or isinstance(model, Transformer):
        past = KeyValueCache(transformer.config)
    else:
        past = model.new_cache(len(prompts), adapter)
    limit, prefix = transformer.config.max_position_embeddings, len(past)
    if prefix + tokens.shape[1] + max_new_tokens > limit:
        after = f" after a prefix of {prefix}" if prefix else ""
        raise ValueError(
            f"a prompt of {tokens.shape[1]} tokens{after} and {max_new_tokens} new ones; this model takes {limit} in all"
        )
    if mask is not None:
        mask = np.pad(mask, ((0, 0), (prefix, 0)), constant_values=True)
    rngs = [np.random.default_rng([seed, row]) for row in range(len(prompts))]
    new: list[list[int]] = [[] for _ in prompts]
    running = set(range(len(prompts)))
    for _ in range(max_new_tokens):
        logits = last_logits(transformer, tokens, mask, past, adapter, prefix > 0)  # (b, v)
        tokens = np.zeros((len(prompts), 1), np.int64)
        for row in sorted(running):
            token = sampling.choose(logits[row], rngs[row])
            if token in stop_tokens:
                running.discard(row)
                continue
            tokens[row] = token
            new[row].append(token)
            if on_token is not None:
                on_token(row, token)
        if not running:
            break
        mask = None if mask is None else np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
    return new


def last_logits(
    model: Transformer,
    tokens: np.ndarray,
    mask: np.ndarray | None,
    past: KeyValueCache,
    adapter: str | Rows | None,
    count_places: bool = False,
) -> np.ndarray:
    """Read `tokens` (b, t) after the past, a piece at a time; the logits (b, v) of the last position only, on the host.

    count_places: a row's padding takes no place, which makes a difference where a prefix stands before it.
    """
    places = None if mask is None or not count_places else np.maximum(mask.cumsum(axis=1) - 1, 0)
    for start in range(0, tokens.shape[1], PIECE):
        piece = tokens[:, start : start + PIECE]
        seen = len(past) + piece.shape[1]
        context = Context(
            adapter=adapter,
            attention_mask=None if mask is None else mask[:, :seen],
            position_ids=None if places is None else places[:, len(past) : seen],
        )
        x = model.hidden(piece, context, past)[0]
    return to_host(model.logits(x[:, -1], context))


def _pad_left(prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Tokens (b, t) with the prompts' ends in one column, and where they are tokens and not padding (None: everywhere).

    Rotary positions are relative, so a row may start anywhere; the mask alone keeps the padding out (but see `last_logits`).
    """
    longest = max(len(prompt) for prompt in prompts)
    tokens, mask = np.zeros((len(prompts), longest), np.int64), np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(f"prompt {row} is empty: give it at least one token, such as the one that begins a text")
        ids = np.asarray(prompt)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"prompt {row} holds {ids.dtype}; expected integer token ids")
        tokens[row, -len(prompt) :], mask[row, -len(prompt) :] = ids, True
    return tokens, None if mask.all() else mask


def _unwrap(
    model: Transformer | Adapted, adapter_names: Sequence[str] | None, rows: int
) -> tuple[Transformer, str | Rows | None]:
    """The Transformer inside, and the adapter that is active on it or that of each row. Raises as `adapter_rows` does."""
    if not isinstance(model, Transformer):
        return model.model, model.adapter_rows(adapter_names, rows)
    if adapter_names is not None:
        raise ValueError("adapter_names for a Transformer without adapters: give its PeftModel")
    return model, None
