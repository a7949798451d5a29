"""The losses of models without parameters: how far counting bytes and pairs of bytes gets."""

import numpy as np

from .batches import VOCAB_SIZE, _bytes


def unigram_loss(train: np.ndarray, heldout: np.ndarray) -> float:
    """Return the loss on `heldout`, in nats a byte, of the frequencies of bytes in `train`.

    p(b) = (n_b + 1) / (n + 256): one is added to each count, so that no byte is impossible. Both are (size,) bytes.
    """
    train, heldout = _some_bytes("train", train, 1), _some_bytes("heldout", heldout, 1)
    counts = np.bincount(train, minlength=VOCAB_SIZE) + 1.0
    return float(-np.log(counts / counts.sum())[heldout].mean())


def bigram_loss(train: np.ndarray, heldout: np.ndarray) -> float:
    """Return the loss on `heldout`, in nats a byte, of the frequencies of pairs of bytes in `train`.

    p(b | a) = (n_ab + 1) / (n_a + 256), over the bytes of `heldout` that have one before them. Both are (size,) bytes.
    """
    train, heldout = _some_bytes("train", train, 2), _some_bytes("heldout", heldout, 2)
    pairs = VOCAB_SIZE * train[:-1] + train[1:]
    counts = np.bincount(pairs, minlength=VOCAB_SIZE**2).reshape(VOCAB_SIZE, VOCAB_SIZE) + 1.0  # [a, b]
    log_p = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(-log_p[heldout[:-1], heldout[1:]].mean())


def _some_bytes(name: str, tokens: np.ndarray, at_least: int) -> np.ndarray:
    tokens = _bytes(name, tokens)
    if len(tokens) < at_least:
        raise ValueError(f"{name} has {len(tokens)} bytes: expected at least {at_least}")
    return tokens
