"""Many runs of one study, side by side: through joblib, each finished one kept in a file, so that a study can resume.

A run that is compared is a dataclass with an `lr`; its row has `validation`, the loss that learning rates are chosen by (None
where it diverged).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
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
    """[measure(run) for run in runs], in `workers` processes of one BLAS thread each (one worker: here); in their order.

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


def sweep(
    measure: Callable[[Any], Row],
    methods: Mapping[Any, Sequence[float]],
    workers: int,
    folder: str | Path | None,
    given: str = "",
    factor: float | None = 2.0,
) -> dict[Any, list[Row]]:
    """Each method's rows, one a learning rate, by learning rate. `methods` has the rates to try first.

    A method whose best rate is the smallest or the largest tried goes on in that direction by `factor`, until the best has a
    neighbour on each side; None stays with the rates given.
    """
    tried: dict[Any, list[Row]] = {method: [] for method in methods}
    untried = {method: list(lrs) for method, lrs in methods.items()}
    while any(untried.values()):
        runs = [(method, replace(method, lr=lr)) for method, lrs in untried.items() for lr in lrs]
        rows = run_all(measure, [run for _, run in runs], workers, folder, "learning rates", given)
        for (method, _), row in zip(runs, rows, strict=True):
            tried[method].append(row)
        untried = {method: beyond_the_edge(rows, factor) if factor else [] for method, rows in tried.items()}
    return {method: sorted(rows, key=lambda row: row["lr"]) for method, rows in tried.items()}


def beyond_the_edge(rows: list[Row], factor: float) -> list[float]:
    """The next learning rate, if the best so far is the smallest or the largest tried."""
    rows = sorted(rows, key=lambda row: row["lr"])
    best = min(rows, key=validation)
    if best is rows[0]:
        return [best["lr"] / factor]
    return [best["lr"] * factor] if best is rows[-1] else []


def validation(row: Row) -> float:
    """What a row's rate is judged by: a run that diverged is the worst."""
    return math.inf if row["validation"] is None else row["validation"]


def finished(rows: Sequence[Row]) -> Sequence[Row]:
    """`rows`, if none diverged. Raises FloatingPointError naming the first that did: at its best rate a method must train."""
    for row in rows:
        if row["validation"] is None:
            who = {key: row[key] for key in ("method", "r", "lr", "seed") if key in row}
            raise FloatingPointError(f"{who} diverged, at the rate that was best with another seed: try a smaller one")
    return rows


def _numbered(measure: Callable[[Any], Row], i: int, run: Any) -> tuple[int, Row]:
    return i, measure(run)


def _name(run: Any, given: str) -> str:
    """A file name from everything that decides the run's outcome."""
    settings = json.dumps(asdict(run) | {"given": given}, sort_keys=True)
    return f"{type(run).__name__.lower()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
