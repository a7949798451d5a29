"""Questions and answers to learn from: JSONL records, as batches whose loss is on the answers alone.

A line is one record, of either kind:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
    {"prompt": "…", "completion": "…"}

The first is a conversation, written as the model's chat template writes it. Every turn of the assistant counts, up to the
token that ends it, so that the model learns to stop (not so "tiny", whose bytes have none); what is said to the assistant is
read, and not learned. The second is plain text without a template, with an instruct model too, as in TRL: the completion
counts, and so does the end-of-text token (`tokenizer.eos_token_id`, where there is one) after it.

A batch is padded on the right and needs no attention mask: a token sees only those before it, which are never padding, and
what is predicted from padding does not count.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np

from ..files import Tokenizer
from ..ops import IGNORE_INDEX

ASSETS = Path(__file__).parents[1] / "assets"  # the data sets that come with the package
ORDER = 0x73687566  # a stream of its own: what else draws from [seed, epoch] must not draw the same
ROLES = ("system", "user", "assistant")
Batch = tuple[np.ndarray, np.ndarray]  # tokens, targets


@dataclass(frozen=True, eq=False)
class Example:
    """One record as tokens (n,) int64, and which of them count in the loss (n,) bool: the answers. The last one does.

    What follows the last answer is left out, since nothing that counts depends on it.
    """

    tokens: np.ndarray
    counts: np.ndarray


# ------------------------------------------------------------------------------------------------------------- reading


def dataset(name: str | Path, split: Literal["train", "heldout"] = "train") -> Path:
    """The file of a data set that comes with the package, "lighthouse"; any other name is the path of a file itself.

    Raises FileNotFoundError naming what exists.
    """
    path = ASSETS / name / f"{split}.jsonl" if str(name) in shipped() else Path(name)
    if not path.is_file():
        raise FileNotFoundError(f"no data {str(name)!r}: there is no such file, and the package has {shipped()}")
    return path


def first_questions(name: str | Path, split: Literal["train", "heldout"] = "train") -> list[str]:
    """What the user says first in each chat record of a file, in its order; `name` and `split` are as in `dataset`."""
    records = [json.loads(line) for line in _lines(dataset(name, split)) if line.strip()]
    return [next(m["content"] for m in record["messages"] if m["role"] == "user") for record in records]


def shipped() -> list[str]:
    """The names of the data sets that come with the package."""
    return sorted(path.parent.name for path in ASSETS.glob("*/train.jsonl"))


def read(
    name: str | Path,
    tokenizer: Tokenizer,
    max_length: int | None = None,
    split: Literal["train", "heldout"] = "train",
) -> list[Example]:
    """The records of a JSONL file, in its order; `name` and `split` are as in `dataset`. Blank lines are skipped.

    max_length: a record of more tokens is cut to its first `max_length`, and left out where no token of an answer remains;
        one warning says how many.

    Raises FileNotFoundError; ValueError naming file and line for what is no such record, or where none is left.
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length = {max_length}; expected at least 2, a token and the one that it predicts")
    path = dataset(name, split)
    examples = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                examples.append(example(json.loads(line.rstrip()), tokenizer))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from None
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not examples:
        raise ValueError(f"{path} is empty: expected a record a line, {MESSAGES} or {PROMPT}")
    return examples if max_length is None else _cut(examples, max_length, path)


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:  # some editors begin a file with a byte-order mark
            yield from file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}") from None


def _cut(examples: list[Example], max_length: int, path: Path) -> list[Example]:
    cut = [_to_the_last_counted(e.tokens[:max_length], e.counts[:max_length]) for e in examples]
    kept = [e for e in cut if len(e.tokens)]
    if longer := sum(len(e.tokens) > max_length for e in examples):
        what = f"{path}: {longer} of {len(cut)} records cut to max_length = {max_length} tokens"
        if lost := len(cut) - len(kept):
            what += f", {lost} of them left out, since their answers begin later"
        if not kept:
            raise ValueError(f"{what}: none remains. Give a larger max_length")
        warnings.warn(what, stacklevel=3)
    return kept


