"""Damaged files of every kind: no crash, no hang, no large memory, only documented errors, each of which names the file.

A file is damaged at random with a fixed seed, and read in a child process; see fuzz_seeds.py, fuzz_mutations.py and
fuzz_child.py in tests/support. The quick run reads FILES files. If LORA_NP_ATTACK_SECONDS is set, new files are read for that
many seconds. To repeat file N: PYTHONPATH=. python tests/support/fuzz_child.py A_NEW_FOLDER 18 N 1 1 60
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz_child
import numpy as np
import pytest
from fuzz_seeds import Kind

CHILD = Path(__file__).parents[1] / "support" / "fuzz_child.py"
SEED = 18
PARTS = 2  # processes side by side: part p reads the files p, p + PARTS, …
FILES = 600  # of the quick run
SLOW = 5.0  # seconds of processor time


def environment() -> dict[str, str]:
    path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OPENBLAS_NUM_THREADS": "1", "LORA_NP_DEVICE": "numpy"}


def fuzz(folder: Path, part: int, seconds: float) -> tuple[Counter[str], list[str]]:
    """Read damaged files in child processes. After a crash a new child goes on with the next file."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    first = part
    count = FILES // PARTS if not seconds else 10**9
    end = time.monotonic() + (seconds or 10**9)
    while count > 0 and time.monotonic() < end:
        arguments = [str(folder), str(SEED), str(first), str(PARTS), str(count), str(end - time.monotonic())]
        with tempfile.TemporaryFile("w+") as errors:
            child = subprocess.Popen(
                [sys.executable, str(CHILD), *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment(),
                text=True,
            )
            begun, ready = None, False
            assert child.stdout is not None
            for line in child.stdout:
                said = json.loads(line)
                if said == "ready":
                    ready = True
                elif isinstance(said[2], str):
                    begun = said
                else:
                    _, outcome, used = said
                    counts[outcome if outcome in ("read", "refused") else "wrong"] += 1
                    if outcome not in ("read", "refused") or used > SLOW:
                        wrong.append(f"{begun}: {outcome}, {used:.1f} s")
                    begun = None
            child.wait()
            errors.seek(0)
            told = errors.read()[-600:]
        assert ready, f"a sound file could not be read: {told}"
        if begun is None:
            break
        wrong.append(f"{begun}: crash or hang, exit status {child.returncode}: {told}")
        count -= (begun[0] - first) // PARTS + 1
        first = begun[0] + PARTS
    return counts, wrong


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory of the child with RLIMIT_DATA")
def test_a_damaged_file_is_read_or_refused_by_name(attack_seconds, tmp_path):
    with ThreadPoolExecutor(PARTS) as pool:
        parts = list(pool.map(lambda part: fuzz(tmp_path / str(part), part, attack_seconds), range(PARTS)))
    counts, wrong = sum((c for c, _ in parts), Counter()), [line for _, lines in parts for line in lines]
    print(f"{sum(counts.values())} files: {dict(counts)}")
    listed = "\n".join(wrong[:20])
    assert not wrong, f"{len(wrong)} of {sum(counts.values())} files (seed {SEED}: number, kind, damage):\n{listed}"
    assert counts["read"] > 0.05 * sum(counts.values()), "most damaged files are refused, and some are still sound"
    assert counts["refused"] > 0.5 * sum(counts.values())


# ------------------------------------------------------------------------------------- the harness sees each kind of fault


def raising(error: BaseException):
    def use(folder: Path) -> list[np.ndarray]:
        raise error

    return use


FAULTS = {
    "another error": (raising(TypeError("/case/a.json: no")), "TypeError"),
    "a panic": (raising(BaseException("panicked")), "BaseException: panicked"),
    "no memory": (raising(MemoryError()), "MemoryError"),
    "no name": (raising(ValueError("expected an object")), "does not name the file: ValueError: expected an object"),
    "the folder alone": (raising(ValueError("/case: no")), "does not name the file"),
    "a long message": (raising(ValueError("/case/a.json" + "x" * 5000)), "a message of 5012 characters"),
    "NaN": (lambda folder: [np.ones(2), np.array([1, np.nan])], "loaded NaN or infinity"),
    "a good error": (raising(ValueError("/case/a.json: no")), "refused"),
    "a sound file": (lambda folder: [np.ones(2)], "read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_harness_sees(fault):
    use, expected = FAULTS[fault]
    outcome = fuzz_child.attempt(Kind("toy", raising(OSError()), use), Path("/case"), Path("/case/a.json"))
    assert outcome.startswith(expected)


def test_a_crash_is_reported_and_the_next_file_is_read(tmp_path, monkeypatch):
    code = """
import json, os, sys
first, step, count = map(int, sys.argv[3:6])
print(json.dumps("ready"), flush=True)
for i in range(first, first + step * count, step):
    print(json.dumps([i, "toy", "bits"]), flush=True)
    if i == 6:
        os.abort()
    print(json.dumps([i, "read", 0.0 if i != 8 else 7.0]), flush=True)
"""
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(sys.modules[__name__], "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(sys.modules[__name__], "FILES", 20)
    counts, wrong = fuzz(tmp_path, 0, 0)
    assert counts["read"] == 9, "the files 0, 2, …, 18 except 6"
    assert len(wrong) == 2 and "[6, 'toy', 'bits']: crash" in wrong[0] and "[8, 'toy', 'bits']: read, 7.0 s" in wrong[1]
