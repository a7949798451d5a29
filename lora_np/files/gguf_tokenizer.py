"""The two kinds of tokenizer in GGUF files: byte-level BPE (GPT-2, Llama 3, Qwen), and SentencePiece (Llama 2, Mistral, Phi-3,
Gemma).

Byte-level BPE splits a text into words, writes bytes as characters, and merges pairs of tokens. A merge that comes
earlier in the file is applied first. SentencePiece merges characters; a space is written as "▁", and a character that
is not in the vocabulary becomes its bytes. A file with a SentencePiece vocabulary contains no merges, but it contains a
score for each token. The pair whose merged token has the highest score is merged first.

Source: llama.cpp, src/llama-vocab.cpp; transformers, integrations/gguf/gguf_tokenizer_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..optional import extra

SPACE = "▁"
# The words of GPT-4's tokenizer. A word has at most three digits (Llama 3) or one digit (Qwen 2).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}"
    r"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"llama-bpe": WORDS.format(digits="{1,3}"), "qwen2": WORDS.format(digits="")}
PLAIN_SPLITS = ("gpt-2", "smollm")


def byte_level_bpe(tokens: list[str], merges: list[str], pre: str) -> Any:
    """Build a tokenizers.Tokenizer from the tokens and merges of a file. `pre` names the rule that splits a text into words.

    The rule of SmolLM2 splits off each digit: "  1" becomes "  " and "1". The program llama.cpp follows this rule
    (unicode_regex_split, "\\p{N}"). The library transformers ignores "smollm" in a Llama file, and splits "  1" into " " and
    " 1".
    """
    with extra("models", "a tokenizer"):
        from tokenizers import Regex, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

    if pre not in (*PLAIN_SPLITS, *SPLITS):
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}; only {sorted((*PLAIN_SPLITS, *SPLITS))} are supported")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    try:
        # Llama 3 keeps a word that is a token, even if no sequence of merges results in this token.
        backend = Backend(models.BPE(vocab=_vocabulary(tokens), merges=pairs, ignore_merges=pre == "llama-bpe"))
    except ValueError:
        raise
    except Exception as error:  # a merge that is not a pair, or has unknown tokens; the package raises plain Exceptions
        raise ValueError(f"tokenizer.ggml.merges: {error}") from None
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre in PLAIN_SPLITS)
    cut = pre_tokenizers.Digits(individual_digits=True)
    if pre in SPLITS:
        cut = pre_tokenizers.Split(Regex(SPLITS[pre]), behavior="isolated")
    backend.pre_tokenizer = words if pre == "gpt-2" else pre_tokenizers.Sequence([cut, words])
    backend.decoder = decoders.ByteLevel()
    return backend


def sentencepiece(tokens: list[str], scores: np.ndarray, architecture: str | None, prefix: bool) -> Any:
    """Build a tokenizers.Tokenizer from the tokens and scores of a file.

    If `prefix` is True, a text begins with an added space. Phi-3 adds the space also before a text that begins with a
    space. Gemma uses the order of the tokens instead of scores.
    """
    with extra("models", "a tokenizer"):
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, normalizers, pre_tokenizers

    gemma = architecture is not None and architecture.startswith("gemma")
    if gemma:  # the file stores a token of several spaces as spaces, not as "▁"
        tokens = [SPACE * len(token) if token.strip(" ") == "" and len(token) > 1 else token for token in tokens]
        scores = -np.arange(len(tokens), dtype=np.float64)
    if len(scores) != len(tokens):
        raise ValueError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    vocabulary = _vocabulary(tokens)
    unknown = "<unk>" if "<unk>" in vocabulary else None
    merges = _merges(vocabulary, dict(zip(tokens, scores.tolist(), strict=True)))
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unknown))
    replace = normalizers.Replace(" ", SPACE)
    if gemma:
        backend.normalizer = replace
    elif architecture == "phi3":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
    else:
        scheme = "first" if prefix else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix and not gemma:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens contains a token twice")
    return vocabulary


def _merges(vocabulary: Mapping[str, int], scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Return all pairs of tokens whose concatenation is a token, in the order in which they are merged."""
    found = []
    for token, score in scores.items():
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in vocabulary and right in vocabulary:
                order = -score, -len(left), -len(right), vocabulary[token], vocabulary[left]
                found.append((order, (left, right)))
    return [pair for _, pair in sorted(found)]
