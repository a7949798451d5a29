"""The files that report a training run: its metrics as JSONL and as event files for TensorBoard, and a picture.

The files:

    metrics.jsonl    one row per step, with the columns of History; rewritten every 15 seconds during the run
    loss.png         the curve of the losses, drawn at the end if matplotlib is installed
    runs/            event files for TensorBoard, with --report-to tensorboard
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import progress
from ..files import write_text
from ..files.durable import make_folder
from ..optional import MissingExtra, extra
from ..training import History

METRICS, PICTURE, EVENTS = "metrics.jsonl", "loss.png", "runs"
TAGS = {  # column → the name that transformers gives it in TensorBoard
    "loss": "train/loss",
    "lr": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "heldout": "eval/loss",
}


class Report:
    """Writes the reports during a run. Call `train(…, on_step=report)` in the block `with Report(…) as report`.

    Raises MissingExtra if event files are wanted and tensorboardX is not installed.
    """

    def __init__(self, output: Path, tensorboard: bool) -> None:
        self.output, self.last, self.reported = output, time.perf_counter(), 0
        self.events: Any = None
        self.writer: Any = None
        if tensorboard:
            with extra("tensorboard", "--report-to tensorboard"):
                from tensorboardX import SummaryWriter
            self.writer = SummaryWriter

    def __call__(self, history: History) -> None:
        if self.writer is not None:
            self._add_events(history.rows[self.reported :])
            self.reported = len(history.rows)
        if (now := time.perf_counter()) - self.last > progress.INTERVAL:
            self.last = now
            save_metrics(self.output, history.rows)

    def _add_events(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Write rows to an event file. A resumed run writes all rows again; TensorBoard then hides the rows of older files."""
        if self.events is None:
            folder = self.output / EVENTS
            make_folder(folder)
            self.events = self.writer(str(folder), purge_step=0, flush_secs=round(progress.INTERVAL))
        for row in rows:
            for column in TAGS.keys() & row.keys():
                self.events.add_scalar(TAGS[column], row[column], int(row["step"]))

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *error: object) -> None:
        if self.events is not None:
            self.events.close()


def save_metrics(output: Path, rows: Sequence[Mapping[str, float]]) -> None:
    """Write metrics.jsonl."""
    write_text(output / METRICS, "".join(f"{json.dumps(row)}\n" for row in rows))


def save_picture(output: Path, rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Draw loss.png, and return the names of the written files. Without matplotlib or without losses, nothing is written.

    A missing matplotlib is reported in one line on stderr. A picture of an older run is removed.
    """
    if sum("loss" in row for row in rows) > 1:
        try:
            _draw(rows, output / PICTURE)
            return [PICTURE]
        except MissingExtra as error:
            print(error, file=sys.stderr)
    if (output / PICTURE).exists():
        (output / PICTURE).unlink()
    return []


def _draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    with extra("course", PICTURE):
        import matplotlib  # noqa: F401, imported here so that a missing matplotlib is reported in one line
    from .loss_picture import draw

    draw(rows, path)
