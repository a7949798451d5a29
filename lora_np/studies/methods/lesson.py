"""The lesson's comparison of methods, its numbers beside ours: what each says, as an interval, and whether ours lies in it.

"The lesson" is a table as many LoRA tutorials print it (`LESSON`); `RULE` says in words when ours agrees. Where ours was set to
what the lesson says (`CHOSEN`) there is nothing to agree: the verdict is "chosen so".
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..harness.table import Table, mean

POINTS, FACTOR, NOISE, SLIGHT = 0.02, 2, 1.05, 1.10
RULE = f"""The rule is one for all. Each entry stands for an interval:

- "< 1 %": what is below it;
- "about" (~) a share of parameters: from 1/{FACTOR} of it to {FACTOR} times it;
- "about" a share of full fine-tuning's quality: ± {100 * POINTS:g} points;
- "zero" latency: a token takes at most {NOISE:.2f} times the base's; "slight": at most {SLIGHT:.2f}; "added": {NOISE:.2f}
  or more. What is faster adds nothing.

Quality is here the share of full fine-tuning's *gain*, which asks more than a share of its score.

Ours *agrees* where it lies inside, and is *less* or *more* where it does not. It is *chosen so* where it was set to that value
before anything was measured."""


@dataclass(frozen=True)
class Said:
    """What the lesson says of one quantity, and the interval that it stands for."""

    words: str
    low: float
    high: float

    def verdict(self, ours: float) -> str:
        """ "agrees", or whether ours is "less" or "more"."""
        return "less" if ours < self.low else "more" if ours > self.high else "agrees"


def about(share: float) -> Said:
    """A share of parameters: half to twice as much."""
    return Said(f"~{100 * share:g} %", share / FACTOR, share * FACTOR)


def quality(share: float) -> Said:
    """A share of full fine-tuning's quality: ± 2 points."""
    return Said(f"~{100 * share:g} %", share - POINTS, share + POINTS)


SMALL, NO_LATENCY = Said("< 1 %", 0.0, 0.01), Said("zero, merged", 0.0, NOISE)
LESSON: dict[str, dict[str, Said]] = {
    "lora": {"share": SMALL, "latency": NO_LATENCY, "quality": quality(0.99)},
    "qlora": {"share": SMALL, "latency": NO_LATENCY, "quality": quality(0.98)},
    "prefix": {"share": about(0.001), "latency": Said("slight", 0.0, SLIGHT), "quality": quality(0.95)},
    "houlsby": {"share": about(0.03), "latency": Said("added", NOISE, math.inf), "quality": quality(0.97)},
}
CHOSEN = {("houlsby", "share")}  # an adapter is as wide as comes nearest to the lesson's share: methods.HOULSBY_SHARE


def beside_ours(compared: Table, costs: Table | None = None) -> list[dict[str, Any]]:
    """Rows {method, label, quantity, lesson, ours, verdict} of a `comparison`, or of `comparison_smollm2`.

    Quality is the mean share of full fine-tuning's gain. The latency is a token's seconds to the base's, of a `method_costs` of
    the same base: merged where the lesson says so, else as trained. A quantity that was not measured has no row. The verdict is
    "agrees", "less" or "more"; "chosen so" where ours was set to what the lesson says.
    """
    rows, labels = [], (costs.settings.get("labels", {}) if costs else {}) | compared.settings["labels"]
    for method, lesson in LESSON.items():
        cost = next(iter(costs.where(method=method)), {}) if costs else {}
        ours = {"latency": cost.get("merged_token_ratio" if "merged" in lesson["latency"].words else "token_ratio")}
        if runs := compared.where(phase="seeds", method=method):
            ours |= {"share": runs[0]["share"], "quality": mean(runs, "recovered")}
        for quantity, said in lesson.items():
            if (found := ours.get(quantity)) is not None:
                verdict = "chosen so" if (method, quantity) in CHOSEN else said.verdict(found)
                row = {"method": method, "label": labels[method], "quantity": quantity}
                rows.append(row | {"lesson": said.words, "ours": found, "verdict": verdict})
    return rows


def summary(compared: Table, costs: Table | None = None) -> list[dict[str, Any]]:
    """One row a method: {method, label, lr, lr_of_B, trainable, share, state_bytes, recovered, least, most, forgotten, …}.

    lr is the best rate, and lr_of_B that of B: another one by LoRA+. recovered is the mean over seeds, least and most its range.
    With a `method_costs` also step_ratio, peak_bytes, prompt_ratio, token_ratio and the merged ones.
    """
    rows = []
    for method, label in compared.settings["labels"].items():
        runs = compared.where(phase="seeds", method=method)
        first, shares = runs[0], [row["recovered"] for row in runs]
        row = {"method": method, "label": label, "lr": first["lr"], "lr_of_B": first["lr"] * ratio_of_B(first)}
        row |= {key: first.get(key) for key in ("trainable", "share", "state_bytes")}
        row |= {key: mean(runs, key) for key in ("final", "recovered", "forgotten")}
        row |= {"least": min(shares), "most": max(shares)}
        rows.append(row | (next(iter(costs.where(method=method)), {}) if costs else {}))
    return rows


def ratio_of_B(run: Mapping[str, Any]) -> float:
    """B's rate over A's, as a run has it."""
    return json.loads(run.get("how", "{}")).get("lr_ratio", {}).get("lora_B", 1)


def times(ratio: float | None) -> str:
    """1.234 → '1.23×'."""
    return "–" if ratio is None else f"{ratio:.2f}×"


def percent(share: float) -> str:
    """0.0956 → '9.6 %'; two digits of a small one, none after the point of a large one."""
    return f"{100 * share:.{0 if share >= 0.1 else 1 if share >= 0.01 else 2}f} %"


def best_rate(row: Mapping[str, Any]) -> str:
    """The best rate; both, where B has another than A."""
    if row["lr_of_B"] == row["lr"]:
        return f"{row['lr']:.2g}"
    return f"A {row['lr']:.2g}, B {row['lr_of_B']:.2g}"


Columns = dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]]  # heading → (what it needs, how it is said)
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
        lambda row: f"{percent(row['recovered'])} ({percent(row['least'])} to {percent(row['most'])})",
    ),
    "forgotten": ("forgotten", lambda row: f"{row['forgotten']:+.3f}"),
}


def costs_markdown(compared: Table, costs: Table) -> str:
    """What each method trains, keeps and takes, as a table in Markdown; columns that the tables do not have are left out."""
    return _methods_markdown(summary(compared, costs), COSTS)


def results_markdown(compared: Table) -> str:
    """The best rate of each method, and what it learned and forgot with it, as a table in Markdown."""
    return _methods_markdown(summary(compared), RESULTS)


def _methods_markdown(rows: Sequence[Mapping[str, Any]], columns: Columns) -> str:
    there = {heading: say for heading, (needed, say) in columns.items() if rows[0].get(needed) is not None}
    return markdown(list(there), [[say(row) for say in there.values()] for row in rows])


QUANTITIES = {  # of the lesson → (how it is called, how it is said)
    "share": ("parameters trained", percent),
    "latency": ("a token, to the base's", times),
    "quality": ("of full fine-tuning's gain", percent),
}


def lesson_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `beside_ours` found, as Markdown: a line a method and a quantity."""
    lines = []
    for row in rows:
        words, say = QUANTITIES[row["quantity"]]
        lines.append([row["label"], words, row["lesson"], say(row["ours"]), row["verdict"]])
    return markdown(["method", "", "the tutorials' table", "here", "verdict"], lines)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = ["---"] * len(columns)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])
