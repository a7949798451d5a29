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
    measure: Callable[[Any], Row], runs: Sequence[Any], workers: int, folder: str | Path | None, label: str
) -> list[Row]:
    """[measure(run) for run in runs], in `workers` processes of one BLAS thread each; in the order of `runs`.

    `runs` are dataclasses that hold all that decides an outcome. With a `folder`, a run that is there is read, not
    repeated.
    """
    from joblib import Parallel, delayed, parallel_config

    rows: dict[int, Row] = {}
    paths = [None if folder is None else Path(folder) / _name(run) for run in runs]
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
                write_atomically(paths[i], lambda path, text=text: path.write_text(text, encoding="utf-8"))
            bar.update(1)
    return [rows[i] for i in range(len(runs))]


def _numbered(measure: Callable[[Any], Row], i: int, run: Any) -> tuple[int, Row]:
    return i, measure(run)


def _name(run: Any) -> str:
    """A file name from everything that decides the run's outcome."""
    settings = json.dumps(asdict(run), sort_keys=True)
    return f"{type(run).__name__.lower()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
