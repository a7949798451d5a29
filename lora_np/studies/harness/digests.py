"""JSON files of studies with a SHA-256 digest of their content, which detects a damaged or edited file.

    {"study": …, "rows": […], "sha256": the digest of all other entries}

A digest is not a signature. It detects accidental changes; it does not detect a change by a person who also writes a
new digest. If you edited a file on purpose, write its new digest:

    python -m lora_np.studies.harness.digests FILE…
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...files import read_json, write_text

DIGEST = "sha256"  # the name of the entry
WRITE = "python -m lora_np.studies.harness.digests"


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of all entries except the digest. Line breaks and the order of the entries do not count."""
    as_read = json.loads(json.dumps({key: value for key, value in content.items() if key != DIGEST}))
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_with_digest(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file without its digest.

    Raises FileNotFoundError if there is no such file. Raises ValueError if the file does not contain a JSON object, if
    the digest is missing, or if the digest differs from the content. Each message names the file.
    """
    content = read_json(path)
    if DIGEST not in content:
        raise ValueError(
            f"{path} has no digest (the entry {DIGEST!r}). Either an older version wrote the file, or the entry was removed. "
            f"If the content is right, run `{WRITE} {path}`"
        )
    if content[DIGEST] != digest(content):
        raise ValueError(
            f"{path} was changed after it was written, so its content does not match its digest. Restore the file or make it "
            f"again. If you edited the file on purpose, run `{WRITE} {path}`"
        )
    del content[DIGEST]
    return content


def add_digest(path: Path) -> None:
    """Write the digest of a file's content into the file. Only the line of the digest changes."""
    content = read_json(path)
    entry = f'"{DIGEST}": "{digest(content)}"'
    text = path.read_text(encoding="utf-8")
    if DIGEST in content:
        text = re.sub(rf'"{DIGEST}": "[^"]*"', entry, text, count=1)
    else:
        text = re.sub(
            r"\{(\s*)", lambda start: f"{{{start[1]}{entry}{',' if content else ''}{start[1] or ' '}", text, count=1
        )
    write_text(path, text)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        add_digest(Path(name))
        print(f"{name}: digest written")
