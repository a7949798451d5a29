"""Text as byte tokens, and batches of windows from a corpus."""

from typing import NoReturn

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]  # tokens, targets

VOCAB_SIZE = 256


def encode(text: str) -> np.ndarray:
    """Return the UTF-8 bytes of a text as tokens.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    ndarray, shape (size,), int64
        One token per byte, each 0 to 255.

    Examples
    --------
    >>> from lora_np.data import encode
    >>> encode("LoRA").tolist()
    [76, 111, 82, 65]
    """
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


def decode(tokens: np.ndarray) -> str:
    """Return the text of byte tokens.

    Parameters
    ----------
    tokens : ndarray, shape (size,), integers 0 to 255
        One token per byte.

    Returns
    -------
    str
        The text. Bytes that are not valid UTF-8 become U+FFFD.

    Raises
    ------
    TypeError
        If `tokens` is not one-dimensional, or if its values are not integers.
    ValueError
        If a token is not between 0 and 255.

    Examples
    --------
    >>> from lora_np.data import decode
    >>> decode([76, 111, 82, 65])
    'LoRA'
    """
    return _bytes("tokens", tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class Batches:
    """An endless sequence of batches of random windows from a corpus.

    `batches[i]` returns the arrays `tokens` and `targets`, both of shape (batch_size, seq_len) and dtype int64.
    `targets[:, t]` contains the tokens that follow the tokens in `tokens[:, t]`. Batch i depends only on `seed` and i,
    so a resumed run draws the same batches as an uninterrupted run. `len(batches)` and `for` loops raise TypeError.

    Parameters
    ----------
    corpus : ndarray, shape (size,), integers
        At least seq_len + 1 token ids. The array is not copied.
    batch_size : int
        Number of windows per batch.
    seq_len : int
        Number of tokens per window.
    seed : int
        Seed of the random positions of the windows.

    Raises
    ------
    ValueError
        If the corpus is too short, or if a size is below 1.
    TypeError
        If the corpus is not one-dimensional, or if its values are not integers.
    IndexError
        If the index of a batch is negative.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import Batches
    >>> batches = Batches(np.arange(1000), batch_size=2, seq_len=4, seed=0)
    >>> tokens, targets = batches[7]
    >>> tokens.shape, (targets - tokens == 1).all().item()
    ((2, 4), True)
    >>> (batches[7][0] == tokens).all().item()
    True
    """

    def __init__(self, corpus: np.ndarray, batch_size: int = 16, seq_len: int = 128, seed: int = 0) -> None:
        self.corpus = _long_enough(corpus, batch_size, seq_len)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed

    def __repr__(self) -> str:
        sizes = f"batch_size={self.batch_size}, seq_len={self.seq_len}, seed={self.seed}"
        return f"Batches({len(self.corpus):,} tokens, {sizes})"

    def __iter__(self) -> NoReturn:  # without this method Python would call __getitem__ forever
        raise TypeError(
            f"{self} is endless and not iterable; write batches[step], or use data.heldout_batches(corpus, windows=256)"
        )

    def __getitem__(self, i: int) -> Batch:
        if i < 0:
            raise IndexError(f"batch index {i}; expected 0 or more")
        random = np.random.default_rng([self.seed, i])
        starts = random.integers(0, len(self.corpus) - self.seq_len, self.batch_size)
        return _windows(self.corpus, starts, self.seq_len)


def heldout_batches(
    corpus: np.ndarray, batch_size: int = 16, seq_len: int = 128, windows: int | None = 256
) -> list[Batch]:
    """Return fixed batches for evaluation, from evenly spaced windows of a corpus.

    Parameters
    ----------
    corpus : ndarray, shape (size,), integers
        At least seq_len + 1 token ids.
    batch_size : int
        Number of windows per batch. The last batch may contain fewer windows.
    seq_len : int
        Number of tokens per window.
    windows : int or None
        Number of windows. If `windows` is None or too large, the corpus is cut into as many windows as fit.

    Returns
    -------
    list of (ndarray, ndarray)
        Tokens and targets, each of shape (batch_size, seq_len) and dtype int64. Each position of the corpus
        is a target in at most one window.

    Raises
    ------
    ValueError
        If the corpus is too short, or if a size is below 1.
    TypeError
        If the corpus is not one-dimensional, or if its values are not integers.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import heldout_batches
    >>> [tokens.shape for tokens, targets in heldout_batches(np.arange(1000), 2, 100, windows=5)]
    [(2, 100), (2, 100), (1, 100)]
    """
    corpus = _long_enough(corpus, batch_size, seq_len)
    if windows is not None and windows < 1:
        raise ValueError(f"windows is {windows}; expected at least 1, or None for as many windows as fit")
    room = (len(corpus) - 1) // seq_len
    count = room if windows is None else min(windows, room)
    starts = np.arange(count) * (len(corpus) - 1 - seq_len) // max(count - 1, 1)
    return [_windows(corpus, starts[i : i + batch_size], seq_len) for i in range(0, count, batch_size)]


def _windows(corpus: np.ndarray, starts: np.ndarray, seq_len: int) -> Batch:
    window = corpus[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)  # (batch, seq_len + 1)
    return window[:, :-1], window[:, 1:]


def _long_enough(corpus: np.ndarray, batch_size: int, seq_len: int) -> np.ndarray:
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len)):
        if value < 1:
            raise ValueError(f"{name} is {value}; expected at least 1")
    corpus = _integers("corpus", corpus)
    if len(corpus) <= seq_len:
        raise ValueError(
            f"the corpus has {len(corpus)} tokens, but one window of seq_len={seq_len} needs {seq_len + 1}, because the targets "
            "are shifted by one; use a longer text or a shorter seq_len"
        )
    return corpus


def _integers(name: str, tokens: np.ndarray) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "ui"):
        raise TypeError(
            f"{name} is an array of {tokens.dtype} with shape {tokens.shape}; expected one dimension of integers, such as "
            "corpus(domain, split) or encode(text)"
        )
    return tokens


def _bytes(name: str, tokens: np.ndarray) -> np.ndarray:
    tokens = _integers(name, tokens)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= VOCAB_SIZE):
        raise ValueError(
            f"{name} has values from {tokens.min()} to {tokens.max()}; expected bytes, 0 to {VOCAB_SIZE - 1}"
        )
    return tokens.astype(np.int64)
