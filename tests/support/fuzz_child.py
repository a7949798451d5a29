"""Read damaged files in a process of its own, with limits: `python fuzz_child.py FOLDER SEED FIRST STEP COUNT SECONDS`.

Prints one JSON line before each file and one after it. The parent sees a crash as a file without its second line.
"""

from __future__ import annotations

import faulthandler
import json
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from fuzz_mutations import damage
from fuzz_seeds import KINDS, Kind

GIGABYTE = 2**30
HANG = 60  # seconds until a file is given up; above 5 s of processor time it is reported as slow


def attempt(kind: Kind, folder: Path, damaged: Path) -> str:
    """Read the folder, and return "read", "refused" or what is wrong."""
    try:
        arrays = kind.use(folder)
    except kind.errors as error:
        text = str(error)
        if damaged.name not in text or str(folder) not in text:
            return f"does not name the file: {type(error).__name__}: {text[:300]}"
        if "MemoryError" in text:
            return "no memory"
        if len(text) > 3000:
            return f"a message of {len(text)} characters: {text[:200]}"
        return "refused"
    except BaseException as error:  # a panic of a Rust package is no Exception
        return f"{type(error).__name__}: {str(error)[:300]}"
    bad = [x.shape for x in arrays if x.dtype.kind == "f" and not np.isfinite(x).all()]
    return f"loaded NaN or infinity: {bad}" if bad else "read"


def main(root: Path, seed: int, first: int, step: int, count: int, seconds: float) -> None:
    import resource  # not on Windows

    warnings.simplefilter("ignore")
    seeds = {}
    for kind in KINDS:
        seeds[kind.name] = root / "sound" / kind.name
        seeds[kind.name].mkdir(parents=True, exist_ok=True)
        kind.write(seeds[kind.name])
        shutil.copytree(seeds[kind.name], root / "case", dirs_exist_ok=True)
        kind.use(root / "case")  # a sound folder must be read
        shutil.rmtree(root / "case")
    everything = sorted(path for path in (root / "sound").rglob("*") if path.is_file())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    used = int(status["VmData"].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_DATA, (used + GIGABYTE, -1))
    end = time.monotonic() + seconds
    print(json.dumps("ready"), flush=True)
    for i in range(first, first + step * count, step):
        if time.monotonic() > end:
            break
        rng = np.random.default_rng([seed, i])
        kind = KINDS[i % len(KINDS)]
        folder = root / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(seeds[kind.name], folder)
        files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".kept"]
        path = files[int(rng.integers(len(files)))]
        how = damage(path, rng, everything)
        print(json.dumps([i, kind.name, how]), flush=True)
        faulthandler.dump_traceback_later(HANG, exit=True)
        began = time.process_time()
        outcome = attempt(kind, folder, path)
        faulthandler.cancel_dump_traceback_later()
        print(json.dumps([i, outcome, time.process_time() - began]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:6]), float(sys.argv[6]))
