"""Read a student's files with limits, so that no submission can use up the memory or the time of the grader."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import stat
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

LeftOut = Callable[[Path, list[os.DirEntry[str]]], set[str]]

MOST_FILE = 10 << 20  # bytes of a notebook; pictures in the outputs can need several MB
MOST_PROGRAM = 1 << 20  # bytes of a .py file
MOST_CELLS, MOST_CODE, MOST_LINE = 2_000, 200_000, 10_000  # cells, characters of code, characters of a line
MOST_ENTRIES, MOST_DEPTH = 10_000, 30  # files and folders of a submission, and folders inside each other
ENCODINGS = re.compile(r"utf-8(-sig)?|ascii|iso8859-\d+|cp125\d|koi8-r|gbk|gb2312|gb18030|big5|shift_jis|euc_\w\w")
MB = 1 << 20


def read_bytes(path: Path, most: int = MOST_FILE) -> bytes:
    """Return the content of a regular file of at most `most` bytes. A link, a pipe or a device is never read.

    Raises ValueError with the file's name if the file is not regular or too large, and OSError if the file cannot be
    opened.
    """
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link; hand in the file itself")
    flags = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
    with open(os.open(path, os.O_RDONLY | sum(flags)), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path.name} is larger than {most // MB} MB; clear the outputs of the notebook")
    return data


def cells_of(path: str | Path) -> list[str]:
    """Return the code cells of a notebook (.ipynb) or of a .py file; `# %%` lines separate the cells of a .py file.

    Raises ValueError with the file's name if the file cannot be read or exceeds a limit.
    """
    path = Path(path)
    is_notebook = path.suffix.lower() == ".ipynb"
    data = read_bytes(path, MOST_FILE if is_notebook else MOST_PROGRAM)
    try:
        if is_notebook:
            cells = json.loads(data.decode("utf-8-sig"))["cells"]
            code = [_joined(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        else:
            code = percent_cells(_decoded(data))
    except (ValueError, LookupError, TypeError, AttributeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"cannot read {path.name} as a {'notebook' if is_notebook else 'Python file'}") from None
    return _of_bounded_size(code, path.name)


def _decoded(data: bytes) -> str:
    """Return the text of a .py file. As in Python, a byte-order mark or a coding line sets the encoding; the default is UTF-8."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    if not ENCODINGS.fullmatch(codecs.lookup(encoding).name):  # other encodings can be very slow, for example punycode
        raise ValueError(f"the encoding {encoding!r} is not supported; save the file as UTF-8")
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def _of_bounded_size(cells: list[str], name: str) -> list[str]:
    """Return the cells; raise ValueError if there are too many cells, or if the cells are too long."""
    if len(cells) > MOST_CELLS:
        raise ValueError(f"{name} has {len(cells):,} code cells, expected at most {MOST_CELLS:,}")
    if (size := sum(map(len, cells))) > MOST_CODE:
        raise ValueError(f"{name} has {size:,} characters of code, expected at most {MOST_CODE:,}")
    if (length := max((len(line) for cell in cells for line in cell.split("\n")), default=0)) > MOST_LINE:
        raise ValueError(f"{name} has a line of {length:,} characters, expected at most {MOST_LINE:,}")
    return cells


def percent_cells(text: str) -> list[str]:
    """Return the code cells of a jupytext file; `# %%` begins a code cell, and `# %% [markdown]` a cell of text."""
    cells: list[list[str]] = [[]]
    is_code = True
    for line in text.replace("\r\n", "\n").split("\n"):
        if line.startswith("# %%"):
            is_code = "[markdown]" not in line
            cells.append([])
        elif is_code or not line.startswith("#"):
            cells[-1].append(line)
    return ["\n".join(cell) for cell in cells if any(map(str.strip, cell))]


def _joined(source: str | Iterable[str]) -> str:
    """Return a cell's source, which a notebook stores as one string or as a list of lines."""
    return source if isinstance(source, str) else "".join(source)


def entries(folder: Path, left_out: LeftOut = lambda here, listed: set()) -> Iterator[os.DirEntry[str]]:
    """Yield the files and links of a folder and its subfolders; links are not followed.

    `left_out(here, listed)` returns the names of the entries of the folder `here` that are skipped. Raises ValueError if
    there are too many entries.
    """
    count, waiting = 0, [(folder, 0)]
    while waiting:
        here, depth = waiting.pop()
        listed: list[os.DirEntry[str]] = []
        with os.scandir(here) as scanned:
            for entry in scanned:
                count += 1
                if count > MOST_ENTRIES:
                    raise ValueError(f"there are more than {MOST_ENTRIES:,} files; hand in only the notebooks")
                listed.append(entry)
        skipped = left_out(here, listed)
        for entry in (entry for entry in listed if entry.name not in skipped):
            if not entry.is_dir(follow_symlinks=False):
                yield entry
            elif depth < MOST_DEPTH:
                waiting.append((here / entry.name, depth + 1))
