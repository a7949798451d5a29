"""Runs for the tests of sweeps that tell what happens to them, in files, and wait for a test's word.

A file of its own, so that the workers of a cluster can import it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from lora_np.studies.harness.runs import run_all
from lora_np.studies.harness.table import Table

PATIENCE = 60.0  # seconds after which a wait is an error; no test is decided by it


@dataclass(frozen=True)
class Told:
    """A run that leaves a file in `folder` for each time it begins."""

    lr: float
    folder: str
    waits_for: str = ""  # a file in `folder` that it waits for before it ends
    fails: bool = False  # as long as there is no file "mended"

    def begun(self) -> list[int]:
        """The processes that it has begun in."""
        return [int(path.name.split("-")[2]) for path in Path(self.folder).glob(f"begun-{self.lr}-*")]


def measure(run: Told) -> dict[str, Any]:
    folder = Path(run.folder)
    (folder / f"begun-{run.lr}-{os.getpid()}-{uuid4()}").touch()
    if run.waits_for:
        until((folder / run.waits_for).exists)
    if run.fails and not (folder / "mended").exists():
        raise ValueError("two lines,\nand the last tells")
    return {"lr": run.lr, "validation": run.lr, "final": run.lr}


def kill(run: Told) -> dict[str, Any]:
    """Ends its process as the system does where memory runs out."""
    if run.fails:
        os.kill(os.getpid(), 9)
    return measure(run)


def until(happened) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError("waited for something that never came")
        time.sleep(0.01)


def study(told: str, workers: int | str = 2, folder: str | Path | None = None) -> Table:
    """Two runs that end by themselves, and two that wait for the file "go"."""
    runs = [Told(lr, told, waits_for="go" if lr > 2 else "") for lr in (1.0, 2.0, 3.0, 4.0)]
    return Table("told", "Does it resume?", "", rows=run_all(measure, runs, workers, folder, "told"))
