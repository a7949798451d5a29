"""Stop strings, which end an answer and are not part of the answer."""

from __future__ import annotations

from collections.abc import Sequence

from ..files import TextStream, Tokenizer


class StopString:
    """Finds one string in a text that arrives in pieces (Knuth, Morris and Pratt 1977).

    `matched` is the length of the longest suffix of the text that is a prefix of the string. The work is proportional to the
    length of the text, whatever the string is.
    """

    def __init__(self, string: str) -> None:
        self.string, self.matched = string, 0
        self.borders = [0]  # borders[i]: length of the longest proper prefix of string[: i + 1] that is also its suffix
        for character in string[1:]:
            self.borders.append(self._extend(self.borders[-1], character))

    def _extend(self, matched: int, character: str) -> int:
        """Return the new number of matched characters after `character`."""
        while matched and character != self.string[matched]:
            matched = self.borders[matched - 1]
        return matched + (character == self.string[matched])

    def find(self, piece: str) -> int | None:
        """Read the next piece of the text. Return the index in `piece` at which the string begins, or None.

        The index is negative if the string begins in an earlier piece.
        """
        for i, character in enumerate(piece):
            self.matched = self._extend(self.matched, character)
            if self.matched == len(self.string):
                return i + 1 - len(self.string)
        return None


class StopStringStream:
    """Decodes one token after another, and ends the text before the first stop string.

    Text that could be the beginning of a stop string is returned later, if the next tokens do not complete the string.
    `stopped` is True after a stop string. `after` contains the token ids of the prompt; the decoded text follows them.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int], stop: tuple[str, ...] = ()) -> None:
        self._stream, self._held = TextStream(tokenizer, after), ""
        self._stops = [StopString(string) for string in stop]
        self.stopped = False

    def add(self, token: int) -> str:
        """Add a token; return the new text that is certain to be part of the answer."""
        piece = self._stream.add(token)
        found = [at for stop in self._stops if (at := stop.find(piece)) is not None]
        text, held = self._held + piece, len(self._held)
        if found:
            self.stopped, self._held = True, ""
            return text[: held + min(found)]
        certain = len(text) - max((stop.matched for stop in self._stops), default=0)
        self._held = text[certain:]
        return text[:certain]

    def end(self) -> str:
        """Return the remaining text. Call this method after the last token."""
        return "" if self.stopped else self._held + self._stream.end()
