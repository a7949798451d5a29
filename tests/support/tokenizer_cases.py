"""Texts and conversations that tokenizers cut wrongly, and small tokenizers to cut them with."""

from __future__ import annotations

import argparse
import inspect
import json
from typing import Any

import numpy as np

TRICKY = [
    "",
    " ",
    "The capital of France is",
    " leading and trailing  ",
    "a  1",
    "  12 345,678.90\t1e-5",
    "runs   of    spaces\n\n\n\tand \t tabs \r\n",
    "def f(x):\n    return {'a': x**2}[\"a\"]  # it's we'll I'D\n",
    "naïve Ångström ﬁ ½ ٣ Ⅷ x²",
    "日本語と中文 текст עברית ไทย",
    "😀 👩‍👩‍👧 🇫🇷 e\u0301",
    "\u200b\ufeff\u00a0\u2028",
    "\x00\x7f\x1b[0m",
    "<|im_start|>user\nhi<|im_end|>",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " 1 + 1? "},
    {"role": "assistant", "content": "2"},
]


def byte_level_bpe(pre: str) -> Any:
    """A tokenizers.Tokenizer: byte-level BPE trained on a file of Python, with these special tokens."""
    import tokenizers

    words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = words if pre == "gpt-2" else tokenizers.pre_tokenizers.Sequence([digits, words])
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=SPECIAL,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = inspect.getsource(argparse) + "  12 3\n    x" * 50
    backend.train_from_iterator([text], trainer)
    return backend


def metadata_for(trained: tuple[str, Any], **changes: Any) -> dict[str, Any]:
    """What llama.cpp writes into a GGUF file for it; None leaves an entry out."""
    pre, backend = trained
    settings = json.loads(backend.to_str())
    vocabulary = sorted(settings["model"]["vocab"], key=settings["model"]["vocab"].get)
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": vocabulary,
        "token_type": np.array([3 if token in SPECIAL else 1 for token in vocabulary], np.int32),
        "merges": [" ".join(pair) for pair in settings["model"]["merges"]],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
        "add_bos_token": False,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
