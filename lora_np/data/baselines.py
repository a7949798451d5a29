"""Baseline losses from counting bytes and pairs of bytes, to compare with the loss of a trained model."""

import numpy as np

from .batches import VOCAB_SIZE, _bytes


def unigram_loss(train: np.ndarray, heldout: np.ndarray) -> float:
    """Return the held-out loss of a model that predicts each byte from byte frequencies alone.

    The probability of byte b is p(b) = (n_b + 1) / (n + 256), where n_b is the number of bytes b in `train`, and n is
    the size of `train`.

    Parameters
    ----------
    train : ndarray, shape (size,), integers 0 to 255
        The bytes to count.
    heldout : ndarray, shape (size,), integers 0 to 255
        The bytes to predict.

    Returns
    -------
    float
        Mean negative log-likelihood in nats per byte.

    Raises
    ------
    TypeError
        If an array is not one-dimensional, or if its values are not integers.
    ValueError
        If an array is empty, or if a value is not between 0 and 255.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.data import encode, unigram_loss
    >>> round(unigram_loss(encode("abab" * 1000), encode("abab")), 2)
    0.75
    """
    train, heldout = _some_bytes("train", train, 1), _some_bytes("heldout", heldout, 1)
    counts = np.bincount(train, minlength=VOCAB_SIZE) + 1.0
    return float(-np.log(counts / counts.sum())[heldout].mean())


def bigram_loss(train: np.ndarray, heldout: np.ndarray) -> float:
    """Return the held-out loss of a model that predicts each byte from the byte before it.

    The probability of byte b after byte a is p(b | a) = (n_ab + 1) / (n_a + 256). Here n_ab is the number of pairs (a,
    b) in `train`, and n_a is the number of pairs that begin with a. The first byte of `heldout` is not predicted.

    Parameters
    ----------
    train : ndarray, shape (size,), integers 0 to 255
        The bytes to count; at least 2 bytes.
    heldout : ndarray, shape (size,), integers 0 to 255
        The bytes to predict; at least 2 bytes.

    Returns
    -------
    float
        Mean negative log-likelihood in nats per byte.

    Raises
    ------
    TypeError
        If an array is not one-dimensional, or if its values are not integers.
    ValueError
        If an array has fewer than 2 values, or if a value is not between 0 and 255.

    Examples
    --------
    >>> from lora_np.data import bigram_loss, encode
    >>> round(bigram_loss(encode("abab" * 1000), encode("abab")), 2)
    0.12
    """
    train, heldout = _some_bytes("train", train, 2), _some_bytes("heldout", heldout, 2)
    pairs = VOCAB_SIZE * train[:-1] + train[1:]
    counts = np.bincount(pairs, minlength=VOCAB_SIZE**2).reshape(VOCAB_SIZE, VOCAB_SIZE) + 1.0  # [a, b]
    log_p = np.log(counts / counts.sum(axis=1, keepdims=True))
    return float(-log_p[heldout[:-1], heldout[1:]].mean())


def _some_bytes(name: str, tokens: np.ndarray, at_least: int) -> np.ndarray:
    tokens = _bytes(name, tokens)
    if len(tokens) < at_least:
        raise ValueError(f"{name} has {len(tokens)} bytes; expected at least {at_least}")
    return tokens
