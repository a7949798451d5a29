"""The claims that SmolLM2-135M was asked about: what LoRA learns, forgets and costs beside full fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from ..harness.paired import verdict
from ..harness.table import Claim, Table, mean

NEEDED = ("finetuning",)


def on_a_real_model(tables: Mapping[str, Table]) -> list[Claim]:
    """For README's table."""
    table, study = tables["finetuning"], "`lora_np/studies/finetuning/study.py`, notebook 10"
    was = table.settings["before"]
    full_runs, lora_runs = (table.where(phase="seeds", method=method) for method in ("full", "lora"))
    full, lora = full_runs[0], lora_runs[0]
    learned, forgotten = (
        f"({was[key]:.3f} → {mean(lora_runs, key):.3f}, full {mean(full_runs, key):.3f})" for key in ("final", "prose")
    )
    lower = [row for row in table.where(phase="sweep", method="full") if row["lr"] < full["lr"]]
    below = max(lower, key=lambda row: row["lr"])
    swept = [sorted({row["lr"] for row in table.where(phase="sweep", method=m)}) for m in ("full", "lora")]
    grid_step = max(high / low for rates in swept for low, high in itertools.pairwise(rates))
    time, memory = (table.settings[key]["lora"] / table.settings[key]["full"] for key in ("step_seconds", "peak_bytes"))
    return [
        (
            "LoRA learns less and forgets less",
            "Biderman et al. 2024",
            f"SmolLM2-135M learning a voice, nats a token, LoRA r = {lora['r']} beside full fine-tuning: on held-out answers it "
            f"learns {verdict(lora_runs, full_runs, 'final', 'less', 'more')} {learned}; on other prose it forgets "
            f"{verdict(lora_runs, full_runs, 'prose', 'more', 'less')} {forgotten}. The rate decides more: "
            f"full ends at {ends(below)}, at {ends(full)} (seed {full['seed']})",
            study,
        ),
        (
            "… and its learning rate is ten times as large",
            "Schulman et al. 2025",
            f"{lora['lr'] / full['lr']:.3g} times full fine-tuning's {full['lr']:g}, with r = {lora['r']} and α = 2r; one seed, on "
            f"grids with steps of up to {grid_step:.2g}, so no finer than that",
            study,
        ),
        (
            "… and its step is cheaper",
            "Hu et al. 2021, §4.2",
            f"{time:.2f}× the time of a full step, and {memory:.2f}× its memory, the base's weights not counted",
            study,
        ),
    ]


def ends(run: Mapping[str, Any]) -> str:
    """Both losses of a run, and its rate."""
    return f"{run['final']:.3f} and {run['prose']:.3f} with {run['lr']:g}"
