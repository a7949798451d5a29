"""Run the training runs of a study in parallel. Each finished run is written to a file, so a study can resume.

A run is a dataclass with a field `lr`. The result of a run is a dictionary, called a row. In the row, `validation` is
the loss that is used to choose learning rates, or None if the run diverged.
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
from .digests import DIGEST, digest, read_with_digest
from .workers import Failure, Row, Workers, each


class StudyFailed(RuntimeError):
    """Raised at the end of a study if some runs failed. `rows` has one row per run, or None for a failed run."""

    def __init__(self, label: str, failures: Sequence[Failure], rows: Sequence[Row | None], folder: str | Path | None):
        self.label, self.failures, self.rows, self.folder = label, failures, rows, folder
        lines = [f"{len(failures)} of {len(rows)} runs failed ({label}):", *(f"  {failure}" for failure in failures)]
        if folder is None:
            lines.append("No run was written to disk. Give the study a folder, then it repeats only the failed runs.")
        else:
            lines.append(f"The other runs are in {folder}. Run the same command again to repeat only the failed runs.")
        super().__init__("\n".join(lines))


def run_all(
    measure: Callable[[Any], Row],
    runs: Sequence[Any],
    workers: Workers,
    folder: str | Path | None,
    label: str,
    given: str = "",
) -> list[Row]:
    """Measure all runs in parallel and return their rows: [measure(run) for run in runs].

    `workers` is a number of processes on this machine or the address of a Dask scheduler. If a `folder` is given, each
    finished run is written there. If the file of a run exists, the row is read from the file, and the run is not
    repeated. If the content of a file does not match its digest, ValueError is raised before any run starts. The file's
    name contains a digest of the run's fields and of `given`. The string `given` is a digest of the data and the
    weights that all runs share. If a run fails, the error is printed and the other runs continue; at the end
    StudyFailed is raised.
    """
    paths = [None if folder is None else Path(folder) / _name(run, given) for run in runs]
    rows: list[Row | None] = [read_with_digest(p) if p and p.is_file() else None for p in paths]
    todo = [i for i, row in enumerate(rows) if row is None]
    failures = []
    done = len(runs) - len(todo)
    with (
        Progress(len(runs), label, unit="run", lines=True, done=done) as bar,
        closing(each(measure, [runs[i] for i in todo], workers)) as results,
    ):
        if done:
            bar.say(f"{label}: {done} of {len(runs)} runs read from files")
        for j, row in results:
            i = todo[j]
            if isinstance(row, Failure):
                failures.append(row)
                bar.say(f"{label}: one run failed, the others continue: {row}")
            else:
                rows[i] = row
                if path := paths[i]:
                    text = json.dumps({**row, DIGEST: digest(row)})
                    write = partial(Path.write_text, data=text, encoding="utf-8", newline="\n")
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
    """Try several learning rates for each method; return, for each method, one row per rate, sorted by rate.

    `methods` maps each method to the learning rates to try first. If a method's best rate is the largest rate tried,
    this rate times `factor` is tried next. If the best rate is the smallest rate tried, this rate divided by `factor`
    is tried next. The search repeats until the best rate has a neighbour on each side. With `factor=None` only the
    given rates are tried. If a run fails, no further rates of its method are tried, and the other methods continue.
    StudyFailed is then raised at the end.
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
    """The result of `at_their_best`: all learning rates with the first seed, and the best rates with all seeds."""

    rates: list[Row]  # every rate that was tried, with the first seed
    seeds: list[Row]  # the best rate of each method, with every seed
    runs: list[Row]  # every run once

    def seconds(self) -> float:
        """Return the seconds of training, summed over all runs."""
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
    """Find each method's best learning rate with the first seed, then run that rate with the other seeds.

    The rows of the best rates are ordered by seed, and then by method. Raises FloatingPointError if a run at a best
    rate diverges.
    """
    first, *others = seeds
    tried = sweep(measure, {replace(m, seed=first): lrs for m, lrs in methods.items()}, workers, folder, given, factor)
    best = {method: min(rows, key=validation) for method, rows in tried.items()}
    repeats = [replace(method, lr=row["lr"], seed=seed) for seed in others for method, row in best.items()]
    repeated = run_all(measure, repeats, workers, folder, "seeds", given)
    rates = [row for rows in tried.values() for row in rows]
    return Tuned(rates, [*finished([*best.values(), *repeated])], [*rates, *repeated])


def beyond_the_edge(rows: list[Row], factor: float) -> list[float]:
    """Return a list with the next rate to try; the list is empty if rates on both sides of the best rate were tried.

    The list is also empty if two rates have exactly the best loss, because the search would then never end.
    """
    rows = sorted(rows, key=lambda row: row["lr"])
    best = min(rows, key=validation)
    alike = [row for row in rows if validation(row) == validation(best) < math.inf]
    if len(alike) > 1:
        return []
    if best is rows[0]:
        return [best["lr"] / factor]
    return [best["lr"] * factor] if best is rows[-1] else []


def validation(row: Row) -> float:
    """Return a row's loss for the comparison of learning rates: `validation`, or infinity if the run diverged."""
    return math.inf if row["validation"] is None else row["validation"]


def finished(rows: list[Row]) -> list[Row]:
    """Return `rows`. Raise FloatingPointError if a run diverged.

    At its best learning rate, a method must not diverge with any seed.
    """
    for row in rows:
        if row["validation"] is None:
            who = {key: row[key] for key in ("method", "r", "lr", "seed") if key in row}
            raise FloatingPointError(
                f"{who} diverged at the learning rate that was best with another seed; use smaller rates in the study"
            )
    return rows


def _name(run: Any, given: str) -> str:
    """Return the file name of a run, which contains a digest of everything that determines the run's result."""
    settings = json.dumps(asdict(run) | {"given": given}, sort_keys=True)
    return f"{type(run).__name__.lower()}-{hashlib.sha256(settings.encode()).hexdigest()[:16]}.json"
