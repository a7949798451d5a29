"""A tokenizer from the files that came with its model: tokenizer.json and what stands beside it, or a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .huggingface import read_json
from .tokenizer import VocabularyTokenizer

NAMES = {"bos": "bos", "eos": "eos", "pad": "padding"}  # Hugging Face's word for a special token → GGUF's
CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType: a token that is no text, and one that is never cut


def tokenizer_from_folder(folder: Path) -> VocabularyTokenizer:
    """From tokenizer.json, with the special tokens and the chat template of the files beside it.

    Raises FileNotFoundError where there is no tokenizer.json, ValueError naming the file that is damaged.
    """
    from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        backend = Backend.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the package raises bare Exceptions
        raise ValueError(f"{path}: {error}") from None
    backend.no_truncation()  # a file may have kept the settings of the run that trained it
    backend.no_padding()
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        config |= read_json(folder / name) if (folder / name).is_file() else {}

    def token_id(which: str) -> int | None:
        token = config.get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and (not isinstance(token, str) or backend.token_to_id(token) is None):
            raise ValueError(f"{folder}: the {which}_token {token!r} is not in the vocabulary of tokenizer.json")
        return None if token is None else backend.token_to_id(token)

    template = config.get("chat_template")
    if isinstance(template, list):  # several, as {"name": …, "template": …}
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if not isinstance(template, str | None):
        raise ValueError(f"{folder / 'tokenizer_config.json'}: chat_template is no string")
    return VocabularyTokenizer(backend, {which: token_id(which) for which in NAMES}, template)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> VocabularyTokenizer:
    """Byte-level BPE, rebuilt from the tokens and merges in a GGUF file's metadata.

    Raises ValueError naming what is missing, or a kind of tokenizer that is not here.
    """
    tokens = _entry(metadata, "tokenizer.ggml.tokens", list)
    backend = _byte_level_bpe(tokens, metadata)
    special = {which: _entry(metadata, f"tokenizer.ggml.{key}_token_id", int, None) for which, key in NAMES.items()}
    for which, i in special.items():
        if i is not None and not 0 <= i < len(tokens):
            raise ValueError(f"the {which} token is {i}, and there are {len(tokens)} tokens")
    _add_special_tokens(backend, tokens, special, metadata)
    return VocabularyTokenizer(backend, special, _entry(metadata, "tokenizer.chat_template", str, None))


def _byte_level_bpe(tokens: list[str], metadata: Mapping[str, Any]) -> Any:
    """The tokenizers.Tokenizer: cut the text into words, spell their bytes as characters, merge pairs in the file's order.

    transformers does not read tokenizer.ggml.pre from a Llama's file, and so cuts "  1" into " " and " 1" for SmolLM2, whose
    vocabulary was trained without a token for a space and a digit. llama.cpp does as we do (unicode_regex_split, "\\p{N}").
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers

    if (model := _entry(metadata, "tokenizer.ggml.model", str)) != "gpt2":
        raise ValueError(f"tokenizer.ggml.model {model!r}; only byte-level BPE, 'gpt2', is rebuilt here")
    merges = [tuple(merge.split(" ")) for merge in _entry(metadata, "tokenizer.ggml.merges", list)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise ValueError("tokenizer.ggml.tokens holds a token twice")
    try:
        backend = Backend(models.BPE(vocab=vocabulary, merges=merges))
    except Exception as error:  # a merge that is no pair, or of tokens that are not there; the package raises bare ones
        raise ValueError(f"tokenizer.ggml.merges: {error}") from None
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)  # GPT-2's regular expression
    digits = pre_tokenizers.Digits(individual_digits=True)
    cuts = {"gpt-2": words, "smollm": pre_tokenizers.Sequence([digits, words])}
    if (pre := _entry(metadata, "tokenizer.ggml.pre", str)) not in cuts:
        raise ValueError(f"tokenizer.ggml.pre {pre!r}; only {sorted(cuts)} are here")
    backend.pre_tokenizer, backend.decoder = cuts[pre], decoders.ByteLevel()
    return backend


def _add_special_tokens(
    backend: Any, tokens: list[str], special: Mapping[str, int | None], metadata: Mapping[str, Any]
) -> None:
    """Tell it which tokens are never cut, and which go around each text."""
    from tokenizers import AddedToken, processors

    kinds = _entry(metadata, "tokenizer.ggml.token_type", np.ndarray, None)
    if kinds is None:
        kinds = np.array([CONTROL if i in special.values() else 0 for i in range(len(tokens))])
    if len(kinds) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")
    for kind, add in {CONTROL: backend.add_special_tokens, USER_DEFINED: backend.add_tokens}.items():
        add([AddedToken(tokens[i], normalized=False) for i in np.flatnonzero(kinds == kind)])
    added = [which for which in ("bos", "eos") if _entry(metadata, f"tokenizer.ggml.add_{which}_token", bool, False)]
    ids = {which: i for which in added if (i := special[which]) is not None}
    around = {which: tokens[i] for which, i in ids.items()}
    single = [around.get("bos"), "$A", around.get("eos")]
    backend.post_processor = processors.TemplateProcessing(
        single=[each for each in single if each],
        special_tokens=[(token, ids[which]) for which, token in around.items()],
    )


def _entry(metadata: Mapping[str, Any], key: str, kind: type, default: Any = ...) -> Any:
    """One entry, of the type it must have; `default` where there is none, or ValueError where that is not given."""
    value = metadata.get(key, default)
    if value is ...:
        raise ValueError(f"{key} is missing")
    if value is not default and not isinstance(value, kind):
        raise ValueError(f"{key} is a {type(value).__name__}; expected a {kind.__name__}")
    return value
