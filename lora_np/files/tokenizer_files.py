"""Read a tokenizer from tokenizer.json and the files in its folder, or from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..optional import extra
from .gguf_tokenizer import byte_level_bpe, sentencepiece
from .huggingface import read_json, read_text
from .stop_tokens import stop_tokens_from_folder, stop_tokens_from_gguf
from .tokenizer import VocabularyTokenizer

NAMES = {"bos": "bos", "eos": "eos", "pad": "padding"}  # special tokens: name at Hugging Face → name in GGUF
SENTENCEPIECE = "llama"  # the value of tokenizer.ggml.model
CONTROL, USER_DEFINED = 3, 4  # gguf.TokenType: a token that is not text, and a token that is never split


def tokenizer_from_folder(folder: Path) -> VocabularyTokenizer:
    """Read a tokenizer from tokenizer.json. The special tokens, the stop tokens and the chat template are read from the
    other files in the folder.

    Parameters
    ----------
    folder : Path
        The folder of a model.

    Returns
    -------
    VocabularyTokenizer
        The tokenizer.

    Raises
    ------
    FileNotFoundError
        If there is no tokenizer.json.
    ValueError
        If a file is damaged. The message starts with the path of the file.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from lora_np.files import tokenizer_from_folder, tokenizer_from_gguf
    >>> bpe = {"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": ["a", "b", "ab"], "ggml.merges": ["a b"]}
    >>> tokenizer = tokenizer_from_gguf({f"tokenizer.{key}": value for key, value in bpe.items()})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tokenizer.save_pretrained(folder)
    ...     again = tokenizer_from_folder(Path(folder))
    >>> again.encode("abba").tolist()
    [2, 1, 0]
    """
    with extra("models", "a tokenizer"):
        from tokenizers import Tokenizer as Backend

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        backend = Backend.from_str(read_text(path))
    except Exception as error:  # the tokenizers package raises plain Exceptions
        raise ValueError(f"{path}: {error!s:.300}") from None
    backend.no_truncation()  # a file may contain the settings of its training run
    backend.no_padding()
    config: dict[str, Any] = {}
    origin: dict[str, Path] = {}  # the file of each entry
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        if file.is_file():
            config |= (found := read_json(file))
            origin |= dict.fromkeys(found, file)

    def token_id(which: str) -> int | None:
        token = config.get(f"{which}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is None:
            return None
        try:
            i = backend.token_to_id(token)
        except (TypeError, UnicodeEncodeError):  # not a string, or half a surrogate pair
            i = None
        if i is None:
            where = origin[f"{which}_token"]
            raise ValueError(f"{where}: the {which}_token {token!r:.80} is not in the vocabulary of tokenizer.json")
        return i

    template = config.get("chat_template")
    if isinstance(template, list):  # several templates: [{"name": …, "template": …}, …]
        named = [each for each in template if isinstance(each, dict) and each.get("name") == "default"]
        template = named[0].get("template") if named else None
    file = origin.get("chat_template", folder / "tokenizer_config.json")
    if (folder / "chat_template.jinja").is_file():
        file = folder / "chat_template.jinja"
        template = read_text(file)
    if not isinstance(template, str | None):
        raise ValueError(f"{file}: chat_template is a {type(template).__name__}; expected a string")
    tokenizer = VocabularyTokenizer(backend, {which: token_id(which) for which in NAMES}, template)
    tokenizer.chat_template_file = str(file)
    tokenizer.more_stop_token_ids = stop_tokens_from_folder(folder, tokenizer.vocab_size)
    return tokenizer


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> VocabularyTokenizer:
    """Build a tokenizer from the metadata of a GGUF file: byte-level BPE, or SentencePiece.

    Parameters
    ----------
    metadata : dict
        The metadata of a GGUF file that `open_gguf` has opened.

    Returns
    -------
    VocabularyTokenizer
        The tokenizer.

    Raises
    ------
    ValueError
        If an entry is missing or invalid, or if the kind of tokenizer is not supported.

    Examples
    --------
    >>> from lora_np.files import tokenizer_from_gguf
    >>> bpe = {"ggml.model": "gpt2", "ggml.pre": "gpt-2", "ggml.tokens": ["a", "b", "ab"], "ggml.merges": ["a b"]}
    >>> tokenizer_from_gguf({f"tokenizer.{key}": value for key, value in bpe.items()}).encode("abba").tolist()
    [2, 1, 0]
    """
    tokens = _entry(metadata, "tokenizer.ggml.tokens", list)
    backend = _backend(tokens, metadata)
    special = {which: _entry(metadata, f"tokenizer.ggml.{key}_token_id", int, None) for which, key in NAMES.items()}
    for which, i in special.items():
        if i is not None and not 0 <= i < len(tokens):
            raise ValueError(f"the id of the {which} token is {i}; expected 0 to {len(tokens) - 1}")
    _add_special_tokens(backend, tokens, special, metadata)
    tokenizer = VocabularyTokenizer(backend, special, _entry(metadata, "tokenizer.chat_template", str, None))
    tokenizer.more_stop_token_ids = stop_tokens_from_gguf(metadata, tokens)
    return tokenizer


def _backend(tokens: list[str], metadata: Mapping[str, Any]) -> Any:
    """Build the tokenizers.Tokenizer that `tokenizer.ggml.model` names: "gpt2" or "llama"."""
    model = _entry(metadata, "tokenizer.ggml.model", str)
    if model == "gpt2":
        merges = _entry(metadata, "tokenizer.ggml.merges", list)
        return byte_level_bpe(tokens, merges, _entry(metadata, "tokenizer.ggml.pre", str))
    if model == SENTENCEPIECE:
        scores = _entry(metadata, "tokenizer.ggml.scores", np.ndarray)
        prefix = _entry(metadata, "tokenizer.ggml.add_space_prefix", bool, True)
        return sentencepiece(tokens, scores, _entry(metadata, "general.architecture", str, None), prefix)
    raise ValueError(
        f"tokenizer.ggml.model is {model!r}; only byte-level BPE, 'gpt2', and SentencePiece, 'llama', are supported"
    )


def _add_special_tokens(
    backend: Any, tokens: list[str], special: Mapping[str, int | None], metadata: Mapping[str, Any]
) -> None:
    """Register the tokens that are never split, and the tokens that begin and end each text."""
    from tokenizers import AddedToken, processors

    kinds = _entry(metadata, "tokenizer.ggml.token_type", np.ndarray, None)
    if kinds is None:
        kinds = np.array([CONTROL if i in special.values() else 0 for i in range(len(tokens))])
    if len(kinds) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(kinds)} entries for {len(tokens)} tokens")
    for kind, add in {CONTROL: backend.add_special_tokens, USER_DEFINED: backend.add_tokens}.items():
        add([AddedToken(tokens[i], normalized=False) for i in np.flatnonzero(kinds == kind)])
    # With a SentencePiece vocabulary, llama.cpp adds the bos token unless the file says otherwise.
    defaults = {"bos": metadata.get("tokenizer.ggml.model") == SENTENCEPIECE, "eos": False}
    added = [w for w, default in defaults.items() if _entry(metadata, f"tokenizer.ggml.add_{w}_token", bool, default)]
    ids = {which: i for which in added if (i := special[which]) is not None}
    around = {which: tokens[i] for which, i in ids.items()}
    single = [around.get("bos"), "$A", around.get("eos")]
    backend.post_processor = processors.TemplateProcessing(
        single=[each for each in single if each],
        special_tokens=[(token, ids[which]) for which, token in around.items()],
    )


def _entry(metadata: Mapping[str, Any], key: str, kind: type, default: Any = ...) -> Any:
    """Check the type of one entry and return the entry. If it is missing, return `default`; if there is no default,
    raise ValueError."""
    value = metadata.get(key, default)
    if value is ...:
        raise ValueError(f"{key} is missing from the metadata")
    if value is not default and not isinstance(value, kind):
        raise ValueError(f"{key} is a {type(value).__name__}; expected a {kind.__name__}")
    return value