# ------------------------------------------------------------------------------------------- a record, and what counts

MESSAGES = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
PROMPT = '{"prompt": "…", "completion": "…"}'


def example(record: Any, tokenizer: Tokenizer) -> Example:
    """One record as tokens, with its answers marked. Raises ValueError saying what is wrong with it."""
    if not isinstance(record, Mapping):
        raise ValueError(f"a {type(record).__name__}; expected {MESSAGES} or {PROMPT}")
    if record.keys() == {"messages"}:
        found = _chat(record["messages"], tokenizer)
    elif record.keys() == {"prompt", "completion"}:
        found = _plain(record["prompt"], record["completion"], tokenizer)
    else:
        raise ValueError(f"the keys are {sorted(record)}; expected {MESSAGES} or {PROMPT}, and no others")
    if not found.counts[1:].any():
        raise ValueError("the tokenizer, or its chat template, has no token for the answer")
    return found


def _chat(messages: Any, tokenizer: Tokenizer) -> Example:
    """Render the conversation as far as each answer begins, and as far as it ends: what is between the two counts.

    After the end-of-turn token a template may write more, such as a newline. That is read, and not learned.
    """
    _check_messages(messages)
    ids: list[int] = []
    counts: list[bool] = []
    text = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        asked = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, tokenize=False)
        answered = tokenizer.apply_chat_template(messages[: i + 1], add_generation_prompt=False, tokenize=False)
        _check_grows(i, text, asked)
        _check_grows(i, asked, answered)
        question = _continued(tokenizer, ids, text, asked, special=False)
        answer = _continued(tokenizer, ids + question, asked, answered, special=False)
        eos = tokenizer.eos_token_id
        n = len(answer) - answer[::-1].index(eos) if eos in answer else len(answer)
        ids += question + answer
        counts += [False] * len(question) + [True] * n + [False] * (len(answer) - n)
        text = answered
    return _to_the_last_counted(ids, counts)


def _check_grows(i: int, before: str, after: str) -> None:
    if not after.startswith(before):
        parts = next((n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), len(after))
        seen = max(0, parts - 20)
        raise ValueError(
            f"messages[{i}]: the chat template rewrites what stands before this answer, so that nobody can say which "
            f"tokens are the answer's: …{before[seen : seen + 60]!r} becomes …{after[seen : seen + 60]!r}"
        )


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages is {messages!r:.80}; expected a list, as in {MESSAGES}")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.keys() != {"role", "content"}:
            raise ValueError(f'messages[{i}] is {message!r:.80}; expected {{"role": "user", "content": "…"}}')
        if message["role"] not in ROLES:
            raise ValueError(f"messages[{i}]: the role is {message['role']!r:.80}; expected {', '.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"messages[{i}]: the content is {message['content']!r:.80}; expected a string")
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"messages[{i}]: the answer is empty, so there is nothing to learn from it")
    if messages[0]["role"] == "assistant":
        raise ValueError("messages[0] is the assistant's; expected what it answers before it")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message is the {messages[-1]['role']}'s: the assistant's answer is missing")


def _plain(prompt: Any, completion: Any, tokenizer: Tokenizer) -> Example:
    """The prompt with what this model's texts begin with, if there is such a token; the completion and the end of text."""
    for name, value in (("prompt", prompt), ("completion", completion)):
        if not isinstance(value, str):
            raise ValueError(f"the {name} is {value!r:.80}; expected a string, as in {PROMPT}; for a chat, {MESSAGES}")
        if not value.strip():
            raise ValueError(f"the {name} is empty; expected {PROMPT}")
    ids = tokenizer.encode(prompt).tolist()
    answer = _continued(tokenizer, ids, prompt, prompt + completion, special=True)
    eos = tokenizer.eos_token_id
    if eos is not None and answer[-1:] != [eos]:
        answer.append(eos)
    return _to_the_last_counted(ids + answer, [False] * len(ids) + [True] * len(answer))


