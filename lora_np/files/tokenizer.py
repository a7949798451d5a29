"""Text to tokens and back: a small model's bytes, or a trained vocabulary. Both have the same few methods and attributes,
under Hugging Face's names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from .arrays import write_atomically

# What a conversation looks like to a model that has no format of its own; SmolLM2 and many others were trained on it.
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer:
    """What all tokenizers share: the ids of the tokens with a meaning of their own, or None, and the chat template."""

    vocab_size: int
    bos_token_id: int | None = None  # begins a text
    eos_token_id: int | None = None  # ends it: where generating stops
    pad_token_id: int | None = None
    chat_template: str | None = None  # a Jinja template: messages → text

    def __repr__(self) -> str:
        ids = ", ".join(f"{which}_token_id={getattr(self, f'{which}_token_id')}" for which in ("bos", "eos", "pad"))
        template = "a" if self.chat_template else "no"
        return f"{type(self).__name__}(vocab_size={self.vocab_size}, {ids}, {template} chat template)"

    def encode(self, text: str, add_special_tokens: bool = True) -> np.ndarray:
        """The tokens of `text`, (size,) int64. A special token that is spelt out in it is that token.

        With `add_special_tokens`, also those that this model's texts begin or end with, if there are any.
        Raises TypeError for what is no string.
        """
        if not isinstance(text, str):
            raise TypeError(f"encode takes one string, got {type(text).__name__}")
        return np.array(self._encode(text, add_special_tokens), np.int64)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens, (size,) integers; what is no UTF-8 becomes U+FFFD. Raises ValueError for an unknown id."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"there is no token {i}; expected 0 to {self.vocab_size - 1}")
        return self._decode(ids, skip_special_tokens)

    def convert_ids_to_tokens(self, i: int) -> str:
        """How the vocabulary spells the token `i`: a byte that is no ASCII letter stands in it as another character."""
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
        """A conversation as this model was trained to read it: tokens (size,) int64, or the text if not `tokenize`.

        messages: [{"role": "user", "content": "…"}, …]; roles are "system", "user" and "assistant".
        add_generation_prompt: end with what an answer begins with. (Here that is the default; transformers' is False.)
        Raises ValueError where there is no template, where a message is none, or with what the template objects to.
        """
        if self.chat_template is None:
            raise ValueError("this tokenizer has no chat template: the model was not trained on conversations")
        for i, message in enumerate(messages):
            if not isinstance(message, Mapping) or not all(
                isinstance(message.get(k), str) for k in ("role", "content")
            ):
                raise ValueError(f'message {i} is {message!r}; expected {{"role": "user", "content": "…"}}')
        if not messages:
            raise ValueError("a conversation without messages")
        text = self._render(self.chat_template, messages, add_generation_prompt)
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _render(self, template: str, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        """Run a template as transformers does: in Jinja's sandbox, for it came with a file from somewhere."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def raise_exception(message: str) -> None:
            raise ValueError(message)

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = raise_exception
        environment.filters["tojson"] = lambda x, **options: json.dumps(x, ensure_ascii=False, **options)
        tokens = {
            f"{which}_token": self._spelling(getattr(self, f"{which}_token_id")) for which in ("bos", "eos", "pad")
        }
        try:
            return environment.from_string(template).render(
                messages=messages, add_generation_prompt=add_generation_prompt, tools=None, documents=None, **tokens
            )
        except Exception as error:  # a template is a program that came with the model: it may raise anything
            raise ValueError(f"the chat template says: {error}") from None

    def _spelling(self, i: int | None) -> str:
        return "" if i is None else self.convert_ids_to_tokens(i)

    def _encode(self, text: str, add_special_tokens: bool) -> Sequence[int] | np.ndarray:
        raise NotImplementedError

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        raise NotImplementedError


class ByteTokenizer(Tokenizer):
    """A token is a byte of UTF-8, as in `lora_np.data.stdlib`; byte 0, which no text contains, ends a text and begins the next."""

    vocab_size = 256
    bos_token_id = eos_token_id = pad_token_id = 0
    chat_template = CHATML

    def convert_ids_to_tokens(self, i: int) -> str:
        """The byte as a character, Latin-1."""
        return chr(i)

    def _encode(self, text: str, add_special_tokens: bool) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return bytes(i for i in ids if i or not skip_special_tokens).decode("utf-8", errors="replace")


class VocabularyTokenizer(Tokenizer):
    """A trained vocabulary, run by the `tokenizers` package; `tokenizer_from_folder` and `tokenizer_from_gguf` make one.

    special: ids for "bos", "eos" and "pad", those there are.
    """

    def __init__(self, backend: Any, special: Mapping[str, int | None], chat_template: str | None) -> None:
        self.backend = backend  # a tokenizers.Tokenizer
        self.vocab_size = backend.get_vocab_size()
        self.bos_token_id, self.eos_token_id = special.get("bos"), special.get("eos")
        self.pad_token_id = special.get("pad")
        self.chat_template = chat_template

    def convert_ids_to_tokens(self, i: int) -> str:
        """As the vocabulary has it: "Ġthe" is " the"."""
        return self.backend.id_to_token(i)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers' AutoTokenizer loads too."""
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": self.chat_template}
        for which in ("bos", "eos", "pad"):
            if (i := getattr(self, f"{which}_token_id")) is not None:
                config[f"{which}_token"] = self.convert_ids_to_tokens(i)
        texts = {
            "tokenizer.json": self.backend.to_str(pretty=True),
            "tokenizer_config.json": json.dumps(config, indent=2, ensure_ascii=False),
        }
        for name, text in texts.items():
            write_atomically(Path(folder) / name, partial(Path.write_text, data=text, encoding="utf-8", newline="\n"))

    def _encode(self, text: str, add_special_tokens: bool) -> Sequence[int]:
        text.encode("utf-8")  # half a surrogate pair: UnicodeEncodeError, which says so; tokenizers says "must be str"
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def _decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


class TextStream:
    """Tokens to text while a model writes them, never half a character.

        add(t_n) = decode(t_0 … t_n) beyond decode(t_0 … t_(n−1))

    A character may be spread over tokens: "😀" is four bytes of UTF-8, for SmolLM2 three tokens, for a model of bytes four. Until
    the last of them has come it is decoded as U+FFFD, and what ends in that is held back.

    after: the tokens that came before, such as a prompt's. Their text is not given again; but a vocabulary may write a first
    token in another way than a later one (Llama 2's has no space before it), so it must know. Special tokens are left out.
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self.tokenizer, self.ids = tokenizer, list(after)
        self.given = len(self._text())  # characters

    def add(self, token: int) -> str:
        """The text that this token makes certain: often a word, and "" within a character. Raises as `decode` does."""
        self.ids.append(token)
        return self._beyond(self._text().rstrip("\ufffd"))

    def end(self) -> str:
        """What is held back when nothing more comes: U+FFFD for a character that was not completed, otherwise ""."""
        return self._beyond(self._text())

    def _text(self) -> str:
        """All of it each time, for a token's text may depend on those before it: for 1000 tokens 0.3 ms, the model takes 50."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _beyond(self, text: str) -> str:
        new = text[self.given :]
        self.given += len(new)
        return new
