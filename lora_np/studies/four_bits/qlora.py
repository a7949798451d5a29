"""Does an adapter learn as much over a base in four bits?

The study compares the losses of LoRA and QLoRA, which differ only in the base.

The study repeats the LoRA runs of two other studies as QLoRA runs: with the same seeds, but over a base in NF4 with
double quantisation. In these runs "tiny" learns code (harness/tiny_task.py), and SmolLM2-135M learns a style
(harness/voice_task.py). LoRA and QLoRA use the same learning rate, which is the best rate of LoRA.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ... import Transformer, evaluate, quantize_model
from ..harness import tiny_task, voice_task
from ..harness.paired import of_both
from ..harness.runs import finished, run_all
from ..harness.table import Table
from ..harness.workers import Workers

QUESTION = "Does an adapter learn as much over a base in four bits?"


class OverFourBits:
    """Mixin for a run over a quantised base: the linear layers are rounded to `quant_type`."""

    quant_type: str

    def original_model(self) -> Transformer:
        """Return the base in floating point."""
        return super().base_model()  # type: ignore[misc]  # the other parent class has it

    def base_model(self) -> Transformer:
        """Return the base with its linear layers in four bits."""
        return quantize_model(self.original_model(), self.quant_type)


@dataclass(frozen=True)
class QuantizedRun(OverFourBits, tiny_task.Run):
    """One training run over a quantised "tiny"."""

    quant_type: str = "nf4"


@dataclass(frozen=True)
class QuantizedFineTuning(OverFourBits, voice_task.FineTuning):
    """One run over a quantised SmolLM2-135M."""

    quant_type: str = "nf4"


def on_tiny(
    measured: Table,
    r: int = 8,
    quant_types: Sequence[str] = ("nf4", "fp4", "int4"),
    seeds: Collection[int] | None = None,
    workers: Workers = 2,
    folder: str | Path | None = None,
) -> Table:
    """Train QLoRA on the model "tiny".

    Return a table of the QLoRA runs and of the LoRA runs of rank r in the table `convergence`. The columns are
    `quant_type`, `seed`, `lr`, `r`, `steps`, `heldout` and `final`. `quant_type` is None for LoRA. With NF4 there is
    one QLoRA run per seed (all seeds, or only `seeds`). With each other type there is one QLoRA run, with the first
    seed. The settings have the losses before training in nats per byte: "base_loss" of the base, and "quantized_loss"
    of each quantised base.
    """
    lora = measured.where(phase="seeds", method="lora", r=r, target_modules="all-linear")
    lora = [row for row in lora if seeds is None or row["seed"] in seeds]
    of_each = {t: lora if t == "nf4" else lora[:1] for t in quant_types}
    runs = [over_four_bits(QuantizedRun, row, t) for t, rows in of_each.items() for row in rows]
    base, judging = runs[0].base, tiny_task.heldout_batches()
    rows = run_all(tiny_task.measure, runs, workers, folder, "QLoRA", tiny_task.shared(base))
    losses = {t: evaluate(replace(runs[0], quant_type=t).base_model(), judging) for t in quant_types}
    settings = {"base": base, "r": r, "base_loss": measured.settings["base_loss"], "quantized_loss": losses}
    return _table("qlora_tiny", settings, lora, rows)


def on_smollm2(measured: Table, folder: str | Path | None = None) -> Table:
    """Return a table for SmolLM2-135M, like the table of `on_tiny`; the LoRA runs come from the table `finetuning`.

    The table also has the columns `prose` and `habit`, as in `voice_task.judge`.
    """
    lora = measured.where(phase="seeds", method="lora")
    runs = [over_four_bits(QuantizedFineTuning, row, "nf4") for row in lora]
    rows = run_all(voice_task.measure, runs, 1, folder, "QLoRA", voice_task.shared(runs[0]))
    _, judging = voice_task.heldout(runs[0])
    settings = {"base": runs[0].model, "r": runs[0].r, "base_loss": measured.settings["before"]["final"]}
    settings["quantized_loss"] = {"nf4": evaluate(runs[0].base_model(), judging)}
    return _table("qlora_smollm2", settings, lora, rows)


def over_four_bits(kind: type, row: dict[str, Any], quant_type: str = "nf4") -> Any:
    """Return the settings of this LoRA row as a run over a quantised base: a QuantizedRun or a QuantizedFineTuning."""
    known = {f.name: row[f.name] for f in fields(kind) if f.name in row}
    return kind(**known | {"quant_type": quant_type})


def _table(study: str, settings: dict[str, Any], lora: list[dict], rows: list[dict]) -> Table:
    kept = ("r", "lr", "seed", "steps", "heldout", "final", "prose", "habit")
    seconds, command = sum(row["seconds"][-1] for row in finished(rows)), f"python -m lora_np study {study}"
    rows = [{"quant_type": r.get("quant_type")} | {key: r[key] for key in kept if key in r} for r in [*lora, *rows]]
    return Table(study, QUESTION, command, settings, rows, seconds=seconds)


def means(table: Table) -> dict[str | None, float]:
    """Return the mean final losses of LoRA (key None) and QLoRA (key "nf4"), over the seeds that both methods have."""
    finals = of_both(table.where(quant_type=None), table.where(quant_type="nf4"))
    return {quant_type: statistics.mean(each) for quant_type, each in zip((None, "nf4"), finals, strict=True)}