def _continued(tokenizer: Tokenizer, ids: list[int], before: str, after: str, special: bool) -> list[int]:
    """The tokens that take the text `before`, whose tokens are `ids`, on to `after`.

    They are those of the whole text, unless a token of it would span the seam (a newline before it and one after it, say).
    Then the rest is encoded by itself, as it is when a model continues the prompt `ids`.
    """
    whole = tokenizer.encode(after, add_special_tokens=special).tolist()
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    return tokenizer.encode(after[len(before) :], add_special_tokens=False).tolist()


def _to_the_last_counted(tokens: Sequence[int] | np.ndarray, counts: Sequence[bool] | np.ndarray) -> Example:
    n = np.flatnonzero(counts).max(initial=-1) + 1
    return Example(np.asarray(tokens, np.int64)[:n], np.asarray(counts, bool)[:n])


# ------------------------------------------------------------------------------------------------------------- batches


class ConversationBatches:
    """Random batches of examples, without end: `batches[i]` is (tokens, targets), each (batch_size, longest − 1) int64.

    targets[:, t] is the token after tokens[:, t] where that counts, and IGNORE_INDEX elsewhere. The examples come in a new
    random order each epoch, all of them once; where their number is no multiple of batch_size, a batch holds the end of
    an epoch and the beginning of the next. Batch i is a function of (seed, i) alone, so a run that resumes at step i sees
    what it would have seen. `digest` tells these batches from others: a checkpoint keeps it.

    Raises ValueError for no examples or a batch_size below 1, IndexError for i < 0.
    """

    def __init__(self, examples: Sequence[Example], batch_size: int = 8, seed: int = 0) -> None:
        self.examples, self.batch_size, self.seed = _some(examples, batch_size), batch_size, seed

    def __repr__(self) -> str:
        return f"ConversationBatches({len(self.examples):,} examples, batch_size={self.batch_size}, seed={self.seed})"

    def __iter__(self) -> NoReturn:  # without it Python would iterate through __getitem__, forever
        raise TypeError(
            f"{self} is endless and so not iterable: index it with a step, or use conversations.heldout_batches(examples)"
        )

    def __getitem__(self, i: int) -> Batch:
        if i < 0:
            raise IndexError(f"batch {i} of an endless sequence: expected an index from 0 up")
        numbers = range(i * self.batch_size, (i + 1) * self.batch_size)  # of the endless stream of examples
        places = [divmod(number, len(self.examples)) for number in numbers]  # its epoch, and its place in there
        order = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return _padded([self.examples[order[epoch][place]] for epoch, place in places])

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, ORDER]).permutation(len(self.examples))

    @property
    def digest(self) -> str:
        """The same for the same examples, batch_size and seed."""
        digest = hashlib.sha256(f"{self.batch_size} {self.seed}".encode())
        for e in self.examples:
            digest.update(f" {len(e.tokens)} ".encode() + e.tokens.tobytes() + e.counts.tobytes())
        return digest.hexdigest()[:12]


def heldout_batches(examples: Sequence[Example], batch_size: int = 8) -> list[Batch]:
    """All examples once, to evaluate on: a list of (tokens, targets) as in `ConversationBatches`, shorter ones first.

    Examples of a like length share a batch, so that little of it is padding. The last one may have fewer rows.
    Raises ValueError for no examples or a batch_size below 1.
    """
    examples = sorted(_some(examples, batch_size), key=lambda e: len(e.tokens))
    return [_padded(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]


def _some(examples: Sequence[Example], batch_size: int) -> Sequence[Example]:
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; expected at least 1")
    if not examples:
        raise ValueError("there are no examples to make batches of")
    return examples


def _padded(examples: Sequence[Example]) -> Batch:
    """(tokens, targets), each (rows, longest − 1). The padding is token 0, but any would do: nobody sees it."""
    longest = max(len(e.tokens) for e in examples)
    tokens = np.zeros((len(examples), longest - 1), np.int64)
    targets = np.full_like(tokens, IGNORE_INDEX)
    for row, e in enumerate(examples):
        n = len(e.tokens) - 1
        tokens[row, :n] = e.tokens[:-1]
        targets[row, :n] = np.where(e.counts, e.tokens, IGNORE_INDEX)[1:]
    return tokens, targets
