"""Show control characters instead of sending them to a terminal.

A terminal obeys control characters, so a text can clear the screen, set the title of the window, or write to the
clipboard. A model's answer, a file name or a file can contain such characters. So every command shows all control
characters as text.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO

# All control characters except newline and tab; the characters that change the direction of the text after them (a
# line could then show other words than it contains); and surrogates, which no terminal can show. Right-to-left text does not
# need these characters. The marks and joiners of right-to-left text (U+200C to U+200F) are kept.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return the text with each control character as an escape such as \\x1b or \\u202e. Newlines and tabs are kept."""
    return CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\u0100" else f"\\u{ord(found[0]):04x}", text
    )


class VisibleStream:
    """A text stream that writes `visible(text)` to another stream."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write `visible(text)`, and return the length of `text`."""
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def visible_output() -> Iterator[None]:
    """Apply `visible` to everything that is printed inside the `with` block, on stdout and on stderr.

    Pipes and files get the same text as a terminal, because this text is often shown in a terminal later.
    """
    with redirect_stdout(VisibleStream(sys.stdout)), redirect_stderr(VisibleStream(sys.stderr)):
        yield


def unfiltered(stream: Any) -> Any:
    """Return the stream to which a VisibleStream writes.

    A progress bar writes to this stream, because it must send the characters that move the cursor.
    """
    return stream.stream if isinstance(stream, VisibleStream) else stream
