"""The claims that fine-tuning SmolLM2-135M decides: what LoRA learns, forgets and costs, compared with full fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..harness.findings import Claim, Finding, agrees
from ..harness.paired import paired_differences, verdict
from ..harness.table import Table, mean

NEEDED = ("finetuning",)
STUDY = "`lora_np/studies/finetuning/study.py`, notebook 10"
TEXTS = {"final": ("answers", "held-out answers"), "prose": ("prose", "other prose")}


def claims(tables: Mapping[str, Table]) -> list[Claim]:
    """Return the claims about learning, forgetting, the learning rate and the cost of a step."""
    table = tables["finetuning"]
    runs = {method: table.where(phase="seeds", method=method) for method in ("full", "lora")}
    full, lora = runs["full"][0], runs["lora"][0]
    learned, forgotten = (compared(runs, table.settings["before"][key], key) for key in TEXTS)
    less = [min(paired_differences(runs["lora"], runs["full"])) > 0]
    less.append(max(paired_differences(runs["lora"], runs["full"], "prose")) < 0)
    at_rates = rates_decide(table, full)
    swept = [sorted({row["lr"] for row in table.where(phase="sweep", method=m)}) for m in runs]
    grid = max(high / low for rates in swept for low, high in itertools.pairwise(rates))
    factor = lora["lr"] / full["lr"]
    rate = Finding(
        "finetuning.lr_factor",
        factor,
        f"LoRA's best learning rate is {factor:.3g} times {full['lr']:g}, the best rate of full fine-tuning. LoRA has "
        f"r = {lora['r']} and α = 2r. One seed chose the rates on grids with steps of up to {grid:.2g}, so the factor is no "
        "more precise than that.",
        form=".3g",
    )
    time, memory = (
        Finding(
            f"finetuning.cost.{key}",
            table.settings[key]["lora"] / table.settings[key]["full"],
            f"A LoRA step takes {table.settings[key]['lora'] / table.settings[key]['full']:.2f} times the {what}.",
            form=".2f",
        )
        for key, what in (
            ("step_seconds", "time of a full step"),
            ("peak_bytes", "memory of a full step, without the base's weights"),
        )
    )
    return [
        Claim(
            "LoRA learns less and forgets less",
            "Biderman et al. 2024",
            agrees(*less),
            f"LoRA − full: answers {learned.number}, prose {forgotten.number} nats per token",
            STUDY,
            (learned, forgotten, at_rates),
            "SmolLM2-135M learns a voice. " + " ".join(f.sentence for f in (learned, forgotten, at_rates)),
        ),
        Claim(
            "On SmolLM2-135M, LoRA's learning rate is ten times as large",
            "Schulman et al. 2025",
            agrees(10 / grid**0.5 < factor < 10 * grid**0.5),
            f"{rate.number} times",
            STUDY,
            (rate,),
        ),
        Claim(
            "On SmolLM2-135M, a step of LoRA is cheaper",
            "Hu et al. 2021, §4.2",
            agrees(time.value < 1, memory.value < 1),
            f"{time.number}× the time, {memory.number}× the memory",
            STUDY,
            (time, memory),
        ),
    ]


def compared(runs: Mapping[str, Sequence[dict[str, Any]]], before: float, key: str) -> Finding:
    """The mean difference in one loss between LoRA and full fine-tuning, with its range over the seeds."""
    name, text = TEXTS[key]
    differences = paired_differences(runs["lora"], runs["full"], key)
    sentence = (
        f"On {text}, LoRA with r = {runs['lora'][0]['r']} ends at {mean(runs['lora'], key):.3f} nats per token and full "
        f"fine-tuning at {mean(runs['full'], key):.3f}; the untuned model has {before:.3f}. LoRA's loss is "
        f"{verdict(runs['lora'], runs['full'], key)}."
    )
    return Finding(
        f"finetuning.{name}",
        sum(differences) / len(differences),
        sentence,
        "nats per token",
        (min(differences), max(differences)),
        "+.3f",
    )


def rates_decide(table: Table, full: Mapping[str, Any]) -> Finding:
    """How far the two losses of full fine-tuning move when its learning rate is one step lower."""
    lower = [row for row in table.where(phase="sweep", method="full") if row["lr"] < full["lr"]]
    below = max(lower, key=lambda row: row["lr"])
    return Finding(
        "finetuning.rate",
        full["prose"] - below["prose"],
        "The learning rate has a larger effect than the method. Full fine-tuning at the rate "
        f"{below['lr']:g} ends at {below['final']:.3f} on answers and {below['prose']:.3f} on prose; at the rate "
        f"{full['lr']:g} it ends at {full['final']:.3f} and {full['prose']:.3f} (seed {full['seed']}).",
        "nats per token",
        form="+.3f",
    )
