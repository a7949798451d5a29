"""The tokens that end a text, in addition to the tokenizer's eos token. Many models end an answer with a token other
than eos.

    Hugging Face folder    eos_token_id in generation_config.json and in config.json: a token id, a list of ids, or null
    GGUF file              tokenizer.ggml.eot_token_id (end of a turn) and tokenizer.ggml.eom_token_id (end of a message)

`Tokenizer.stop_token_ids` combines these tokens with the eos token. Generation, the server and training use this property.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .huggingface import read_json

GENERATION_CONFIG = "generation_config.json"
# A GGUF file without an eot_token_id may still contain the token. llama.cpp looks for these texts (llama-vocab.cpp).
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "_<EOT>")


def stop_tokens_from_folder(folder: Path, vocab_size: int) -> tuple[int, ...]:
    """Return the values of eos_token_id in generation_config.json and config.json. Missing files are skipped.

    An id that is too large for the tokenizer's vocabulary and for the model's vocab_size is left out with a warning,
    because no text can end with this id. Raises ValueError with the path of the file if a value is not a token id, a
    list of token ids, or null.
    """
    found: list[int] = []
    size = vocab_size
    for path in (folder / "config.json", folder / GENERATION_CONFIG):
        settings = read_json(path) if path.is_file() else {}
        value = settings.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(type(i) is int and i >= 0 for i in ids):
            raise ValueError(
                f"{path}: eos_token_id is {value!r:.80}; expected a token id, a list of token ids, or null"
            )
        if type(models_size := settings.get("vocab_size")) is int:
            size = max(size, models_size)
        if unknown := sorted({i for i in ids if i >= size}):
            warnings.warn(
                f"{path}: eos_token_id {unknown[:4]!r:.80} is ignored; expected token ids below {size}, the size of the "
                "vocabulary",
                stacklevel=4,
            )
        found += [i for i in ids if i < size]
    return tuple(dict.fromkeys(found))


def stop_tokens_from_gguf(metadata: Mapping[str, Any], tokens: list[str]) -> tuple[int, ...]:
    """Return the ids of the tokens that end a turn or a message. Raises ValueError if an id is invalid.

    If the metadata does not name the token that ends a turn, the token is found by its text.
    """
    found = []
    for which in ("eot", "eom"):
        key = f"tokenizer.ggml.{which}_token_id"
        if (i := metadata.get(key)) is None:
            continue
        if type(i) is not int or not 0 <= i < len(tokens):
            raise ValueError(f"{key} is {i!r:.80}; expected a token id, 0 to {len(tokens) - 1}")
        found.append(i)
    if "tokenizer.ggml.eot_token_id" not in metadata:
        found += [tokens.index(text) for text in END_OF_TURN if text in tokens][:1]
    return tuple(found)
