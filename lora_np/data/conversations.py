"""Conversations as training data: read a file of records, and make batches. Only the answers count in the loss.

The module formats.py describes the formats of a file, and records.py describes the tokens that count in the loss. A
batch is padded on the right. A padded batch needs no attention mask, because a token attends only to tokens on its
left, and padding is never on the left of a token. Predictions at padded positions are not counted in the loss.
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
LENGTH_SEED = ORDER_SEED + 1  # makes the random order of batches of `group_by_length` independent of these generators
GROUPED = 16  # number of batches whose examples `group_by_length` sorts together


# ------------------------------------------------------------------------------------------------------------- reading


def dataset(name: str | Path, split: Literal["train", "heldout"] = "train") -> Path:
    """Return the path of a data set.

    Parameters
    ----------
    name : str or Path
        A data set in the package ("lighthouse"), or the path of a file of records.
    split : {"train", "heldout"}
        Whether to use the training records or the held-out records of a data set in the package. The split is ignored
        if `name` is a path.

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
        Whether to use the training records or the held-out records of a data set in the package.

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
        Whether to use the training records or the held-out records of a data set in the package.

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
            raise ValueError(f"{what}, so no record remains; give a larger max_length")
        warnings.warn(what, stacklevel=3)
    return kept


# ------------------------------------------------------------------------------------------------------------- batches


class ConversationBatches:
    """An endless sequence of batches of examples, in a new random order each epoch.

    `batches[i]` returns the arrays `tokens` and `targets`, both of shape (batch_size, longest − 1) and dtype int64.
    Here `longest` is the length of the longest example in the batch. The target of a token is the next token if the
    next token counts in the loss, else IGNORE_INDEX. Each epoch uses every example once; a batch can contain the end of
    one epoch and the beginning of the next. Batch i depends only on the arguments and i, so a resumed run gets the same
    batches as an uninterrupted run.

    Parameters
    ----------
    examples : list of Example
        The examples that `read` returns.
    batch_size : int
        Number of examples per batch.
    seed : int
        Seed of the random order.
    group_by_length : bool
        If True, examples of similar length share a batch, so there is little padding. The examples of 16 successive
        batches are sorted by length and divided into 16 new batches. The order of these 16 new batches is random.

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

    def __init__(
        self, examples: Sequence[Example], batch_size: int = 8, seed: int = 0, group_by_length: bool = False
    ) -> None:
        self.examples, self.batch_size, self.seed = _some(examples, batch_size), batch_size, seed
        self.group_by_length = group_by_length

    def __repr__(self) -> str:
        grouped = ", group_by_length=True" if self.group_by_length else ""
        return f"ConversationBatches({len(self.examples):,} examples, batch_size={self.batch_size}, seed={self.seed}{grouped})"

    def __iter__(self) -> NoReturn:  # without this method Python would call __getitem__ forever
        raise TypeError(
            f"{self} is endless and not iterable; write batches[step], or use conversations.heldout_batches(examples)"
        )

    def __getitem__(self, i: int) -> Batch:
        return _padded([self.examples[number] for number in self.numbers(i)])

    def numbers(self, i: int) -> list[int]:
        """Return the examples of one batch, as indices into `examples`.

        Parameters
        ----------
        i : int
            The index of the batch.

        Returns
        -------
        list of int
            One index per row of `batches[i]`.

        Raises
        ------
        IndexError
            If `i` is negative.

        Examples
        --------
        >>> import lora_np as ln
        >>> from lora_np.data import conversations
        >>> examples = conversations.read("lighthouse", ln.load_tokenizer("tiny"))
        >>> batches = conversations.ConversationBatches(examples, batch_size=4, group_by_length=True)
        >>> [len(examples[number].tokens) for number in batches.numbers(0)]
        [249, 256, 261, 265]
        """
        if i < 0:
            raise IndexError(f"batch index {i}; expected 0 or more")
        if not self.group_by_length:
            return self._stretch(i * self.batch_size, self.batch_size)
        group, place = divmod(i, GROUPED)
        together = self._stretch(group * GROUPED * self.batch_size, GROUPED * self.batch_size)
        together.sort(
            key=lambda number: len(self.examples[number].tokens)
        )  # stable: equal lengths stay in random order
        first = self.batch_size * int(self._permutation(group, GROUPED, LENGTH_SEED)[place])
        return together[first : first + self.batch_size]

    def _stretch(self, start: int, size: int) -> list[int]:
        """Return `size` successive examples of the endless stream of epochs, each epoch in its own random order."""
        places = [divmod(position, len(self.examples)) for position in range(start, start + size)]  # epoch, place in it
        order = {
            epoch: self._permutation(epoch, len(self.examples), ORDER_SEED) for epoch in {epoch for epoch, _ in places}
        }
        return [int(order[epoch][place]) for epoch, place in places]

    def _permutation(self, part: int, size: int, purpose: int) -> np.ndarray:
        return np.random.default_rng([self.seed, part, purpose]).permutation(size)

    @property
    def digest(self) -> str:
        """A hash of the examples and of all arguments. A checkpoint stores this hash, to check the data of a resumed run."""
        grouped = " group_by_length" if self.group_by_length else ""
        digest = hashlib.sha256(f"{self.batch_size} {self.seed}{grouped}".encode())
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
