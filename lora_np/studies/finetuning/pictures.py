"""A real language model before and after: what it says, what it learned, and what it forgot."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, FULL, INK, LORA, PAPER, for_text
from ..harness.paired import paired_differences
from ..harness.style import axes_at, label_lines, new_figure, picture
from ..harness.table import Table, groups
from ..harness.words import runs_and_time, semicolons

LINE = 0.165  # inches from one line of text to the next
Groups = dict[str, tuple[str, list[dict[str, Any]]]]  # label → (colour, the runs of all seeds)


@picture("method seed answers", settings="before")
def before_after(table: Table, questions: int = 3, longest: int = 230) -> Figure:
    """What the model said to held-out questions, and what it says with the adapter: grey before, cyan after.

    settings["before"] has its own answers. An answer of more than `longest` letters is cut, with an ellipsis. Rows of the
    sweep (phase "sweep") are left out.
    """
    before, (_, after) = table.settings["before"]["answers"], next(reversed(_groups(table).values()))
    blocks = []
    for one, other in list(zip(before, after[0]["answers"], strict=True))[:questions]:
        sides = [_wrapped(text["answer"], longest) for text in (one, other)]
        blocks.append((one["question"], sides, max(len(side) for side in sides)))
    height = 1.35 + sum(LINE * (lines + 2.6) for *_, lines in blocks)
    title = "The same questions, before and after; nobody trained on them"
    figure = new_figure(9, height, title, "SmolLM2-135M-Instruct, greedy; LoRA trains the adapter alone")
    ax = axes_at(figure, 0, 0, 9, height, xlim=(0, 9), ylim=(0, height))
    ax.set_axis_off()
    columns, up = ((0.22, "before", FROZEN), (4.65, "with the adapter", LORA)), height - 1.0
    for x, name, colour in columns:
        ax.text(x, up, name, color=for_text(colour), fontweight="bold", va="top")
    up -= 2.0 * LINE
    for question, sides, lines in blocks:
        ax.text(0.22, up, question, color=INK, fontweight="bold", fontsize=9.5, va="top")
        up -= 1.25 * LINE
        for (x, _, colour), side in zip(columns, sides, strict=True):
            ax.text(x, up, "\n".join(side), color=for_text(colour), fontsize=9, va="top", linespacing=1.25)
        up -= LINE * (lines + 1.35)
    return figure


def _wrapped(text: str, longest: int) -> list[str]:
    text = " ".join(text.split()).replace("$", r"\$")
    return textwrap.wrap(text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0] + " …", 60)


@picture("method seed steps heldout final prose habit", settings="before")
def learned_and_forgotten(table: Table) -> Figure:
    """Left, the loss on held-out answers as it falls; right, how far the loss on prose that nobody trained on has risen.

    Left a line is the mean over seeds, its band their range; right a point is a seed, a grey line joins a seed's runs, a short
    bar is the mean; the grey line at 0 is the model as it was. Rows of the sweep (phase "sweep") are left out.
    """
    runs = _groups(table)
    seeds = max(len(rows) for _, rows in runs.values())
    how = f"mean and range of {seeds} seeds, right each seed" if seeds > 1 else "one seed"
    subtitle = semicolons(f"SmolLM2-135M, each at its own best rate; {how}", runs_and_time(table))
    figure = new_figure(9, 4.8, _finding(runs), subtitle)
    _curves(axes_at(figure, 0.75, 0.85, 3.15, 2.75, title="held-out answers"), runs)
    ax = axes_at(figure, 6.25, 0.85, 2.55, 2.75, title="other English prose")
    _forgotten(ax, runs, table.settings["before"]["prose"])
    return figure


def _curves(ax: Axes, runs: Groups) -> None:
    ends = []
    for label, (colour, rows) in runs.items():
        curves, steps = np.array([row["heldout"] for row in rows], float), rows[0]["steps"]
        ax.plot(steps, curves.mean(axis=0), color=colour, marker="o", ms=4)
        ax.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, lw=0)
        end = steps[-1], curves.mean(axis=0)[-1]
        ends.append((end, f"{label}  {end[1]:.2f}", colour))
    ax.set(xlabel="training step", ylabel="loss (nats a token)", xlim=(0, max(x for (x, _), *_ in ends)))
    label_lines(ax, *zip(*ends, strict=True))


def _forgotten(ax: Axes, runs: Groups, before: float) -> None:
    worse = {label: {row["seed"]: row["prose"] - before for row in rows} for label, (_, rows) in runs.items()}
    for seed in {seed for changes in worse.values() for seed in changes}:
        joined = [(place, changes[seed]) for place, changes in enumerate(worse.values()) if seed in changes]
        ax.plot(*zip(*joined, strict=True), color=FROZEN, lw=1.4, zorder=2)
    for place, (label, (colour, _)) in enumerate(runs.items()):
        changes = list(worse[label].values())
        ax.plot([place] * len(changes), changes, color=colour, marker="o", ms=7, mec=PAPER, mew=0.6, ls="", zorder=3)
        if len(changes) > 1:
            ax.plot([place - 0.22, place + 0.22], [np.mean(changes)] * 2, color=colour, lw=2.4, zorder=2.5)
    ax.axhline(0, color=FROZEN, lw=2)
    every = [0.0, *(change for changes in worse.values() for change in changes.values())]
    low, high = min(every), max(every)
    ax.set_ylim(low - 0.05 * (high - low or 1.0), high + 0.12 * (high - low or 1.0))
    ax.set(xlim=(-0.6, len(runs) - 0.4), ylabel="loss above the untuned model's")
    ax.set_xticks(range(len(runs)), [f"{label}\n{_kept(rows)}" for label, (_, rows) in runs.items()])
    ax.set_xlabel("method, and answers with the log line", color=FAINT_INK)


def _kept(rows: list[dict[str, Any]]) -> str:
    """In how many of the answers of all seeds the log line is kept."""
    asked = sum(len(row["answers"]) for row in rows)
    return f"{round(sum(row['habit'] * len(row['answers']) for row in rows))} of {asked}"


def _finding(runs: Groups) -> str:
    """Whether LoRA learns less than full fine-tuning and forgets more, with every seed."""
    full, *others = (rows for _, rows in runs.values())
    if len(others) != 1 or full[0]["method"] != "full":
        return "What a real model learns, and what it forgets of the rest"
    above = paired_differences(others[0], full)
    learns = "less than" if min(above) > 0 else "more than" if max(above) < 0 else "as much as"
    more = [x > 0 for x in paired_differences(others[0], full, "prose")]
    word = "more" if all(more) else "less" if not any(more) else f"more with {sum(more)} of {len(more)} seeds"
    each = " with each seed" if len(more) > 1 and word in ("more", "less") else ""
    return f"LoRA learns {learns} full fine-tuning, and forgets {word}{each}"


def _groups(table: Table) -> Groups:
    rows = [row for row in table.rows if row.get("phase") != "sweep"]
    full = {"full": (FULL, [row for row in rows if row["method"] == "full"])}
    lora = groups([row for row in rows if row["method"] == "lora"], "r")
    found = full | {f"LoRA r = {r}": (LORA, runs) for r, runs in lora.items()}
    return {label: group for label, group in found.items() if group[1]}
