"""Compare the lesson's table with our numbers: each entry is an interval, and a verdict says if our number is inside.

"The lesson" is a table that many LoRA tutorials print (`LESSON`). The text `RULE` explains when our number agrees with
the lesson. If we set a quantity to the lesson's value (`CHOSEN`), the verdict is "chosen so".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..harness.table import Table, mean
from ..harness.words import percent

POINTS, FACTOR, NOISE, SLIGHT = 0.02, 2, 1.05, 1.10
RULE = f"""One rule decides all verdicts. Each entry of the table becomes an interval:

- "< 1 %" means below 1 %;
- "about" (~) a share of parameters means from 1/{FACTOR} of it to {FACTOR} times it;
- "about" a share of the quality means ± {100 * POINTS:g} points;
- latency "zero" means that a token takes at most {NOISE:.2f} times the base's time, "slight" at most {SLIGHT:.2f} times, "added"
  at least {NOISE:.2f} times.

Quality means here: the share of full fine-tuning's *gain*. This is stricter than the share of its score.

Our number *agrees* if it lies in the interval. Otherwise it is *less* or *more*. *Chosen so* means that we set this quantity to
the table's value before we measured anything."""


@dataclass(frozen=True)
class Entry:
    """One entry of the lesson's table: the words of the entry, and the interval that these words mean."""

    words: str
    low: float
    high: float

    def verdict(self, ours: float) -> str:
        """Return "agrees" if our number is in the interval, else "less" or "more"."""
        return "less" if ours < self.low else "more" if ours > self.high else "agrees"


def about(share: float) -> Entry:
    """Return the entry for a share of parameters; the interval is from half of `share` to twice `share`."""
    return Entry(f"~{100 * share:g} %", share / FACTOR, share * FACTOR)


def quality(share: float) -> Entry:
    """Return the entry for a share of full fine-tuning's quality; the interval is `share` ± 2 percentage points."""
    return Entry(f"~{100 * share:g} %", share - POINTS, share + POINTS)


SMALL, NO_LATENCY = Entry("< 1 %", 0.0, 0.01), Entry("zero, merged", 0.0, NOISE)
LESSON: dict[str, dict[str, Entry]] = {
    "lora": {"share": SMALL, "latency": NO_LATENCY, "quality": quality(0.99)},
    "qlora": {"share": SMALL, "latency": NO_LATENCY, "quality": quality(0.98)},
    "prefix": {"share": about(0.001), "latency": Entry("slight", 0.0, SLIGHT), "quality": quality(0.95)},
    "houlsby": {"share": about(0.03), "latency": Entry("added", NOISE, math.inf), "quality": quality(0.97)},
}
CHOSEN = {("houlsby", "share")}  # the adapter's width is chosen to give the lesson's share (settings.HOULSBY_SHARE)


def lesson_rows(compared: Table, costs: Table | None = None) -> list[dict[str, Any]]:
    """Compare each entry of the lesson's table with our number from a `comparison` or a `comparison_smollm2`.

    The rows have `method`, `label`, `quantity`, `lesson`, `ours`, `here` and `verdict`. Quality is the share of
    full fine-tuning's gain that a method recovers, as a mean over the seeds. Latency is the time per token divided by
    the base's time per token, from a table of `method_costs` with the same base. If the lesson says "merged", the latency
    is the latency of the merged model. A quantity that was not measured has no row. `ours` is our number, and `here` is
    this number as text. The verdict is "agrees", "less", "more" or "chosen so".
    """
    rows, labels = [], (costs.settings.get("labels", {}) if costs else {}) | compared.settings["labels"]
    for method, lesson in LESSON.items():
        cost = next(iter(costs.where(method=method)), {}) if costs else {}
        ours = {"latency": cost.get("merged_token_ratio" if "merged" in lesson["latency"].words else "token_ratio")}
        if runs := compared.where(phase="seeds", method=method):
            ours |= {"share": runs[0]["share"], "quality": mean(runs, "recovered")}
        for quantity, entry in lesson.items():
            if (found := ours.get(quantity)) is not None:
                verdict = "chosen so" if (method, quantity) in CHOSEN else entry.verdict(found)
                row = {"method": method, "label": labels[method], "quantity": quantity, "lesson": entry.words}
                rows.append(row | {"ours": found, "here": QUANTITIES[quantity][1](found), "verdict": verdict})
    return rows


