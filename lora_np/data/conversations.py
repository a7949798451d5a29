"""Conversations as training data: read records from a JSONL file, and make batches whose loss counts only the answers.

Each line of the file is one record, in one of two forms:

    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}, …]}
    {"prompt": "…", "completion": "…"}

The first form is a conversation, which the model's chat template turns into text. The turns of the assistant count in the
loss, and so does the token that ends each turn, so the model learns to stop ("tiny" has no such token). All other turns do
not count. The second form is plain text without a template, as in TRL. The completion counts in the loss, and so does the
end-of-text token (`tokenizer.eos_token_id`, if there is one) that is added after it.

A batch is padded on the right and needs no attention mask, because a token sees only tokens to its left, which are never
padding. Predictions at padded positions do not count.
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

__all__ = [
    "ConversationBatches",
    "Example",
    "dataset",
    "dataset_names",
    "example",
    "first_questions",
    "heldout_batches",
    "read",
]

ASSETS = Path(__file__).parents[1] / "assets"  # the data sets in the package
ORDER_SEED = 0x73687566  # makes the random order of examples independent of other generators seeded with [seed, epoch]
ROLES = ("system", "user", "assistant")
Batch = tuple[np.ndarray, np.ndarray]  # tokens, targets


@dataclass(frozen=True, eq=False)
class Example:
    """One record as tokens, with a mask of the tokens that count in the loss.

    The tokens end with the last answer: later tokens would not affect the loss.

    Parameters
    ----------
    tokens : ndarray, shape (n,), int64
        Token ids.
    counts : ndarray, shape (n,), bool
        True for the tokens of answers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data.conversations import Example
    >>> e = Example(np.array([5, 6, 7]), np.array([False, True, True]))
    >>> e.tokens[e.counts].tolist()
    [6, 7]
    """

    tokens: np.ndarray
    counts: np.ndarray


# ------------------------------------------------------------------------------------------------------------- reading


def dataset(name: str | Path, split: Literal["train", "heldout"] = "train") -> Path:
    """Return the path of a data set.

    Parameters
    ----------
    name : str or Path
        A data set in the package ("lighthouse"), or the path of a JSONL file.
    split : {"train", "heldout"}
        The part of a data set in the package; ignored for a path.

    Returns
    -------
    Path
        A JSONL file.

    Raises
    ------
    FileNotFoundError
        If there is no such file. The message lists the data sets in the package.

    Examples
    --------
    >>> from lora_np.data import conversations
    >>> conversations.dataset("lighthouse").name
    'train.jsonl'
    """
    path = ASSETS / name / f"{split}.jsonl" if str(name) in dataset_names() else Path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no data set {str(name)!r}: there is no such file, and the package contains {dataset_names()}"
        )
    return path


def first_questions(name: str | Path, split: Literal["train", "heldout"] = "train") -> list[str]:
    """Return the first message of the user in each record of a file, in order.

    Parameters
    ----------
    name : str or Path
        A data set, as in `dataset`; all of its records must have "messages".
    split : {"train", "heldout"}
        The part of a data set in the package.

    Returns
    -------
    list of str
        One question per record.

    Examples
    --------
    >>> from lora_np.data import conversations
    >>> len(conversations.first_questions("lighthouse", "heldout"))
    30
    """
    records = [json.loads(line) for line in _lines(dataset(name, split)) if line.strip()]
    return [next(m["content"] for m in record["messages"] if m["role"] == "user") for record in records]


def dataset_names() -> list[str]:
    """Return the names of the data sets in the package.

    Returns
    -------
    list of str
        The names, sorted.

    Examples
    --------
    >>> from lora_np.data import conversations
    >>> conversations.dataset_names()
    ['lighthouse']
    """
    return sorted(path.parent.name for path in ASSETS.glob("*/train.jsonl"))


def read(
    name: str | Path,
    tokenizer: Tokenizer,
    max_length: int | None = None,
    split: Literal["train", "heldout"] = "train",
) -> list[Example]:
    """Read a JSONL file, one record per line, and turn each record into tokens. Blank lines are skipped.

    Parameters
    ----------
    name : str or Path
        A data set, as in `dataset`.
    tokenizer : Tokenizer
        The tokenizer of the model.
    max_length : int, optional
        Longer records are cut to their first `max_length` tokens. A record is left out if no token of an answer remains.
        One warning reports how many records were cut and left out.
    split : {"train", "heldout"}
        The part of a data set in the package.

    Returns
    -------
    list of Example
        The records in the order of the file.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If a record is invalid (the message names file and line), or no record remains.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np.data import conversations
    >>> examples = conversations.read("lighthouse", ln.load_tokenizer("tiny"), split="heldout")
    >>> len(examples), examples[0].tokens.dtype
    (30, dtype('int64'))
    """
    if max_length is not None and max_length < 2:
        raise ValueError(f"max_length = {max_length}; expected at least 2: one token to read and one to predict")
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
        raise ValueError(f"{path} is empty; expected one record per line, {MESSAGES} or {PROMPT}")
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
            what += f", {lost} of them left out because their answers begin later"
        if not kept:
            raise ValueError(f"{what}: no record remains. Give a larger max_length")
        warnings.warn(what, stacklevel=3)
    return kept


# --------------------------------------------------------------------------------- records and the tokens that count

MESSAGES = '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}'
PROMPT = '{"prompt": "…", "completion": "…"}'


def example(record: Any, tokenizer: Tokenizer) -> Example:
    """Turn one record into tokens, and mark the tokens of its answers.

    Parameters
    ----------
    record : dict
        {"messages": [{"role": …, "content": …}, …]} or {"prompt": …, "completion": …}.
    tokenizer : Tokenizer
        The tokenizer of the model.

    Returns
    -------
    Example
        Tokens, and a mask of the tokens that count in the loss.

    Raises
    ------
    ValueError
        If the record is invalid. The message says what is wrong.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np.data import conversations
    >>> tokenizer = ln.load_tokenizer("tiny")
    >>> e = conversations.example({"prompt": "2 + 2 =", "completion": " 4"}, tokenizer)
    >>> tokenizer.decode(e.tokens[e.counts])
    ' 4\\x00'
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"got a {type(record).__name__}; expected {MESSAGES} or {PROMPT}")
    if record.keys() == {"messages"}:
        found = _chat(record["messages"], tokenizer)
    elif record.keys() == {"prompt", "completion"}:
        found = _plain(record["prompt"], record["completion"], tokenizer)
    else:
        raise ValueError(f"the keys are {sorted(record)}; expected {MESSAGES} or {PROMPT}, and no other keys")
    if not found.counts[1:].any():
        raise ValueError("the answer has no tokens: the tokenizer or its chat template drops its text")
    return found


