"""Tests of the digest in the JSON files of studies: a damaged table or run is refused by name, and never changes a result."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lora_np.studies.harness import runs
from lora_np.studies.harness.digests import WRITE, add_digest, read_with_digest
from lora_np.studies.harness.table import Table

DATA = Path(__file__).parents[2] / "figures" / "data"


@dataclass(frozen=True)
class Run:
    lr: float


def measured(run: Run) -> dict[str, object]:
    return {"lr": run.lr, "validation": run.lr + 0.25, "seconds": [0.5], "curve": (1, 2), "by_rank": {8: 1.5}}


def table() -> Table:
    rows = [{"r": r, "final": 1 / r, "curve": [1.5, 1.25], "diverged": None} for r in (1, 2, 8)]
    return Table("toy", "How does α grow?", "none", {"seeds": [0, 1]}, rows, {"numpy": "2"}, 1.5)


def load_runs(folder: Path) -> list[dict[str, object]]:
    return runs.run_all(measured, [Run(1.0)], 1, folder, "told")


@pytest.fixture
def saved(tmp_path):
    """Return the files of a table and of a run, each with the function that reads it."""
    table().save(tmp_path / "toy.json")
    load_runs(tmp_path / "runs")
    (run,) = (tmp_path / "runs").iterdir()
    return {tmp_path / "toy.json": Table.load, run: lambda path: load_runs(path.parent)}


def test_a_table_and_a_run_come_back_equal(saved):
    path, run = saved
    assert Table.load(path) == table()
    assert saved[run](run) == [json.loads(json.dumps(measured(Run(1.0))))], "read from the file, without the digest"


def test_300_damaged_files_are_refused_by_name_or_are_equal(saved):
    """One to three bytes changed, a piece cut out, or the end missing. White space may change without effect."""
    rng = np.random.default_rng(0)
    refused = 0
    for path, read in saved.items():
        whole, content = path.read_bytes(), read(path)
        for _ in range(150):
            damaged, at = bytearray(whole), rng.integers(0, len(whole), 3)
            kind = rng.integers(0, 3)
            if kind == 0:
                for i in at[: rng.integers(1, 4)]:
                    damaged[i] ^= 1 << int(rng.integers(0, 8))
            elif kind == 1:
                del damaged[at[0] : at[0] + int(rng.integers(1, 9))]
            else:
                del damaged[at[0] :]
            path.write_bytes(damaged)
            try:
                assert read(path) == content
            except ValueError as error:
                assert str(path) in str(error)
                refused += 1
        path.write_bytes(whole)
    assert refused > 280


CONTENTS = {
    "empty": (b"", "Expecting value"),
    "not UTF-8": (b"\xff\xfe", "can't decode"),
    "nested": (b"[" * 100_000, "maximum recursion depth"),
    "nested in an object": (b'{"a":' * 100_000, "maximum recursion depth"),
    "a list": (b"[1]", "got a JSON list, expected an object"),
    "no digest": (b'{"study": "toy"}', "has no digest"),
    "a digest that is not text": (b'{"study": "toy", "sha256": [1]}', "does not match its digest"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_a_file_without_a_table_is_named(case, saved):
    content, message = CONTENTS[case]
    for path, read in saved.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
            read(path)


@pytest.mark.parametrize("changes", [{"rows": 3}, {"rows": [1]}, {"settings": "x"}, {"unknown": 1}])
def test_a_digest_does_not_make_a_table_of_another_file(changes, tmp_path):
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(vars(table()) | changes))
    add_digest(path)
    with pytest.raises(ValueError, match=r"toy\.json does not contain the table of a study"):
        Table.load(path)


def test_the_command_in_the_message_writes_the_digest_and_changes_one_line(saved):
    path = next(iter(saved))
    before = path.read_text(encoding="utf-8").splitlines()
    edited = [line.replace('"final": 1.0', '"final": 2.0') for line in before if "sha256" not in line]
    path.write_text("\n".join(edited) + "\n", encoding="utf-8", newline="\n")
    with pytest.raises(ValueError, match=f"has no digest.* run `{re.escape(WRITE)}"):
        Table.load(path)
    for _ in range(2):  # with and without an old digest
        subprocess.run([sys.executable, *WRITE.split()[1:], str(path)], check=True, stdout=subprocess.DEVNULL)
        assert Table.load(path).rows[0]["final"] == 2.0
    after = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in after if "sha256" not in line] == edited and len(after) == len(before)


@pytest.mark.parametrize("path", sorted(DATA.glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_table_has_the_digest_of_its_content(path):
    read_with_digest(path)
