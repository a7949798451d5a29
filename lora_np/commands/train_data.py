"""Read the records of `python -m lora_np train`, warn about answers without a stop token, and describe the records."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter

import numpy as np

from ..data.conversations import Example
from ..files import Tokenizer
from .help_page import counted

MAX_LENGTH = 1024


def read_records(
    arguments: argparse.Namespace, tokenizer: Tokenizer, limit: int, prefix: int
) -> tuple[list[Example], list[Example]]:
    """Return the training records and the held-out records (a list, possibly empty).

    If `arguments.max_length` is None, the function sets it to the default. Warnings go to stderr, one per line.
    """
    from ..data.conversations import read

    room = limit - prefix
    if room < 2:
        raise ValueError(f"--virtual-tokens {prefix} leaves no room for text; this model's limit is {limit} tokens")
    if arguments.max_length is None:
        arguments.max_length = min(MAX_LENGTH, room)
    max_length = arguments.max_length
    if max_length > room:
        after = f" minus {counted(prefix, 'virtual token')}" if prefix else ""
        raise ValueError(
            f"--max-length {max_length}; expected at most {room}, because this model's limit is {limit} tokens{after}"
        )
    heldout = heldout_name(arguments)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = read(arguments.data, tokenizer, max_length)
        others = read(heldout, tokenizer, max_length, split="heldout") if heldout else []
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return examples, others


def without_stop(examples: list[Example], tokenizer: Tokenizer, max_length: int) -> str:
    """Return a warning if answers end with a token at which generation does not stop, else "".

    A model that is trained on such answers does not learn to stop. An answer that ends at `max_length` is not counted, because
    it was perhaps cut.
    """
    stop = tokenizer.stop_token_ids
    ends: Counter[int] = Counter()
    for e in examples:
        last = np.flatnonzero(e.counts & ~np.append(e.counts[1:], False))  # the last counted token of each answer
        ends.update(e.tokens[[i for i in last if i + 1 < max_length]].tolist())
    wrong = Counter({token: n for token, n in ends.items() if token not in stop})
    if not wrong:
        return ""

    def name(token: int) -> str:
        return f"{token} ({tokenizer.convert_ids_to_tokens(token)!r})"

    expected = f"stop tokens of this model: {', '.join(map(name, stop))}" if stop else "this model has no stop token"
    return (
        f"{wrong.total()} of {ends.total()} complete answers do not end with a stop token (the last token is mostly "
        f"{name(wrong.most_common(1)[0][0])}); {expected}. The model does not learn from these answers where to stop"
    )


def heldout_name(arguments: argparse.Namespace) -> str | None:
    """Return the file or the data set of the held-out records: --heldout, or --data if --data names a data set."""
    from ..data.conversations import dataset_names

    return arguments.heldout or (arguments.data if arguments.data in dataset_names() else None)


def described(examples: list[Example]) -> str:
    """Return the number of records, tokens and counted tokens as text."""
    tokens, answers = sum(len(e.tokens) for e in examples), sum(int(e.counts.sum()) for e in examples)
    return f"{counted(len(examples), 'record')}, {tokens:,} tokens, {answers:,} of them in answers"
