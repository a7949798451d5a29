"""Many runs of one study, side by side: through joblib, each finished one kept in a file, so that a study can resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..progress import Progress

Row = dict[str, Any]


def run_all(
    measure: Callable[[Any], Row],
    runs: Sequence[Any],
    workers: int,
    folder: str | Path | None,
    label: str,
    given: str = "",
) -> list[Row]:
    """[measure(run) for run in runs], in `workers` processes of one BLAS thread each; in the order of `runs`.

    With a `folder`, a run that is there is read, not repeated. It is found by what decides its outcome: the run, a dataclass,
    and `given`, a digest of the data and weights that all runs share.
    """
    from joblib import Parallel, delayed, parallel_config

    rows: dict[int, Row] = {}
    paths = [None if folder is None else Path(folder) / _name(run, given) for run in runs]
    for i, path in enumerate(paths):
        if path is not None and path.is_file():
            rows[i] = json.loads(path.read_text(encoding="utf-8"))
    todo = [i for i in range(len(runs)) if i not in rows]
    with Progress(len(todo), label, unit="run", lines=True) as bar, parallel_config("loky", inner_max_num_threads=1):
        pool = Parallel(n_jobs=min(workers, len(todo)) or 1, return_as="generator_unordered")
        for i, row in pool(delayed(_numbered)(measure, i, runs[i]) for i in todo):
            rows[i] = row
            if paths[i] is not None:
                text = json.dumps(row)
                write_atomically(
                    paths[i], lambda path, text=text: path.write_text(text, encoding="utf-8", newline="\n")
                )
            bar.update(1)
    return [rows[i] for i in range(len(runs))]


def _numbered(measure: Callable[[Any], Row], i: int, run: Any) -> tuple[int, Row]:
    return i, measure(run)


def _name(run: Any, given: str) -> str:
    """A file name from everything that decides the run's outcome."""
    settings = json.dumps(asdict(run) | {"given": given}, sort_keys=True)
    return f"{type(run).__name__.lower()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
