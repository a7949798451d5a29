"""A real language model learns a voice: full fine-tuning against LoRA on SmolLM2-135M, and what each forgets.

Both learn the "lighthouse" conversations, each at its own best learning rate. Of the held-out records every other one chooses
the rates and the rest is judged: the loss on the answers, the share of generated answers that keep the voice's habit, and the
loss on English prose that has nothing to do with either.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ...data import conversations
from ...pretrained import load_model, load_tokenizer
from ...training import AdamW, train
from ..harness.runs import at_their_best
from ..harness.table import Table
from ..harness.voice_task import FineTuning, judge, measure, shared
from ..timing.step_cost import training_peak

BASE = FineTuning("full", 0.0)


@dataclass(frozen=True)
class Setting:
    """How much of the study to run."""

    base: FineTuning = BASE
    r: int = 8
    full_lrs: Sequence[float] = (3e-5, 1e-4, 3e-4)
    lora_lrs: Sequence[float] = (1e-3, 3e-3, 1e-2)
    seeds: Sequence[int] = (0, 1, 2)


def finetuning(setting: Setting | None = None, folder: str | Path | None = None) -> Table:
    """Sweep each method's learning rate with the first seed, then run the best with all of them.

    Rows as `measure` gives them, with phase "sweep" or "seeds". settings: "before", what `judge` says of the model as it was;
    "peak_bytes" and "step_seconds" of each method, on one full batch of the longest records, timed in turns. One run at a
    time: its threads share the cores. `folder` keeps each finished run.
    """
    setting = setting or Setting()
    full = replace(setting.base, seed=setting.seeds[0])
    lora = replace(full, method="lora", r=setting.r)
    lrs = {full: setting.full_lrs, lora: setting.lora_lrs}
    found = at_their_best(measure, lrs, setting.seeds, 1, folder, shared(setting.base), factor=3)
    return Table(
        study="finetuning",
        question="What does a real language model gain and forget, fully fine-tuned and with LoRA?",
        command="python -m lora_np study finetuning",
        settings=asdict(setting) | {"before": judge(load_model(setting.base.model), setting.base)} | cost([full, lora]),
        rows=[row | {"phase": "sweep"} for row in found.rates] + [row | {"phase": "seeds"} for row in found.seeds],
        seconds=found.seconds(),
    )


def cost(methods: Sequence[FineTuning], repeats: int = 3) -> dict[str, dict[str, float]]:
    """{"peak_bytes", "step_seconds"} → method → of a training step; the methods take turns, so that noise hits all alike."""
    run = methods[0]
    records = conversations.read(run.data, load_tokenizer(run.model))
    batch = max(conversations.heldout_batches(records, run.batch_size), key=lambda batch: batch[0].size)
    peaks = {m.method: training_peak(m.load(), [batch], m.workers) for m in methods}
    models, times = {m.method: m.load() for m in methods}, {m.method: [] for m in methods}
    for _ in range(1 + repeats):  # the first is to warm up
        for m in methods:
            history = train(models[m.method], [batch], AdamW(lr=1e-6), 2, workers=m.workers, progress=False)
            times[m.method].append(history.rows[-1]["seconds"] / 2)
    return {"peak_bytes": peaks, "step_seconds": {m: statistics.median(seconds[1:]) for m, seconds in times.items()}}
