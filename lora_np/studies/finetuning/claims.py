"""The claims about fine-tuning SmolLM2-135M: what LoRA learns, forgets and costs, compared with full fine-tuning."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..harness.findings import NOISE, Claim, Finding, agrees, is_lower
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
    learns_less = is_lower(paired_differences(runs["full"], runs["lora"]))  # a lower loss of full fine-tuning
    forgets_less = is_lower(paired_differences(runs["lora"], runs["full"], "prose"))
    at_rates = other_rate(table, full, {key: paired_differences(runs["lora"], runs["full"], key) for key in TEXTS})
    swept = [sorted({row["lr"] for row in table.where(phase="sweep", method=m)}) for m in runs]
    grid = max(high / low for rates in swept for low, high in itertools.pairwise(rates))
    factor = lora["lr"] / full["lr"]
    rate = Finding(
        "finetuning.lr_factor",
        factor,
        f"On SmolLM2-135M, the best learning rate of LoRA (r = {lora['r']}, α = 2r) is {factor:.3g} times the best learning rate "
        f"of full fine-tuning ({full['lr']:g}). Neighbouring learning rates of the search differ by a factor of up to {grid:.2g}, "
        "so the ratio of the two best rates is known only up to this factor. Both rates were chosen with one seed.",
        form=".3g",
    )
    time, memory = (
        Finding(
            f"finetuning.cost.{key}",
            table.settings[key]["lora"] / table.settings[key]["full"],
            f"On SmolLM2-135M, a LoRA step takes {table.settings[key]['lora'] / table.settings[key]['full']:.2f} times the {what}.",
            form=".2f",
        )
        for key, what in (
            ("step_seconds", "time of a full fine-tuning step"),
            ("peak_bytes", "memory of a full fine-tuning step (the base's weights are not counted)"),
        )
    )
    return [
        Claim(
            "LoRA learns less and forgets less than full fine-tuning",
            "Biderman et al. 2024",
            agrees(learns_less, forgets_less),
            f"LoRA's loss − full fine-tuning's: answers {learned.number}, prose {forgotten.number} nats per token",
            STUDY,
            (learned, forgotten, at_rates),
        ),
        Claim(
            "On SmolLM2-135M, LoRA's best learning rate is ten times the best learning rate of full fine-tuning",
            "Schulman et al. 2025",
            agrees(10 / grid**0.5 < factor < 10 * grid**0.5),
            f"{rate.number} times",
            STUDY,
            (rate,),
        ),
        Claim(
            "On SmolLM2-135M, a step of LoRA is cheaper than a step of full fine-tuning",
            "Hu et al. 2021, §4.2",
            agrees(time.value < 1 / NOISE, memory.value < 1 / NOISE),
            f"{time.number}× the time, {memory.number}× the memory",
            STUDY,
            (time, memory),
        ),
    ]


def compared(runs: Mapping[str, Sequence[dict[str, Any]]], before: float, key: str) -> Finding:
    """Return the mean difference in one loss between LoRA and full fine-tuning, and the range over the seeds."""
    name, text = TEXTS[key]
    differences = paired_differences(runs["lora"], runs["full"], key)
    sentence = (
        f"SmolLM2-135M learns to answer like a lighthouse keeper. Before fine-tuning, the loss on {text} is {before:.3f} nats per "
        f"token. After fine-tuning, the loss on {text} is {mean(runs['lora'], key):.3f} nats per token with LoRA "
        f"(r = {runs['lora'][0]['r']}) and {mean(runs['full'], key):.3f} with full fine-tuning. "
    ) + verdict(f"LoRA's loss on {text}", "full fine-tuning's loss", runs["lora"], runs["full"], key)
    return Finding(
        f"finetuning.{name}",
        sum(differences) / len(differences),
        sentence,
        "nats per token",
        (min(differences), max(differences)),
        "+.3f",
    )


def other_rate(table: Table, full: Mapping[str, Any], method: Mapping[str, Sequence[float]]) -> Finding:
    """Return full fine-tuning's loss on prose at the best learning rate, minus its loss at the next lower rate.

    If the best rate is the lowest, it is compared with the next higher rate. `method` has, for each loss, the
    differences between LoRA and full fine-tuning, one per seed. The text of the finding compares two effects on each
    loss: the effect of this change of the learning rate, and the largest of the differences in `method`.
    """
    swept = {row["lr"]: row for row in table.where(phase="sweep", method="full") if row["lr"] != full["lr"]}
    other = swept[max((lr for lr in swept if lr < full["lr"]), default=min(swept))]
    effects: dict[str, list[str]] = {}
    for key, (_, text) in TEXTS.items():
        larger = abs(full[key] - other[key]) > max(map(abs, method[key]))
        effects.setdefault("a larger effect" if larger else "no larger effect", []).append(f"the loss on {text}")
    said = [f"For {' and '.join(losses)}, the learning rate has {effect}" for effect, losses in effects.items()]
    return Finding(
        "finetuning.rate",
        full["prose"] - other["prose"],
        f"With full fine-tuning (seed {full['seed']}), SmolLM2-135M learns to answer like a lighthouse keeper. With the learning "
        f"rate {other['lr']:g}, the final loss is {other['final']:.3f} nats per token on the answers and {other['prose']:.3f} on "
        f"other prose. With the learning rate {full['lr']:g}, the final loss is {full['final']:.3f} nats per token on the answers "
        f"and {full['prose']:.3f} on other prose. "
        + " ".join(f"{words} than the choice between LoRA and full fine-tuning." for words in said),
        "nats per token",
        form="+.3f",
    )
