"""The claims about LoRA's relatives and the methods that are no ΔW: the lesson's table, and what each paper says of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..harness.paired import forgotten_when, paired_differences, verdict
from ..harness.table import Claim, Table, mean
from .lesson import LESSON, QUANTITIES, beside_ours, markdown, ratio_of_B
from .settings import R

NEEDED = ("comparison", "comparison_smollm2", "method_costs", "method_costs_smollm2")
NAMES = {"share": "parameters trained", "latency": "a token's time", "quality": "of full's gain"}
STUDY = "`lora_np/studies/methods/comparison.py`, notebook 09"
PROMISES = {  # method → (what its paper says of it, the paper)
    "lora+": ("LoRA+ is 1 to 2 % better and up to twice as fast", "Hayou et al. 2024"),
    "dora": ("DoRA is better than LoRA", "Liu et al. 2024"),
    "pissa": ("PiSSA converges faster than LoRA", "Meng et al. 2024"),
    "vera": ("VeRA trains ten times fewer parameters at the same quality", "Kopiczko et al. 2023"),
    "lora-fa": ("LoRA-FA saves activation memory without losing quality", "Zhang et al. 2023"),
}


def on_methods(tables: Mapping[str, Table]) -> list[Claim]:
    """For README's table."""
    compared, costs = tables["comparison"], tables["method_costs"]
    fa, lora = (costs.where(method=name)[0] for name in ("lora-fa", "lora"))
    vera, of_lora = (compared.where(phase="seeds", method=name)[0]["trainable"] for name in ("vera", "lora"))
    ratio = ratio_of_B(compared.where(method="lora+")[0])
    came_out = {method: against_lora(compared, method) for method in PROMISES}
    came_out["lora+"] += f"; rates of A and B 1 : {ratio:g}, A's swept"
    came_out["vera"] = f"{of_lora / vera:.1f} times fewer here ({vera:,} for {of_lora:,}); {came_out['vera']}"
    came_out["lora-fa"] = (
        f"a step's peak is {fa['peak_bytes'] / lora['peak_bytes']:.2f} of LoRA's; {came_out['lora-fa']}"
    )
    checked = {"lora-fa": f"`test_lora_fa_keeps_n_r_numbers_in_place_of_n_in`; {STUDY}"}
    return [
        *of_the_lesson(tables),
        ("LoRA forgets less", "Biderman et al. 2024", forgetting(compared), STUDY),
        *((*PROMISES[method], found, checked.get(method, STUDY)) for method, found in came_out.items()),
        (
            "Adam is invariant under (α/(pq), A·p, lr_A·p, lr_B·q)",
            "Schulman et al. 2025",
            "to the bit, where p and q are powers of two and ε is so small that it is rounded away",
            "`test_adam_trains_the_same_model_when_factors_and_rates_are_scaled_by_powers_of_two`, notebook 09",
        ),
        (
            "What PiSSA leaves in the base has the tail of W's singular values",
            "Meng et al. 2024, §3",
            "to 1e-12 in float64, and at the start the model is the base",
            "`test_what_pissa_leaves_has_the_tail_of_the_singular_values`, `test_pissa_at_the_start_is_the_base_to_1e_12`",
        ),
    ]


def of_the_lesson(tables: Mapping[str, Table]) -> list[Claim]:
    """A row for each method of the lesson's table, "tiny" and then SmolLM2."""
    suffixes = {"tiny": "", "SmolLM2-135M": "_smollm2"}
    found = {  # (model, method, quantity) → the row
        (model, row["method"], row["quantity"]): row
        for model, suffix in suffixes.items()
        for row in beside_ours(tables[f"comparison{suffix}"], tables[f"method_costs{suffix}"])
    }

    def said(*key: str) -> str:
        name, (_, say) = NAMES[key[-1]], QUANTITIES[key[-1]]
        return f"{name} {say(found[key]['ours'])} ({found[key]['verdict']})" if key in found else f"{name} not measured"

    rows = []
    for method, lesson in LESSON.items():
        label = tables["comparison"].settings["labels"][method]
        claim = f"{label}: {lesson['share'].words} trained, latency {lesson['latency'].words}, {lesson['quality'].words} of quality"
        ours = "; ".join(f"{model}: " + ", ".join(said(model, method, q) for q in NAMES) for model in suffixes)
        rows.append((claim, "the lesson", ours, "`lora_np/studies/methods/lesson.py`, notebook 09"))
    return rows


