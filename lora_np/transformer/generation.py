"""Text generation, one token per step.

A cache keeps the keys and values of earlier tokens, so each step computes only the new token of each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..backend import to_host
from ..nn import Context, Rows
from .cache import KeyValueCache
from .model import Transformer

# Number of prompt tokens per forward call. The layers' caches are freed after each chunk: a prompt of 2000 tokens takes
# 0.3 GB with SmolLM2 instead of 3.7 GB, in the same time.
CHUNK = 128
# Number of attention scores per head and chunk. After a long text, a chunk has fewer tokens, so that the time and the memory
# of a chunk stay bounded: 128 tokens after 2,000 tokens take as long as 32 tokens after 8,000 tokens.
CHUNK_SCORES = 2**18


@dataclass(frozen=True)
class Sampling:
    """Settings for choosing the next token from the logits z (v,).

    The penalties change the logits first. Then `temperature`, `top_k`, `top_p` and `min_p` apply, in this order, as in
    transformers.

    Parameters
    ----------
    temperature : float
        0 chooses the most likely token (greedy). Otherwise the token is drawn from softmax(z / temperature).
    top_k : int, optional
        Draw only from the k most likely tokens. Tokens with the same probability as the k-th token are kept too.
    top_p : float, optional
        Draw only from the smallest set of most likely tokens with total probability at least top_p (nucleus sampling,
        Holtzman et al. 2020). Tokens with the same probability as the last token of the set are kept too.
    min_p : float, optional
        Draw only from tokens with a probability of at least min_p times the largest probability (Nguyen et al. 2024).
    repetition_penalty : float
        Divide the positive logits of the tokens in the prompt and in the answer by this number, and multiply the
        negative logits by this number (Keskar et al. 2019). The value 1 changes nothing.
    presence_penalty : float
        Subtract this number from the logits of the tokens in the answer.
    frequency_penalty : float
        Subtract this number from the logit of each token in the answer, once for each time that the token occurs.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature = {self.temperature}; expected 0 (greedy) or more")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k = {self.top_k}; expected at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p = {self.top_p}; expected 0 < top_p ≤ 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p = {self.min_p}; expected 0 ≤ min_p ≤ 1")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty = {self.repetition_penalty}; expected a finite number above 0")
        for name in ("presence_penalty", "frequency_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} = {getattr(self, name)}; expected a finite number")

    @property
    def has_penalties(self) -> bool:
        """True if a penalty changes the logits."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def penalised(self, logits: np.ndarray, prompt: Sequence[int] | np.ndarray, new: Sequence[int]) -> np.ndarray:
        """Return the logits (v,) after the penalties, in float64. `new` contains the tokens of the answer so far."""
        z = logits.astype(np.float64)
        seen = np.unique([*prompt, *new]).astype(np.int64)
        z[seen] = np.where(z[seen] < 0, z[seen] * self.repetition_penalty, z[seen] / self.repetition_penalty)
        answered, counts = np.unique(np.array(new, np.int64), return_counts=True)
        z[answered] -= self.presence_penalty + self.frequency_penalty * counts
        return z

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return the probabilities (v,) of the next token in float64, without penalties. Excluded tokens have probability 0."""
        z = logits.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < z.size:
            z[z < np.partition(z, -self.top_k)[-self.top_k]] = -np.inf
        p = np.exp(z - z.max())
        p /= p.sum()
        if self.top_p is not None:
            descending = np.sort(p)[::-1]
            before = np.cumsum(descending) - descending  # total probability of the more likely tokens
            p[p < descending[before < self.top_p][-1]] = 0  # comparing values is five times as fast as sorting the ids
            p /= p.sum()
        if self.min_p is not None:
            p[p < self.min_p * p.max()] = 0
            p /= p.sum()
        return p

    def next_token(
        self,
        logits: np.ndarray,
        rng: np.random.Generator,
        prompt: Sequence[int] | np.ndarray = (),
        new: Sequence[int] = (),
    ) -> int:
        """Return the id of the next token. The penalties use the tokens of the prompt and of the answer so far, `new`.

        Raises FloatingPointError if the largest logit is NaN or infinity.
        """
        if self.has_penalties:
            logits = self.penalised(logits, prompt, new)
        best = int(logits.argmax())  # the first NaN, if a logit is NaN
        if not math.isfinite(logits[best]):
            raise FloatingPointError(
                f"the largest logit of the next token is {logits[best]}; expected a finite number. Weights of the model or of "
                f"its adapter are not finite, or are too large for {logits.dtype}. Check the files and the training"
            )
        if self.temperature == 0:
            return best
        return int(rng.choice(logits.size, p=self.probabilities(logits)))