def _chat(messages: Any, tokenizer: Tokenizer) -> Example:
    """Turn a conversation into tokens. Tokens between the start and the end of an answer count in the loss.

    Text that the template writes after the end-of-turn token, such as a newline, does not count.
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
            f"messages[{i}]: the chat template changes the text before this answer, so the tokens of the answer cannot be "
            f"found: …{before[seen : seen + 60]!r} becomes …{after[seen : seen + 60]!r}"
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
            raise ValueError(f"messages[{i}]: the answer is empty; expected some text to learn")
    if messages[0]["role"] == "assistant":
        raise ValueError("messages[0] has the role 'assistant'; expected a message of the user first")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message has the role {messages[-1]['role']!r}; expected an answer of the assistant")


def _plain(prompt: Any, completion: Any, tokenizer: Tokenizer) -> Example:
    """Encode a prompt, with the token that begins a text if there is one, then its completion and the end-of-text token."""
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
    """Return the tokens that follow `ids`, the tokens of `before`, so that all together spell the text `after`.

    These are the last tokens of the whole text. If one token would span the boundary, the rest of the text is encoded
    separately, as when a model continues the prompt `ids`.
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
    """An endless sequence of batches of examples, in a new random order each epoch.

    `batches[i]` returns (tokens, targets), each of shape (batch_size, longest − 1) and dtype int64. targets[:, t] is the
    token after tokens[:, t] if it counts in the loss, else IGNORE_INDEX. Each epoch uses every example once; a batch can
    contain the end of one epoch and the beginning of the next. Batch i depends only on (seed, i), so a resumed run sees the
    same batches as an uninterrupted run.

    Parameters
    ----------
    examples : list of Example
        The records, as `read` returns them.
    batch_size : int
        Number of examples per batch.
    seed : int
        Seed of the random order.

    Raises
    ------
    ValueError
        If there are no examples or batch_size is below 1.
    IndexError
        If the index of a batch is negative.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np.data import conversations
    >>> record = {"prompt": "2 + 2 =", "completion": " 4"}
    >>> examples = [conversations.example(record, ln.load_tokenizer("tiny"))]
    >>> tokens, targets = conversations.ConversationBatches(examples, batch_size=2)[0]
    >>> tokens.shape, (targets[0] != ln.ops.IGNORE_INDEX).sum().item()
    ((2, 9), 3)
    """

    def __init__(self, examples: Sequence[Example], batch_size: int = 8, seed: int = 0) -> None:
        self.examples, self.batch_size, self.seed = _some(examples, batch_size), batch_size, seed

    def __repr__(self) -> str:
        return f"ConversationBatches({len(self.examples):,} examples, batch_size={self.batch_size}, seed={self.seed})"

    def __iter__(self) -> NoReturn:  # without this method Python would call __getitem__ forever
        raise TypeError(
            f"{self} is endless and not iterable: index it with a step, or use conversations.heldout_batches(examples)"
        )

    def __getitem__(self, i: int) -> Batch:
        if i < 0:
            raise IndexError(f"batch index {i}; expected 0 or more")
        numbers = range(i * self.batch_size, (i + 1) * self.batch_size)  # positions in the endless stream of examples
        places = [divmod(number, len(self.examples)) for number in numbers]  # (epoch, position in the epoch)
        order = {epoch: self._order(epoch) for epoch in {epoch for epoch, _ in places}}
        return _padded([self.examples[order[epoch][place]] for epoch, place in places])

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch, ORDER_SEED]).permutation(len(self.examples))

    @property
    def digest(self) -> str:
        """A hash of the examples, batch_size and seed. A checkpoint stores it, to recognise its data."""
        digest = hashlib.sha256(f"{self.batch_size} {self.seed}".encode())
        for e in self.examples:
            digest.update(f" {len(e.tokens)} ".encode() + e.tokens.tobytes() + e.counts.tobytes())
        return digest.hexdigest()[:12]