def forgetting(compared: Table) -> str:
    """LoRA's end, full fine-tuning's path where it had learned as much, and both at the next smaller rate that was tried."""
    learned, forgotten = {}, {}
    for method in ("full", "lora"):
        runs = compared.where(phase="seeds", method=method)
        learned[method] = compared.settings["base_loss"] - curve(runs, "heldout")
        forgotten[method] = curve(runs, "prose") - compared.settings["base_prose"]
    reached, lost = learned["lora"][-1], forgotten["lora"][-1]
    alike = forgotten_when(learned["full"], forgotten["full"], reached)
    word = "no" if alike is not None and lost >= alike else "yes"
    on_the_way = f"where full fine-tuning has learned as much as LoRA it has forgotten {alike or 0:.3f}"
    if alike is None:
        on_the_way = "full fine-tuning never learns as much as LoRA"
    return (
        f"{word}: on tiny, in nats a byte, LoRA r = {R} learns {reached:.3f} of code and forgets {lost:.3f} of prose, full "
        f"fine-tuning {learned['full'][-1]:.3f} and {forgotten['full'][-1]:.3f}; {on_the_way}{at_a_smaller_rate(compared)}"
    )


def at_a_smaller_rate(compared: Table) -> str:
    """What the sweeps show just below each one's best rate, if both went there: the rate was chosen by what is learned alone."""
    said = []
    for method, name in (("lora", "LoRA"), ("full", "full fine-tuning")):
        best = compared.where(phase="seeds", method=method)[0]["lr"]
        below = [row for row in compared.where(phase="sweep", method=method) if row["lr"] < best and row["prose"]]
        if not below:
            return ""
        row = max(below, key=lambda row: row["lr"])
        learned = compared.settings["base_loss"] - row["final"]
        forgotten = row["prose"][-1] - compared.settings["base_prose"]
        said.append(f"{name} at {row['lr'] / best:g} of its best rate learns {learned:.3f} and forgets {forgotten:.3f}")
    return f". At the next smaller rates that were tried, one seed: {', '.join(said)}"


def against_lora(compared: Table, method: str) -> str:
    """The losses at the end, seed by seed, and when the method was ahead."""
    ours, lora = (compared.where(phase="seeds", method=name) for name in (method, "lora"))
    return (
        f"held-out {mean(ours, 'final'):.3f} at the end against LoRA's {mean(lora, 'final'):.3f} nats a byte, "
        f"{verdict(ours, lora, more='worse', less='better')}; ahead of it with every seed {ahead(compared, method)}"
    )


def ahead(compared: Table, method: str) -> str:
    """The steps after which the held-out loss lay below LoRA's with every seed, in words."""
    ours, lora = (compared.where(phase="seeds", method=name) for name in (method, "lora"))
    steps, found = ours[0]["steps"], []
    for i, step in enumerate(steps):
        here, there = ([{"seed": row["seed"], "loss": row["heldout"][i]} for row in rows] for rows in (ours, lora))
        if step and max(paired_differences(here, there, "loss")) < 0:
            found.append(f"{step}")
    return f"after {', '.join(found)} of {steps[-1]} steps" if found else "nowhere"


def promises_markdown(compared: Table) -> str:
    """Each promise beside what came out, as Markdown: when the held-out loss was below LoRA's, and how it ended."""
    lora = compared.where(phase="seeds", method="lora")
    lines = []
    for method, (promised, paper) in PROMISES.items():
        end = verdict(compared.where(phase="seeds", method=method), lora, more="worse", less="better")
        lines.append([f"{promised} ({paper})", ahead(compared, method), end])
    return markdown(["promised", "ahead of LoRA with every seed", "at the end, seed by seed (nats a byte)"], lines)


def curve(runs: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """The mean over seeds at each evaluation."""
    return np.mean([row[key] for row in runs], axis=0)