class Adapted(Protocol):
    """The interface that `generate` needs from a model with adapters. PeftModel implements this interface."""

    @property
    def model(self) -> Transformer: ...

    def adapter_rows(self, adapter_names: Sequence[str] | None, rows: int, /) -> str | Rows | None: ...

    def new_cache(self, rows: int, adapter: Any, /) -> KeyValueCache: ...  # adapter: the value returned by adapter_rows


def generate(
    model: Transformer | Adapted,
    prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray,
    max_new_tokens: int = 40,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    stop_tokens: Collection[int] = (),
    seed: int = 0,
    adapter_names: Sequence[str] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """Continue each prompt by up to `max_new_tokens` tokens, all prompts in one batch.

    Parameters
    ----------
    model : Transformer or PeftModel
        A PeftModel generates with its active adapter.
    prompts : list of list of int
        The token ids of each prompt, from `tokenizer.encode(text)`, or from `data.encode(text)` for the model "tiny".
        The prompts can have different lengths.
    max_new_tokens : int
        Largest number of new tokens per prompt.
    temperature : float
        0 chooses the most likely token (greedy). Otherwise the token is drawn from softmax(logits / temperature).
    top_k : int, optional
        Draw only from the k most likely tokens.
    top_p : float, optional
        Draw only from the smallest set of most likely tokens with total probability at least top_p (nucleus sampling,
        Holtzman et al. 2020).
    min_p : float, optional
        Draw only from tokens with a probability of at least min_p times the largest probability.
    repetition_penalty : float
        Divide the positive logits of the tokens in the prompt and in the answer by this number, and multiply the
        negative logits by this number. The value 1 changes nothing.
    presence_penalty : float
        Subtract this number from the logits of the tokens in the answer.
    frequency_penalty : float
        Subtract this number from the logit of each token in the answer, once for each time that the token occurs.
    stop_tokens : collection of int
        A row ends when the model generates one of these tokens, for example one of `tokenizer.stop_token_ids`. The stop
        token is not part of the result.
    seed : int
        Row i has its own random generator with the seed [seed, i], so the other rows of the batch do not affect row i.
    adapter_names : list of str, optional
        The adapter of each row, for a mixed batch with a PeftModel. "__base__" selects the base model.
    on_token : callable, optional
        A function for streaming: `on_token(row, token)` is called as soon as a new token is known.

    Returns
    -------
    list of list of int
        The new tokens of each prompt.

    Raises
    ------
    ValueError
        If there are no prompts, if a prompt is empty, if ids are out of range, if the text would be too long for the
        model, or if an adapter does not exist.
    FloatingPointError
        If the largest logit of a next token is NaN or infinity.

    Examples
    --------
    >>> import lora_np as ln
    >>> model = ln.load_model("tiny", device="numpy")
    >>> new = ln.generate(model, [ln.data.encode("The ")], max_new_tokens=8)
    >>> ln.data.decode(new[0])
    'contents'
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {max_new_tokens}; expected at least 1")
    if isinstance(prompts, str) or not len(prompts) or not all(np.ndim(prompt) for prompt in prompts):
        raise ValueError(
            f"prompts is {prompts!r:.60}; expected a list with the token ids of each prompt. Encode text with a tokenizer "
            "first, and write [prompt] for a single prompt"
        )
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty)
    transformer, adapter = _unwrap(model, adapter_names, len(prompts))
    tokens, mask = pad_left(prompts)
    if adapter is None or isinstance(model, Transformer):
        past = KeyValueCache(transformer.config)
    else:
        past = model.new_cache(len(prompts), adapter)
    limit, prefix = transformer.config.max_position_embeddings, len(past)
    if prefix + tokens.shape[1] + max_new_tokens > limit:
        after = f" after a prefix of {prefix}" if prefix else ""
        raise ValueError(
            f"got a prompt of {tokens.shape[1]} tokens{after} and {max_new_tokens} new tokens; this model accepts {limit} in total"
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
            token = sampling.next_token(logits[row], rngs[row], prompts[row], new[row])
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
    skip_padding: bool = False,
) -> np.ndarray:
    """Read `tokens` (b, t) in chunks and extend the cache. Return the logits (b, v) of the last position, on the host."""
    chunks = read_in_chunks(model, tokens, mask, past, adapter, skip_padding)
    while True:
        try:
            next(chunks)
        except StopIteration as finished:
            return finished.value


def read_in_chunks(
    model: Transformer,
    tokens: np.ndarray,
    mask: np.ndarray | None,
    past: KeyValueCache,
    adapter: str | Rows | None,
    skip_padding: bool = False,
    on_logits: Callable[[np.ndarray], None] | None = None,
) -> Generator[None, None, np.ndarray]:
    """Read one chunk of `tokens` (b, t) per `next`, and extend the cache.

    The generator yields after each chunk except the last, so a server can process other requests between two chunks.
    After the last chunk the generator returns the logits (b, v) of the last position, on the host.

    `on_logits` is called with the logits (b, c, v) of each chunk, on the host. Without `on_logits`, only the logits of the
    last position are computed.

    With `skip_padding`, padding tokens are not counted in the positions of the other tokens. The option `skip_padding`
    changes the result only if a prefix precedes the padding. A model with learned position embeddings always skips
    padding.
    """
    skip_padding = skip_padding or not model.config.rotary_dim
    positions = None if mask is None or not skip_padding else np.maximum(mask.cumsum(axis=1) - 1, 0)
    start = 0
    while True:
        chunk = tokens[:, start : start + chunk_size(len(past))]
        start += chunk.shape[1]
        seen = len(past) + chunk.shape[1]
        context = Context(
            adapter=adapter,
            attention_mask=None if mask is None else mask[:, :seen],
            position_ids=None if positions is None else positions[:, len(past) : seen],
        )
        x = model.read(chunk, context, past)
        if on_logits is not None:
            on_logits(to_host(model.logits(x, context)))
        if start == tokens.shape[1]:
            return to_host(model.logits(x[:, -1], context))
        yield


def chunk_size(seen: int) -> int:
    """Return the number of tokens in a chunk that follows `seen` tokens."""
    return min(CHUNK, max(1, CHUNK_SCORES // max(seen, 1)))


def pad_left(prompts: Sequence[Sequence[int] | np.ndarray] | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the prompts (b, t), padded on the left, and a mask that is True for tokens (None if there is no padding).

    Attention depends only on differences of rotary positions. So a row may start in any column, if the mask excludes
    the padding. With a prefix or with learned positions, the result also depends on absolute positions: see
    `read_in_chunks`.
    """
    longest = max(len(prompt) for prompt in prompts)
    tokens, mask = np.zeros((len(prompts), longest), np.int64), np.zeros((len(prompts), longest), bool)
    for row, prompt in enumerate(prompts):
        if not len(prompt):
            raise ValueError(
                f"prompt {row} is empty; give it at least one token, such as the tokenizer's beginning-of-text token"
            )
        ids = np.asarray(prompt)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"prompt {row} has dtype {ids.dtype}; expected integer token ids")
        tokens[row, -len(prompt) :], mask[row, -len(prompt) :] = ids, True
    return tokens, None if mask.all() else mask


def _unwrap(
    model: Transformer | Adapted, adapter_names: Sequence[str] | None, rows: int
) -> tuple[Transformer, str | Rows | None]:
    """Return the Transformer, and the active adapter or the adapters of the rows."""
    if not isinstance(model, Transformer):
        return model.model, model.adapter_rows(adapter_names, rows)
    if adapter_names is not None:
        raise ValueError("adapter_names needs a PeftModel, got a Transformer; call get_peft_model first")
    return model, None
