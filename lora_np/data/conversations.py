"""Conversations as training data: read a file of records, and make batches. Only the answers count in the loss.

The formats of a file are described in formats.py, the tokens that count in the loss in records.py. A batch is padded on the
right. A padded batch needs no attention mask: a token attends only to tokens on its left, and padding is never on the
left of a token. Predictions at padded positions do not count in the loss.
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np

from ..files import Tokenizer
from ..ops import IGNORE_INDEX
from .batches import Batch
from .formats import MESSAGES, PROMPT, records, standard
from .records import Example, example, to_last_counted

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


# ------------------------------------------------------------------------------------------------------------- reading


def dataset(name: str | Path, split: Literal["train", "heldout"] = "train") -> Path:
    """Return the path of a data set.

    Parameters
    ----------
    name : str or Path
        A data set in the package ("lighthouse"), or the path of a file of records.
    split : {"train", "heldout"}
        The part of a data set in the package. The split is ignored if `name` is a path.

    Returns
    -------
    Path
        A file of records: JSONL, a JSON array or CSV.

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
    """Return the first user message of each record of a file, in the order of the records.

    Parameters
    ----------
    name : str or Path
        A data set, as in `dataset`; all records of the data set must contain "messages".
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
    chats = [standard(record)[0]["messages"] for _, record in records(dataset(name, split))]
    return [next(m["content"] for m in messages if m["role"] == "user") for messages in chats]


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
    """Read a file of records, and turn each record into tokens.

    The file is JSONL (one record per line), one JSON array, or CSV with the names of the columns in the first row. A record
    has the form of OpenAI ("messages"), of TRL ("prompt" and "completion"), of ShareGPT ("conversations") or of Alpaca
    ("instruction", "input", "output"). One warning names the ignored keys, and says how records of ShareGPT and Alpaca were
    read.

    Parameters
    ----------
    name : str or Path
        A data set, as in `dataset`.
    tokenizer : Tokenizer
        The tokenizer of the model.
    max_length : int, optional
        Longer records are cut to their first `max_length` tokens. A record is left out if no token of an answer remains.
        One warning reports how many records were cut, and how many were left out.
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
        If a record is invalid, or if no record remains. The message names the file, and the line of an invalid record.

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
    examples, forms, ignored = [], Counter[str](), dict[str, None]()  # a dict keeps the order of the keys
    for place, given in records(path):
        try:
            record, form, others = standard(given)
            examples.append(example(record, tokenizer))
        except ValueError as error:
            raise ValueError(f"{path}, {place}: {error}") from None
        forms[form] += 1
        ignored |= dict.fromkeys(others)
    if not examples:
        raise ValueError(f"{path} is empty; expected one record per line, {MESSAGES} or {PROMPT}")
    notes = [f"{count} of {len(examples)} records read as {form}" for form, count in forms.items() if form]
    notes += [f"ignored keys: {', '.join(ignored)}"] if ignored else []
    if notes:
        warnings.warn(f"{path}: {'; '.join(notes)}", stacklevel=2)
    return examples if max_length is None else _cut(examples, max_length, path)


def _cut(examples: list[Example], max_length: int, path: Path) -> list[Example]:
    cut = [to_last_counted(e.tokens[:max_length], e.counts[:max_length]) for e in examples]
    kept = [e for e in cut if len(e.tokens)]
    if longer := sum(len(e.tokens) > max_length for e in examples):
        what = f"{path}: {longer} of {len(cut)} records cut to max_length = {max_length} tokens"
        if lost := len(cut) - len(kept):
            what += f", {lost} of them left out because their answers begin later"
        if not kept:
            raise ValueError(f"{what}: no record remains. Give a larger max_length")
        warnings.warn(what, stacklevel=3)
    return kept


# ------------------------------------------------------------------------------------------------------------- batches


class ConversationBatches:
    """An endless sequence of batches of examples, in a new random order each epoch.

    `batches[i]` returns the arrays `tokens` and `targets`, both of shape (batch_size, longest − 1) and dtype int64.
    Here `longest` is the length of the longest example in the batch. The target of a token is the next token if the
    next token counts in the loss, else IGNORE_INDEX. Each epoch uses every example once; a batch can contain the end of
    one epoch and the beginning of the next. Batch i depends only on `seed` and i, so a resumed run gets the same
    batches as an uninterrupted run.

    Parameters
    ----------
    examples : list of Example
        The examples that `read` returns.
    batch_size : int
        Number of examples per batch.
    seed : int
        Seed of the random order.

    Raises
    ------
    ValueError
        If there are no examples, or if batch_size is below 1.
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
            f"{self} is endless and not iterable: write batches[step], or use conversations.heldout_batches(examples)"
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
        """A hash of the examples, batch_size and seed. A checkpoint stores this hash, to check the data of a resumed run."""
        digest = hashlib.sha256(f"{self.batch_size} {self.seed}".encode())
        for e in self.examples:
            digest.update(f" {len(e.tokens)} ".encode() + e.tokens.tobytes() + e.counts.tobytes())
        return digest.hexdigest()[:12]


def heldout_batches(examples: Sequence[Example], batch_size: int = 8) -> list[Batch]:
    """Return batches for evaluation. The batches contain every example once, from the shortest to the longest.

    Examples of similar length share a batch, so there is little padding.

    Parameters
    ----------
    examples : list of Example
        The examples that `read` returns.
    batch_size : int
        Number of examples per batch. The last batch may contain fewer examples.

    Returns
    -------
    list of (ndarray, ndarray)
        The tokens and the targets of each batch, in the form that `ConversationBatches` returns.

    Raises
    ------
    ValueError
        If there are no examples, or if batch_size is below 1.

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
    """Return the arrays `tokens` and `targets`, both of shape (rows, longest − 1).

    Token 0 fills the padding, which does not affect the loss.
    """
    longest = max(len(e.tokens) for e in examples)
    tokens = np.zeros((len(examples), longest - 1), np.int64)
    targets = np.full_like(tokens, IGNORE_INDEX)
    for row, e in enumerate(examples):
        n = len(e.tokens) - 1
        tokens[row, :n] = e.tokens[:-1]
        targets[row, :n] = np.where(e.counts, e.tokens, IGNORE_INDEX)[1:]
    return tokens, targets