def summary(compared: Table, costs: Table | None = None) -> list[dict[str, Any]]:
    """Summarise a `comparison`: one row per method, with means over the seeds.

    The rows have `method`, `label`, `lr`, `lr_of_B`, `trainable`, `share`, `state_bytes`, `recovered`, `least`, `most`,
    `seeds` and `forgotten`. `lr` is the best learning rate; `lr_of_B` is the learning rate of B, which differs from `lr`
    in LoRA+. `recovered` is the mean over the seeds; `least` and `most` are the lowest and the highest value of a seed.
    A table of `method_costs` adds `step_ratio`, `peak_bytes`, `prompt_ratio`, `token_ratio` and the ratios of merged
    models. With this table, only the methods whose costs were measured have a row.
    """
    rows = []
    for method, label in compared.settings["labels"].items():
        if costs and not costs.where(method=method):
            continue
        runs = compared.where(phase="seeds", method=method)
        first, shares = runs[0], [row["recovered"] for row in runs]
        row = {"method": method, "label": label, "lr": first["lr"], "lr_of_B": first["lr"] * ratio_of_B(first)}
        row |= {key: first.get(key) for key in ("trainable", "share", "state_bytes")}
        row |= {key: mean(runs, key) for key in ("final", "recovered", "forgotten")}
        row |= {"least": min(shares), "most": max(shares), "seeds": len(runs)}
        rows.append(row | (next(iter(costs.where(method=method)), {}) if costs else {}))
    return rows


def ratio_of_B(run: Mapping[str, Any]) -> float:
    """Return the learning rate of B, divided by the learning rate of A, in a run."""
    return json.loads(run.get("how", "{}")).get("lr_ratio", {}).get("lora_B", 1)


def times(ratio: float | None) -> str:
    """Return a ratio as text: '1.23×' for 1.234, and '–' for None, a ratio that was not measured."""
    return "–" if ratio is None else f"{ratio:.2f}×"


def best_rate(row: Mapping[str, Any]) -> str:
    """Return the best learning rate as text, or the learning rates of A and B if they differ."""
    if row["lr_of_B"] == row["lr"]:
        return f"{row['lr']:.2g}"
    return f"A {row['lr']:.2g}, B {row['lr_of_B']:.2g}"


def over_seeds(row: Mapping[str, Any]) -> str:
    """Return the range of the gain over the seeds as text, or "one seed"."""
    return "one seed" if row["seeds"] == 1 else f"{percent(row['least'])} to {percent(row['most'])}"


Columns = dict[
    str, tuple[str, Callable[[Mapping[str, Any]], str]]
]  # heading → (the column that it needs, how to write it)
COSTS: Columns = {
    "method": ("label", lambda row: row["label"]),
    "trained": ("trainable", lambda row: f"{row['trainable']:,}"),
    "share": ("share", lambda row: percent(row["share"])),
    "state": ("state_bytes", lambda row: f"{row['state_bytes'] / 1e6:.2f} MB"),
    "step": ("step_ratio", lambda row: times(row["step_ratio"])),
    "peak": ("peak_bytes", lambda row: f"{row['peak_bytes'] / 1e6:.0f} MB"),
    "prompt": ("prompt_ratio", lambda row: times(row["prompt_ratio"])),
    "token": ("token_ratio", lambda row: times(row["token_ratio"])),
    "token, merged": ("token_ratio", lambda row: times(row["merged_token_ratio"])),
}
RESULTS: Columns = {
    "method": ("label", lambda row: row["label"]),
    "share": ("share", lambda row: percent(row["share"])),
    "best rate": ("lr", best_rate),
    "of full's gain": (
        "recovered",
        lambda row: f"{percent(row['recovered'])} ({over_seeds(row)})",
    ),
    "forgotten": ("forgotten", lambda row: f"{row['forgotten']:+.3f}"),
}


def costs_markdown(compared: Table, costs: Table) -> str:
    """Return a Markdown table of what each method trains and costs; columns that were not measured are left out."""
    return _methods_markdown(summary(compared, costs), COSTS)


def results_markdown(compared: Table) -> str:
    """Return a Markdown table of each method's best learning rate, gain and forgetting."""
    return _methods_markdown(summary(compared), RESULTS)


def _methods_markdown(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    there = {heading: say for heading, (needed, say) in columns.items() if rows[0].get(needed) is not None}
    return markdown(list(there), [[say(row) for say in there.values()] for row in rows])


QUANTITIES = {  # quantity of the lesson → (its name, how to write it)
    "share": ("parameters trained", percent),
    "latency": ("time per token against the base's", times),
    "quality": ("share of full fine-tuning's gain", percent),
}


def lesson_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows of `lesson_rows` as a Markdown table, one line per method and quantity."""
    lines = [[row["label"], QUANTITIES[row["quantity"]][0], row["lesson"], row["here"], row["verdict"]] for row in rows]
    return markdown(["method", "quantity", "the tutorials' table", "here", "verdict"], lines)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rule = ["---"] * len(columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])
