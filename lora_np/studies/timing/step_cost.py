"""What does a training step cost? Seconds and peak memory of full fine-tuning and of LoRA on "tiny", side by side."""

from __future__ import annotations

import statistics
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ... import costs
from ...nn import Module
from ...training import AdamW, Batch, train
from ..harness.table import Table
from ..harness.tiny_task import Run

METHODS = (Run("full", 0.0), Run("lora", 0.0, 8, "all-linear"), Run("lora", 0.0, 8, "attention"))


def step_cost(methods: Sequence[Run] = METHODS, repeats: int = 7, steps: int = 5) -> Table:
    """Rows {method, r, target_modules, seconds, peak_bytes, trainable} for a step of `run.batch_size` × `run.seq_len` tokens.

    seconds: the median over `repeats` of one step's time, the methods taking turns so that a noisy machine hits all alike.
    peak_bytes: what tracemalloc sees at most in training, from building what is trainable on: gradients, optimizer state,
    activations and temporaries, but not the base's weights, which all methods hold alike.
    """
    started, rows, running = time.perf_counter(), [], []
    for run in methods:
        window = np.random.default_rng(0).integers(0, 256, (run.batch_size, run.seq_len + 1))
        batches = [(window[:, :-1], window[:, 1:])]
        model, optimizer = run.model(), AdamW(lr=1e-4)
        peak = training_peak(model, batches)
        trainable = sum(p.value.size for _, p in model.named_parameters() if p.trainable)
        who = {"method": run.method, "r": run.r, "target_modules": run.target_modules}
        rows.append(who | {"peak_bytes": peak, "trainable": trainable})
        running.append((model, batches, optimizer, []))
    for _ in range(repeats):
        for model, batches, optimizer, times in running:
            history = train(model, batches, optimizer, steps=steps, progress=False)
            times.append(history.rows[-1]["seconds"] / steps)
    for row, (*_, times) in zip(rows, running, strict=True):
        row["seconds"] = statistics.median(times)
    return Table(
        "step_cost",
        "What does a training step cost?",
        "python -m lora_np bench",
        {"batch_size": methods[0].batch_size, "seq_len": methods[0].seq_len, "repeats": repeats, "steps": steps},
        rows,
        seconds=time.perf_counter() - started,
    )


def training_peak(model: Module, batches: Sequence[Batch], workers: int = 1) -> int:
    """The most bytes that tracemalloc sees in two steps of AdamW, and an adapter's own: all but the base's weights."""
    adapter = sum(p.value.nbytes for p in costs.adapter_parameters(model))
    tracemalloc.start()
    try:
        train(model, batches, AdamW(lr=1e-4), steps=2, workers=workers, progress=False)
        return tracemalloc.get_traced_memory()[1] + adapter
    finally:
        tracemalloc.stop()


def timed_alike(measured: Table, cost: Table) -> Table:
    """The convergence table with seconds = steps × the step's cost, timed side by side.

    The runs' own clocks ran at different times of a shared machine, and would compare its moods.
    """

    def seconds(row: dict) -> list[float]:
        step = cost.where(**{key: row[key] for key in ("method", "r", "target_modules")})[0]["seconds"]
        return [n * step for n in row["steps"]]

    return replace(measured, rows=[row | {"seconds": seconds(row)} for row in measured.rows])
