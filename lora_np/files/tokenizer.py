"""Tokenizers turn text into token ids and back. ByteTokenizer has one token per byte; VocabularyTokenizer has a trained
vocabulary.

Both classes have the same methods and attributes, with the names that Hugging Face uses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from .arrays import write_atomically
from .huggingface import read_json
from .stop_tokens import GENERATION_CONFIG

# The ChatML format of a conversation. SmolLM2 and many other models were trained on it; "tiny" uses it too.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer:
    """Base class of the tokenizers, with the ids of the special tokens and the chat template.

    `load_tokenizer` returns the tokenizer of a model.

    Examples
    --------
    >>> import lora_np as ln
    >>> tokenizer = ln.load_tokenizer("tiny")
    >>> tokenizer
    ByteTokenizer(vocab_size=256, bos_token_id=0, eos_token_id=0, pad_token_id=0, a chat template)
    >>> ids = tokenizer.encode("LoRA")
    >>> ids.tolist(), tokenizer.decode(ids)
    ([76, 111, 82, 65], 'LoRA')
    """

    vocab_size: int
    bos_token_id: int | None = None  # begins a text
    eos_token_id: int | None = None  # ends a text
    pad_token_id: int | None = None
    more_stop_token_ids: Sequence[int] = ()  # further tokens that end a text, such as the end of a turn
    chat_template: str | None = None  # a Jinja template: messages → text
    chat_template_file: str | None = None  # the file that contains the template, for error messages

    def __repr__(self) -> str:
        ids = ", ".join(f"{which}_token_id={getattr(self, f'{which}_token_id')}" for which in ("bos", "eos", "pad"))
        template = "a" if self.chat_template else "no"
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, {ids}, {template} chat template)"

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a generated text: the eos token, and the tokens that the model's files name.

        Pass these ids to `generate` as `stop_tokens`.

        Returns
        -------
        tuple of int
            The ids. If the tokenizer has an eos token, its id comes first.
        """
        eos = () if self.eos_token_id is None else (self.eos_token_id,)
        return tuple(dict.fromkeys((*eos, *self.more_stop_token_ids)))

    def encode(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """Return the token ids of a text.

        Parameters
        ----------
        text : str
            The text. A special token in the text, such as "<|im_end|>", becomes one token.
        add_special_tokens : bool
            If True, add the tokens that begin and end a text. Some tokenizers never add tokens.

        Returns
        -------
        ndarray, shape (size,), int64
            Token ids.

        Raises
        ------
        TypeError
            If `text` is not a string.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes one string, got {type(text).__name__}")
        return np.array(self._encode(text, add_special_tokens), np.int64)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Return the text of token ids.

        Parameters
        ----------
        ids : iterable of int
            Token ids.
        skip_special_tokens : bool
            If True, leave out special tokens.

        Returns
        -------
        str
            The text. Bytes that are not valid UTF-8 become U+FFFD.

        Raises
        ------
        ValueError
            If an id is out of range.
        """
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"got token id {i}; expected 0 to {self.vocab_size - 1}")
        return self._decode(ids, skip_special_tokens)

    def convert_ids_to_tokens(self, i: int) -> str:
        """Return one token as it is written in the vocabulary.

        Parameters
        ----------
        i : int
            A token id.

        Returns
        -------
        str
            The token. A byte-level vocabulary writes some bytes as other characters, such as "Ġ" for a space.
        """
        raise NotImplementedError

    @overload
    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, tokenize: Literal[True] = True
    ) -> np.ndarray: ...

    @overload
    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, *, tokenize: Literal[False]
    ) -> str: ...

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, tokenize: bool = True
    ) -> np.ndarray | str:
        """Return a conversation in the chat format of the model.

        Parameters
        ----------
        messages : list of dict
            [{"role": "user", "content": "…"}, …]; roles are "system", "user" and "assistant".
        add_generation_prompt : bool
            If True, the conversation ends with the tokens that begin an answer. The default is True here, but False in
            transformers.
        tokenize : bool
            If True, return token ids; if False, return the text.

        Returns
        -------
        ndarray, shape (size,), int64, or str
            The conversation.

        Raises
        ------
        ValueError
            If there is no chat template, if a message is malformed, or if the template raises an error.
        """
        text, _ = self._render(messages, add_generation_prompt)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def render_answers(self, messages: Sequence[Mapping[str, str]]) -> tuple[str, list[tuple[int, int]]]:
        """Return a conversation as text, and the parts of the text that the chat template marks with `{% generation %}`.

        Parameters
        ----------
        messages : list of dict
            As in `apply_chat_template`.

        Returns
        -------
        text : str
            The conversation, as `apply_chat_template` returns it without a generation prompt.
        answers : list of (int, int)
            For each part, the index of its first character and the index after its last character. The list is empty if
            the template has no marks.

        Raises
        ------
        ValueError
            As `apply_chat_template` does.
        """
        return self._render(messages, add_generation_prompt=False)

    def _render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Run the template, as transformers does, with limits on work, memory and time, because a template can be hostile.

        As in transformers, keys with the value None are removed from each message, and the template gets only the
        special tokens that the tokenizer has.
        """
        if self.chat_template is None:
            raise ValueError(
                "this tokenizer has no chat template; use a model trained on conversations, or encode plain text"
            )
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(k), str) for k in ("role", "content")
            ):
                raise ValueError(f'message {i} is {message!r}; expected {{"role": "user", "content": "…"}}')
        if not messages:
            raise ValueError("got a conversation without messages; expected at least one message")
        from .chat_template import render_with_answers  # imports Jinja

        ids = {which: getattr(self, f"{which}_token_id") for which in ("bos", "eos", "pad")}
        tokens = {f"{which}_token": self.convert_ids_to_tokens(i) for which, i in ids.items() if i is not None}
        variables = {"add_generation_prompt": add_generation_prompt, "tools": None, "documents": None, **tokens}
        given = [{key: value for key, value in message.items() if value is not None} for message in messages]
        try:
            return render_with_answers(self.chat_template, given, **variables)
        except ValueError as error:
            origin = f" in {self.chat_template_file}" if self.chat_template_file else ""
            raise ValueError(f"the chat template{origin} raised an error: {error}") from None

    def _encode(self, text: str, add_special_tokens: bool) -> Sequence[int] | np.ndarray:
        raise NotImplementedError

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise NotImplementedError


class ByteTokenizer(Tokenizer):
    """A tokenizer with one token per byte of UTF-8.

    Byte 0 is the token that begins and ends a text, because byte 0 does not occur in ordinary text.

    Examples
    --------
    >>> from lora_np.files import ByteTokenizer
    >>> ByteTokenizer().encode("é").tolist()
    [195, 169]
    """

    vocab_size = 256
    bos_token_id = eos_token_id = pad_token_id = 0
    chat_template = CHATML

    def convert_ids_to_tokens(self, i: int) -> str:
        """Return the byte as a Latin-1 character.

        Parameters
        ----------
        i : int
            A byte, 0 to 255.

        Returns
        -------
        str
            One character.
        """
        return chr(i)

    def _encode(self, text: str, add_special_tokens: bool) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(i for i in ids if i or not skip_special_tokens).decode("utf-8", errors="replace")


class VocabularyTokenizer(Tokenizer):
    """A tokenizer with a trained vocabulary, run by the `tokenizers` package.

    `tokenizer_from_folder` and `tokenizer_from_gguf` read a tokenizer from files.

    Parameters
    ----------
    backend : tokenizers.Tokenizer
        The vocabulary, with the rules that split a text into tokens.
    special : dict of str to int
        Ids of the special tokens "bos", "eos" and "pad". If a key is missing or its id is None, the tokenizer does not
        have this token.
    chat_template : str or None
        A Jinja template that turns messages into text.

    Examples
    --------
    >>> from tokenizers import Tokenizer, models
    >>> from lora_np.files import VocabularyTokenizer
    >>> bpe = models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")])
    >>> VocabularyTokenizer(Tokenizer(bpe), {}, None).encode("abba").tolist()
    [2, 1, 0]
    """

    def __init__(self, backend: Any, special: Mapping[str, int | None], chat_template: str | None) -> None:
        self.backend = backend  # a tokenizers.Tokenizer
        self.vocab_size = backend.get_vocab_size()
        self.bos_token_id, self.eos_token_id = special.get("bos"), special.get("eos")
        self.pad_token_id = special.get("pad")
        self.chat_template = chat_template

    def convert_ids_to_tokens(self, i: int) -> str:
        """Return one token as it is written in the vocabulary.

        Parameters
        ----------
        i : int
            A token id.

        Returns
        -------
        str
            The token, for example "Ġthe" for the text " the".
        """
        return self.backend.id_to_token(i)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer of transformers can load.

        If the tokenizer has other stop tokens besides the eos token, all stop tokens are written to
        generation_config.json. The other settings in generation_config.json do not change.

        Parameters
        ----------
        folder : str or Path
            The folder to write to.
        """
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": self.chat_template}
        for which in ("bos", "eos", "pad"):
            if (i := getattr(self, f"{which}_token_id")) is not None:
                config[f"{which}_token"] = self.convert_ids_to_tokens(i)
        texts = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
        }
        if set(self.stop_token_ids) - {self.eos_token_id}:
            path = Path(folder) / GENERATION_CONFIG
            settings = read_json(path) if path.is_file() else {}
            texts[GENERATION_CONFIG] = json.dumps(settings | {"eos_token_id": [*self.stop_token_ids]}, indent=2)
        for name, text in texts.items():
            write_atomically(Path(folder) / name, partial(Path.write_text, data=text, encoding="utf-8", newline="\n"))

    def _encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        text.encode(
            "utf-8"
        )  # half a surrogate pair raises UnicodeEncodeError here; tokenizers would only say "must be str"
        # encode_batch releases Python's lock (GIL) and encode does not, so other threads can run while a long text is encoded
        return self.backend.encode_batch([text], add_special_tokens=add_special_tokens)[0].ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)
