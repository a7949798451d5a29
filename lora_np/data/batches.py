"""Text as tokens: a byte is a token, and a batch is windows of a corpus."""

from typing import NoReturn

import numpy as np

Batch = tuple[np.ndarray, np.ndarray]  # tokens, targets

VOCAB_SIZE = 256


def encode(text: str) -> np.ndarray:
    """Return the UTF-8 bytes of `text` as tokens: (size,) int64, each 0 to 255."""
    return np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64)


def decode(tokens: np.ndarray) -> str:
    """Return the text of byte tokens, (size,) integers from 0 to 255; bytes that are not UTF-8 become U+FFFD.

    Raises TypeError for an array that is not one dimension of integers, ValueError for tokens that are no bytes.
    """
    return _bytes("tokens", tokens).astype(np.uint8).tobytes().decode("utf-8", errors="replace")


class Batches:
    """Random windows of a corpus, without end: `batches[i]` is (tokens, targets), each (batch_size, seq_len) int64.

    targets[:, t] is the token after tokens[:, t]. Batch i depends on (seed, i) alone. A run that resumes at step i
    therefore draws the same batches as a run without a stop, and a checkpoint needs no random state. The batches have no
    end, so `len` and `for` are not supported: index with the step.

    corpus: (size,) integer tokens, at least seq_len + 1 of them; not copied.
    Raises ValueError for a shorter corpus or sizes below 1, TypeError if corpus is not an array of integers, IndexError for i < 0.
    """

    def __init__(self, corpus: np.ndarray, batch_size: int = 16, seq_len: int = 128, seed: int = 0) -> None:
        self.corpus = _long_enough(corpus, batch_size, seq_len)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed

    def __repr__(self) -> str:
        sizes = f"batch_size={self.batch_size}, seq_len={self.seq_len}, seed={self.seed}"
        return f"Batches({len(self.corpus):,} tokens, {sizes})"

    def __iter__(self) -> NoReturn:  # without it Python would iterate through __getitem__, forever
        raise TypeError(
            f"{self} is endless and so not iterable: index it with a step, or use data.heldout_batches(corpus, windows=256)"
        )

    def __getitem__(self, i: int) -> Batch:
        if i < 0:
            raise IndexError(f"batch {i} of an endless sequence: expected an index from 0 up")
        random = np.random.default_rng([self.seed, i])
        starts = random.integers(0, len(self.corpus) - self.seq_len, self.batch_size)
        return _windows(self.corpus, starts, self.seq_len)


def heldout_batches(
    corpus: np.ndarray, batch_size: int = 16, seq_len: int = 128, windows: int | None = 256
) -> list[Batch]:
    """Return fixed windows to evaluate on: a list of (tokens, targets), each (batch_size, seq_len) int64.

    The windows are evenly spaced over the corpus and no target is in two of them. There are `windows` of them. If the
    corpus has room for fewer, or `windows` is None, there are as many as fit. The last batch may have fewer rows.

    Raises ValueError for a corpus of fewer than seq_len + 1 tokens or sizes below 1, TypeError if it is not an
    array of integers.
    """
    corpus = _long_enough(corpus, batch_size, seq_len)
    if windows is not None and windows < 1:
        raise ValueError(f"windows is {windows}: expected at least 1, or None for as many as fit")
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
            raise ValueError(f"{name} is {value}: expected at least 1")
    corpus = _integers("corpus", corpus)
    if len(corpus) <= seq_len:
        raise ValueError(
            f"the corpus has {len(corpus)} tokens, and one window of seq_len={seq_len} needs {seq_len + 1}, since the "
            "targets are one step later: use a longer text or a shorter seq_len"
        )
    return corpus


def _integers(name: str, tokens: np.ndarray) -> np.ndarray:
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or (tokens.size and tokens.dtype.kind not in "ui"):
        raise TypeError(
            f"{name}: an array of {tokens.dtype} with shape {tokens.shape}, expected one dimension of integers, as "
            "corpus(domain, split) and encode(text) give"
        )
    return tokens


def _bytes(name: str, tokens: np.ndarray) -> np.ndarray:
    tokens = _integers(name, tokens)
    if tokens.size and (tokens.min() < 0 or tokens.max() >= VOCAB_SIZE):
        raise ValueError(f"{name}: from {tokens.min()} to {tokens.max()}, expected bytes, 0 to {VOCAB_SIZE - 1}")
    return tokens.astype(np.int64)
