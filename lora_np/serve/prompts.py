"""How the engine reads prompts: a long prompt alone and in chunks, short prompts of similar length together in one batch."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..nn import BASE
from ..peft.mixed import AdapterRows
from ..transformer import KeyValueCache, Transformer
from ..transformer.generation import CHUNK, last_logits, pad_left, read_in_chunks
from .request import Request

# Number of prompt tokens per step. Further prompts wait, so that running requests get their next tokens. vLLM's name is
# max_num_batched_tokens.
PROMPT_TOKENS = 512
# A prompt of more than LONG_PROMPT tokens is read in several steps. A step takes SmolLM2 about a second on one core.
CHUNKS_PER_STEP = 2
LONG_PROMPT = CHUNKS_PER_STEP * CHUNK


@dataclass(eq=False)
class Reading:
    """A prompt that is read in chunks. Each `next(chunks)` computes one chunk; at the end `chunks` returns the logits."""

    request: Request
    past: KeyValueCache
    chunks: Generator[None, None, np.ndarray]


def begin_reading(model: Transformer, request: Request) -> Reading:
    """Return the Reading of a prompt that is read alone. No chunk is read yet."""
    past, adapter = KeyValueCache(model.config), None if request.adapter == BASE else request.peft_name
    each = None if request.prompt_logprobs is None else request.read_prompt_logits
    chunks = read_in_chunks(model, request.prompt[None], None, past, adapter, on_logits=each)
    return Reading(request, past, chunks)


def read_together(model: Transformer, requests: Sequence[Request]) -> tuple[KeyValueCache, np.ndarray]:
    """Read short prompts in one batch. Return the key/value cache and the logits (b, v) after each prompt."""
    tokens, mask = pad_left([request.prompt for request in requests])
    past, rows = KeyValueCache(model.config), AdapterRows([request.peft_name for request in requests])
    return past, last_logits(model, tokens, mask, past, rows, skip_padding=True)


def of_similar_length(requests: Iterable[Request]) -> list[list[Request]]:
    """Divide requests into groups. In a group no prompt is more than twice as long as another; at most half is padding.

    A request that records the log probabilities of its prompt is alone in its group.
    """
    groups: list[list[Request]] = []
    for request in requests:
        for group in groups:
            sizes = [each.prompt.size for each in (*group, request)]
            alone = request.prompt_logprobs is not None or group[0].prompt_logprobs is not None
            if not alone and max(sizes) <= 2 * min(sizes):
                group.append(request)
                break
        else:
            groups.append([request])
    return groups
