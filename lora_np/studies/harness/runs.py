"""Many runs of one study, side by side; each finished one is kept in a file, so that a study can resume.

A run that is compared is a dataclass with an `lr`; its row has `validation`, the loss that learning rates are chosen by (None
where it diverged).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...files import write_atomically
from ...progress import Progress
from .workers import Failure, Row, Workers, each


class StudyFailed(RuntimeError):
    """Some runs failed; the others were made and kept. `rows` has None in the place of each that failed."""

    def __init__(self, label: str, failures: Sequence[Failure], rows: Sequence[Row | None], folder: str | Path | None):
        self.label, self.failures, self.rows, self.folder = label, failures, rows, folder
        lines = [f"{len(failures)} of {len(rows)} runs failed ({label}):", *(f"  {failure}" for failure in failures)]
        if folder is None:
            lines.append("Nothing was kept: with a folder for its runs, a study does only these again.")
        else:
            lines.append(f"The others are kept in {folder}: the same command again does only these.")
        super().__init__("\n".join(lines))


def run_all(
    measure: Callable[[Any], Row],
    runs: Sequence[Any],
    workers: Workers,
    folder: str | Path | None,
    label: str,
    given: str = "",
) -> list[Row]:
    """[measure(run) for run in runs], by `workers`: so many processes here, or a Dask cluster's; in their order.

    With a `folder`, a run that is there is read, not repeated. It is found by what decides its outcome: the run, a dataclass,
    and `given`, a digest of the data and weights that all runs share. This process writes it, as soon as it is finished.
    A run that fails is reported when it does; the others go on, and at the end StudyFailed is raised.
    """
    paths = [None if folder is None else Path(folder) / _name(run, given) for run in runs]
    rows: list[Row | None] = [json.loads(p.read_text(encoding="utf-8")) if p and p.is_file() else None for p in paths]
    todo = [i for i, row in enumerate(rows) if row is None]
    failures = []
    done = len(runs) - len(todo)
    with (
        Progress(len(runs), label, unit="run", lines=True, done=done) as bar,
        closing(each(measure, [runs[i] for i in todo], workers)) as results,
    ):
        if done:
            bar.say(f"{label}: {done} of {len(runs)} runs were there")
        for j, row in results:
            i = todo[j]
            if isinstance(row, Failure):
                failures.append(row)
                bar.say(f"{label}: failed, the others go on: {row}")
            else:
                rows[i] = row
                if path := paths[i]:
                    write = partial(Path.write_text, data=json.dumps(row), encoding="utf-8", newline="\n")
                    write_atomically(path, write)
            bar.update(1)
    if failures:
        raise StudyFailed(label, failures, rows, folder)
    return [row for row in rows if row is not None]


def sweep(
    measure: Callable[[Any], Row],
    methods: Mapping[Any, Sequence[float]],
    workers: Workers,
    folder: str | Path | None,
    given: str = "",
    factor: float | None = 2.0,
) -> dict[Any, list[Row]]:
    """Each method's rows, one a learning rate, by learning rate. `methods` has the rates to try first.

    A method whose best rate is the smallest or the largest tried goes on in that direction by `factor`, until the best has a
    neighbour on each side; None stays with the rates given. A method of which a run failed stops there, the others go on to
    their end; then StudyFailed is raised.
    """
    label = "learning rates"
    tried: dict[Any, list[Row | None]] = {method: [] for method in methods}
    untried = {method: list(lrs) for method, lrs in methods.items()}
    failures: list[Failure] = []
    while any(untried.values()):
        runs = [(method, replace(method, lr=lr)) for method, lrs in untried.items() for lr in lrs]
        made: Sequence[Row | None]
        try:
            made = run_all(measure, [run for _, run in runs], workers, folder, label, given)
        except StudyFailed as error:
            made, failures = error.rows, [*failures, *error.failures]
        for (method, _), row in zip(runs, made, strict=True):
            tried[method].append(row)
        untried = {
            method: beyond_the_edge([*filter(None, rows)], factor) if factor and None not in rows else []
            for method, rows in tried.items()
        }
    if failures:
        raise StudyFailed(label, failures, [row for rows in tried.values() for row in rows], folder)
    return {method: sorted(filter(None, rows), key=lambda row: row["lr"]) for method, rows in tried.items()}


@dataclass(frozen=True)
class Tuned:
    """What `at_their_best` found. rates: each method at every rate tried, with the first seed; seeds: at its best, with all."""

    rates: list[Row]
    seeds: list[Row]
    runs: list[Row]  # each once

    def seconds(self) -> float:
        """Of training, of all runs together."""
        return sum(row["seconds"][-1] for row in self.runs if row["seconds"])


def at_their_best(
    measure: Callable[[Any], Row],
    methods: Mapping[Any, Sequence[float]],
    seeds: Sequence[int],
    workers: Workers,
    folder: str | Path | None,
    given: str = "",
    factor: float | None = 2.0,
) -> Tuned:
    """`sweep` with the first of `seeds`, then each method's best rate with the others: seed by seed, methods in their order.

    Raises FloatingPointError where a run at a best rate diverged.
    """
    first, *others = seeds
    tried = sweep(measure, {replace(m, seed=first): lrs for m, lrs in methods.items()}, workers, folder, given, factor)
    best = {method: min(rows, key=validation) for method, rows in tried.items()}
    repeats = [replace(method, lr=row["lr"], seed=seed) for seed in others for method, row in best.items()]
    repeated = run_all(measure, repeats, workers, folder, "seeds", given)
    rates = [row for rows in tried.values() for row in rows]
    return Tuned(rates, [*finished([*best.values(), *repeated])], [*rates, *repeated])


def beyond_the_edge(rows: list[Row], factor: float) -> list[float]:
    """The next learning rate, if the best so far is the smallest or the largest tried; none where its neighbour is as good."""
    rows = sorted(rows, key=lambda row: row["lr"])
    best = min(rows, key=validation)
    alike = [row for row in rows if validation(row) == validation(best) < math.inf]
    if len(alike) > 1:  # where the rate does nothing more, going on has no end
        return []
    if best is rows[0]:
        return [best["lr"] / factor]
    return [best["lr"] * factor] if best is rows[-1] else []


def validation(row: Row) -> float:
    """What a row's rate is judged by: a run that diverged is the worst."""
    return math.inf if row["validation"] is None else row["validation"]


def finished(rows: list[Row]) -> list[Row]:
    """`rows`, if none diverged. Raises FloatingPointError naming the first that did: at its best rate a method must train."""
    for row in rows:
        if row["validation"] is None:
            who = {key: row[key] for key in ("method", "r", "lr", "seed") if key in row}
            raise FloatingPointError(f"{who} diverged, at the rate that was best with another seed: try a smaller one")
    return rows


def _name(run: Any, given: str) -> str:
    """A file name from everything that decides the run's outcome."""
    settings = json.dumps(asdict(run) | {"given": given}, sort_keys=True)
    return f"{type(run).__name__.lower()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
