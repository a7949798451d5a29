"""SmolLM2-135M learns the style of a lighthouse keeper, by full fine-tuning and by LoRA: how much does it learn and forget?

Both methods train on the "lighthouse" conversations, each at its own best learning rate. The rates are chosen on half
of the held-out records. On the other half, the study measures the loss on the answers, and the share of generated
answers with the line "Logged at dusk: …". The study also measures the loss on unrelated English prose.
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

QUESTION = "What does a real language model gain and forget, in full fine-tuning and with LoRA?"
BASE = FineTuning("full", 0.0)


@dataclass(frozen=True)
class Setting:
    """The settings of the study: rank, learning rates and seeds."""

    base: FineTuning = BASE
    r: int = 8
    full_lrs: Sequence[float] = (3e-5, 1e-4, 3e-4)
    lora_lrs: Sequence[float] = (1e-3, 3e-3, 1e-2)
    seeds: Sequence[int] = (0, 1, 2)


def finetuning(setting: Setting | None = None, folder: str | Path | None = None) -> Table:
    """Train each method at several learning rates with the first seed, then at the best rate with all seeds.

    The rows are those of `measure`, with the additional column `phase`: "sweep" or "seeds". The setting "before" has
    the measurements of the model before fine-tuning. The settings "peak_bytes" and "step_seconds" have the cost of a
    step of each method, on one batch of the longest records. The runs are not parallel, because each run uses all
    cores. Finished runs are stored in `folder`.
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
    """Return the peak bytes and the seconds of a training step of each method; in each round, all methods are timed."""
    run = methods[0]
    records = conversations.read(run.data, load_tokenizer(run.model))
    batch = [max(conversations.heldout_batches(records, run.batch_size), key=lambda batch: batch[0].size)]
    peaks = {m.method: training_peak(m.load(), batch, m.workers) for m in methods}
    loaded = [(m, m.load()) for m in methods]
    steps = {
        m.method: lambda m=m, model=model: step_seconds(model, batch, AdamW(lr=1e-6), 2, m.workers)
        for m, model in loaded
    }
    seconds = {method: statistics.median(each) for method, each in in_turns(steps, repeats).items()}
    return {"peak_bytes": peaks, "step_seconds": seconds}
