"""Does an adapter learn as much over a base of four bits? Held-out loss of LoRA and QLoRA, alike in all but the base.

Runs of LoRA from two other studies are repeated, seed by seed, over the base in NF4 with double quantisation: "tiny" turns to
code (harness/tiny_task.py), SmolLM2-135M learns a voice (harness/voice_task.py). The learning rate is LoRA's best.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...quantization import quantize_model
from ...training import evaluate
from ...transformer import Transformer
from ..harness import tiny_task, voice_task
from ..harness.runs import finished, run_all
from ..harness.table import Table
from ..harness.workers import Workers

QUESTION = "Does an adapter learn as much over a base of four bits?"


@dataclass(frozen=True)
class QuantizedRun(tiny_task.Run):
    """One training run over a quantised "tiny"."""

    quant_type: str = "nf4"

    def original_model(self) -> Transformer:
        """The base, in floats."""
        return super().base_model()

    def base_model(self) -> Transformer:
        """The base, its linear layers in four bits."""
        return quantize_model(self.original_model(), self.quant_type)


@dataclass(frozen=True)
class QuantizedFineTuning(voice_task.FineTuning):
    """One run over a quantised SmolLM2-135M."""

    quant_type: str = "nf4"

    def original_model(self) -> Transformer:
        """The model, in floats."""
        return super().base_model()

    def base_model(self) -> Transformer:
        """The model, its linear layers in four bits."""
        return quantize_model(self.original_model(), self.quant_type)


def on_tiny(
    measured: Table,
    r: int = 8,
    quant_types: Sequence[str] = ("nf4", "fp4", "int4"),
    seeds: Collection[int] | None = None,
    workers: Workers = 2,
    folder: str | Path | None = None,
) -> Table:
    """Rows {quant_type, seed, lr, r, steps, heldout, final}: LoRA of rank r as the table of `convergence` has it, and QLoRA.

    quant_type is None for LoRA. NF4 runs with every seed (of `seeds`), the other types with the first.
    settings: "base_loss", where LoRA starts, and "quantized_loss", type → where QLoRA does, in nats a byte.
    """
    lora = measured.where(phase="seeds", method="lora", r=r, target_modules="all-linear")
    lora = [row for row in lora if seeds is None or row["seed"] in seeds]
    runs = [
        over_four_bits(QuantizedRun, row, quant_type)
        for quant_type in quant_types
        for row in (lora if quant_type == "nf4" else lora[:1])
    ]
    base = runs[0].base
    rows = run_all(tiny_task.measure, runs, workers, folder, "QLoRA", tiny_task.shared(base))
    losses = {
        t: evaluate(QuantizedRun("lora", 0.0, base=base, quant_type=t).base_model(), tiny_task.heldout_batches())
        for t in quant_types
    }
    settings = {"base": base, "r": r, "base_loss": measured.settings["base_loss"], "quantized_loss": losses}
    return _table("qlora_tiny", settings, lora, rows)


def on_smollm2(measured: Table, folder: str | Path | None = None) -> Table:
    """The same of SmolLM2-135M, beside the table of `finetuning`: rows have prose and habit too."""
    lora = measured.where(phase="seeds", method="lora")
    runs = [over_four_bits(QuantizedFineTuning, row, "nf4") for row in lora]
    rows = run_all(voice_task.measure, runs, 1, folder, "QLoRA", voice_task.shared(runs[0]))
    _, judging = voice_task.heldout(runs[0])
    losses = {"nf4": evaluate(runs[0].base_model(), judging)}
    before = measured.settings["before"]["final"]
    settings = {"base": runs[0].model, "r": runs[0].r, "base_loss": before, "quantized_loss": losses}
    return _table("qlora_smollm2", settings, lora, rows)


def over_four_bits(kind: type, row: dict[str, Any], quant_type: str = "nf4") -> Any:
    """The LoRA run that made this row, repeated over a quantised base: a QuantizedRun or a QuantizedFineTuning."""
    known = {f.name: row[f.name] for f in fields(kind) if f.name in row}
    return kind(**known | {"quant_type": quant_type})


def _table(study: str, settings: dict[str, Any], lora: list[dict], rows: list[dict]) -> Table:
    kept = ("r", "lr", "seed", "steps", "heldout", "final", "prose", "habit")
    finished(rows)
    return Table(
        study,
        QUESTION,
        f"python -m lora_np study {study}",
        settings,
        [
            {"quant_type": row.get("quant_type")} | {key: row[key] for key in kept if key in row}
            for row in [*lora, *rows]
        ],
        seconds=sum(row["seconds"][-1] for row in rows),
    )


def means(table: Table) -> dict[str | None, float]:
    """None (LoRA) and "nf4" → the mean final loss over the seeds that both have."""
    lora, qlora = ({row["seed"]: row["final"] for row in table.where(quant_type=t)} for t in (None, "nf4"))
    seeds = lora.keys() & qlora.keys()
    return {t: statistics.mean(finals[s] for s in seeds) for t, finals in ((None, lora), ("nf4", qlora))}
