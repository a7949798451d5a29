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

from ... import AdamW, conversations, load_model, load_tokenizer
from ..harness.runs import at_their_best
from ..harness.table import Table
from ..harness.turns import in_turns
from ..harness.voice_task import FineTuning, judge, measure, shared
from ..timing.step_cost import step_seconds, training_peak

QUESTION = "What does a real language model gain and forget, fully fine-tuned and with LoRA?"
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
    base = setting.base
    full = replace(base, seed=setting.seeds[0])
    lora = replace(full, method="lora", r=setting.r)
    lrs = {full: setting.full_lrs, lora: setting.lora_lrs}
    found = at_their_best(measure, lrs, setting.seeds, 1, folder, shared(base), factor=3)
    rows = [row | {"phase": "sweep"} for row in found.rates] + [row | {"phase": "seeds"} for row in found.seeds]
    settings = asdict(setting) | {"before": judge(load_model(base.model), base)} | cost([full, lora])
    command = "python -m lora_np study finetuning"
    return Table("finetuning", QUESTION, command, settings, rows, seconds=found.seconds())


def cost(methods: Sequence[FineTuning], repeats: int = 3) -> dict[str, dict[str, float]]:
    """{"peak_bytes", "step_seconds"} → method → of a training step; the methods take turns, so that noise hits all alike."""
    run = methods[0]
    records = conversations.read(run.data, load_tokenizer(run.model))
    batch = [max(conversations.heldout_batches(records, run.batch_size), key=lambda batch: batch[0].size)]
    peaks = {m.method: training_peak(m.load(), batch, m.workers) for m in methods}
    loaded = [(m, m.load()) for m in methods]
    sides = {
        m.method: lambda m=m, model=model: step_seconds(model, batch, AdamW(lr=1e-6), 2, m.workers)
        for m, model in loaded
    }
    seconds = {method: statistics.median(each) for method, each in in_turns(sides, repeats).items()}
    return {"peak_bytes": peaks, "step_seconds": seconds}