def heldout_batches(examples: Sequence[Example], batch_size: int = 8) -> list[Batch]:
    """Return batches for evaluation that contain every example once, from the shortest to the longest.

    Examples of similar length share a batch, so there is little padding.

    Parameters
    ----------
    examples : list of Example
        The records, as `read` returns them.
    batch_size : int
        Number of examples per batch. The last batch may have fewer.

    Returns
    -------
    list of (ndarray, ndarray)
        Tokens and targets, as in `ConversationBatches`.

    Raises
    ------
    ValueError
        If there are no examples or batch_size is below 1.

    Examples
    --------
    >>> import lora_np as ln
    >>> from lora_np.data import conversations
    >>> examples = conversations.read("lighthouse", ln.load_tokenizer("tiny"), split="heldout")
    >>> [len(tokens) for tokens, targets in conversations.heldout_batches(examples, batch_size=8)]
    [8, 8, 8, 6]
    """
    examples = sorted(_some(examples, batch_size), key=lambda e: len(e.tokens))
    return [_padded(examples[i : i + batch_size]) for i in range(0, len(examples), batch_size)]


def _some(examples: Sequence[Example], batch_size: int) -> Sequence[Example]:
    if batch_size < 1:
        raise ValueError(f"batch_size = {batch_size}; expected at least 1")
    if not examples:
        raise ValueError("got no examples; expected at least one")
    return examples


def _padded(examples: Sequence[Example]) -> Batch:
    """Return (tokens, targets), each (rows, longest − 1). The padding is token 0; it does not affect the loss."""
    longest = max(len(e.tokens) for e in examples)
    tokens = np.zeros((len(examples), longest - 1), np.int64)
    targets = np.full_like(tokens, IGNORE_INDEX)
    for row, e in enumerate(examples):
        n = len(e.tokens) - 1
        tokens[row, :n] = e.tokens[:-1]
        targets[row, :n] = np.where(e.counts, e.tokens, IGNORE_INDEX)[1:]
    return tokens, targets
