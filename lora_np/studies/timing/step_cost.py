"""What does a training step cost?

The study measures the seconds and the peak memory of full fine-tuning and of LoRA on "tiny".
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ... import costs
from ...nn import Trainable
from ...training import AdamW, Batch, train
from ..harness.table import Table
from ..harness.tiny_task import Run
from ..harness.turns import in_turns

METHODS = (Run("full", 0.0), Run("lora", 0.0, 8, "all-linear"), Run("lora", 0.0, 8, "attention"))


def step_cost(methods: Sequence[Run] = METHODS, repeats: int = 7, steps: int = 5) -> Table:
    """Measure a training step of each method on `run.batch_size` × `run.seq_len` tokens.

    The columns are `method`, `r`, `target_modules`, `seconds`, `peak_bytes` and `trainable`. `seconds` is the median
    time per step over the `repeats`. Each method runs once per round, so other load on the machine slows all methods
    equally. `peak_bytes` is the peak that tracemalloc measures: adapter, gradients, optimizer state, activations and
    temporaries, without the base model's weights.
    """
    started, rows, timed = time.perf_counter(), [], {}
    for run in methods:
        window = np.random.default_rng(0).integers(0, 256, (run.batch_size, run.seq_len + 1))
        batches = [(window[:, :-1], window[:, 1:])]
        model = run.model()
        row = {"method": run.method, "r": run.r, "target_modules": run.target_modules}
        row |= {"peak_bytes": training_peak(model, batches)}
        rows.append(row | {"trainable": sum(p.value.size for _, p in model.named_parameters() if p.trainable)})
        timed[run] = partial(step_seconds, model, batches, AdamW(lr=1e-4), steps)
    for row, seconds in zip(rows, in_turns(timed, repeats, warm_up=0).values(), strict=True):
        row["seconds"] = statistics.median(seconds)
    settings = {"batch_size": methods[0].batch_size, "seq_len": methods[0].seq_len, "repeats": repeats, "steps": steps}
    question, command = "What does a training step cost?", "python -m lora_np bench"
    return Table("step_cost", question, command, settings, rows, seconds=time.perf_counter() - started)


def step_seconds(model: Trainable, batches: Sequence[Batch], optimizer: AdamW, steps: int, workers: int = 1) -> float:
    """Train for `steps` steps and return the seconds per step."""
    return train(model, batches, optimizer, steps, workers=workers, progress=False).rows[-1]["seconds"] / steps


def training_peak(model: Trainable, batches: Sequence[Batch], workers: int = 1) -> int:
    """Return the peak bytes of two AdamW steps, with the adapter but without the base model's weights."""
    adapter = sum(p.value.nbytes for p in costs.adapter_parameters(model))
    tracemalloc.start()
    try:
        train(model, batches, AdamW(lr=1e-4), steps=2, workers=workers, progress=False)
        return tracemalloc.get_traced_memory()[1] + adapter
    finally:
        tracemalloc.stop()


def timed_alike(measured: Table, cost: Table) -> Table:
    """Return the table `measured` with seconds = steps × seconds per step; `cost` has the seconds per step.

    The seconds that were measured during the runs are not comparable, because the load on the machine changed.
    """

    def seconds(row: dict) -> list[float]:
        step = cost.where(**{key: row[key] for key in ("method", "r", "target_modules")})[0]["seconds"]
        return [n * step for n in row["steps"]]

    return replace(measured, rows=[row | {"seconds": seconds(row)} for row in measured.rows])
