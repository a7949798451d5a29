"""Turn tokens into text piece by piece, while a model generates the tokens."""

from __future__ import annotations

from collections.abc import Iterable

from .tokenizer import Tokenizer


class TextStream:
    """Turn tokens into text while a model generates the tokens. The text consists of whole characters.

    A character may consist of several tokens: "😀" is four bytes of UTF-8, and three tokens for SmolLM2. `add` returns "" until the
    character is complete. Special tokens are left out of the text.

    Parameters
    ----------
    tokenizer : Tokenizer
        The tokenizer of the model.
    after : iterable of int
        The ids of the tokens before the generated tokens, such as the prompt. The text of these tokens is not returned.
        But these tokens can affect the text of the next token, because some vocabularies remove the space at the start
        of the first token of a text.

    Examples
    --------
    >>> from lora_np.files import ByteTokenizer, TextStream
    >>> stream = TextStream(ByteTokenizer())
    >>> [stream.add(byte) for byte in "aé".encode()]
    ['a', '', 'é']
    """

    def __init__(self, tokenizer: Tokenizer, after: Iterable[int] = ()) -> None:
        self.tokenizer, self.ids = tokenizer, list(after)
        self.returned = len(self._text())  # number of characters returned so far; initially those of `after`

    def add(self, token: int) -> str:
        """Add a token and return the text that this token completes.

        Parameters
        ----------
        token : int
            The next token id.

        Returns
        -------
        str
            The new text, or "" if a character is not complete yet.

        Raises
        ------
        ValueError
            If the id is out of range.
        """
        self.ids.append(token)
        return self._new_part(self._text().rstrip("\ufffd"))

    def end(self) -> str:
        """Return the text that remains after the last token.

        Returns
        -------
        str
            U+FFFD if the last character is incomplete, otherwise "".
        """
        return self._new_part(self._text())

    def _text(self) -> str:
        """Decode all tokens, because the text of a token may depend on earlier tokens. Decoding 1000 tokens takes only
        0.3 ms."""
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _new_part(self, text: str) -> str:
        new = text[self.returned :]
        self.returned += len(new)
        return new
