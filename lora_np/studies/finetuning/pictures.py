"""A real language model before and after: what it says, what it learned, and what it forgot."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lora_np.studies.harness.paired import paired
from lora_np.studies.harness.style import (
    FAINT_INK,
    FROZEN,
    FULL,
    INK,
    LORA,
    PAPER,
    axes_at,
    for_text,
    label_lines,
    new_figure,
    picture,
    runs_and_time,
    semicolons,
)
from lora_np.studies.harness.table import Table

COLOURS = {"full": FULL, "lora": LORA}
LINE = 0.165  # inches from one line of text to the next


@picture("method seed answers", settings="before")
def before_after(table: Table, questions: int = 3, longest: int = 230) -> Figure:
    """What the model said to held-out questions, and what it says with the adapter: grey before, cyan after.

    Table: rows {method, seed, answers: [{question, answer}]}, rows of the sweep apart (phase "sweep"); settings {before}
    with its own answers. An answer of more than `longest` letters is cut, with an ellipsis.
    """
    before = table.settings["before"]["answers"]
    after = next(row for row in _final_rows(table) if row["method"] == "lora")["answers"]
    blocks = []
    for one, other in list(zip(before, after, strict=True))[:questions]:
        sides = [_wrapped(text["answer"], longest) for text in (one, other)]
        blocks.append((one["question"], sides, max(len(side) for side in sides)))
    height = 1.35 + sum(LINE * (lines + 2.6) for *_, lines in blocks)
    figure = new_figure(
        9,
        height,
        "The same questions, before and after; nobody trained on them",
        "SmolLM2-135M-Instruct, greedy; LoRA trains the adapter alone",
    )
    axes_at(figure, 0, 0, 9, height).set_axis_off()  # IPython shows no figure that has no axes
    up = height - 1.0
    for x, title, colour in ((0.22, "before", FROZEN), (4.65, "with the adapter", LORA)):
        figure.text(x / 9, up / height, title, color=for_text(colour), fontweight="bold", va="top")
    up -= 2.0 * LINE
    for question, sides, lines in blocks:
        figure.text(0.22 / 9, up / height, question, color=INK, fontweight="bold", fontsize=9.5, va="top")
        up -= 1.25 * LINE
        for x, side, colour in zip((0.22, 4.65), sides, (FROZEN, LORA), strict=True):
            text = "\n".join(side)
            figure.text(x / 9, up / height, text, color=for_text(colour), fontsize=9, va="top", linespacing=1.25)
        up -= LINE * (lines + 1.35)
    return figure


def _wrapped(text: str, longest: int) -> list[str]:
    text = " ".join(text.split()).replace("$", r"\$")
    return textwrap.wrap(text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0] + " …", 60)


@picture("method seed steps heldout final prose habit", settings="before")
def learned_and_forgotten(table: Table) -> Figure:
    """Left, the loss on held-out answers as it falls; right, how far the loss on prose that nobody trained on has risen.

    Left a line is the mean over seeds, its band their range; right a point is a seed, a grey line joins a seed's runs, a short
    bar is the mean; the grey line at 0 is the model as it was. Table: rows {method, seed, steps, heldout, final, prose, habit,
    answers}, rows of the sweep apart (phase "sweep"); settings {before}.
    """
    groups = _groups(table)
    seeds = max(len(rows) for _, rows in groups.values())
    before = table.settings["before"]
    how = f"mean and range of {seeds} seeds, right each seed" if seeds > 1 else "one seed"
    subtitle = f"SmolLM2-135M, each at its own best rate; {how}"
    figure = new_figure(9, 4.8, _finding(table), semicolons(subtitle, runs_and_time(table)))
    ax = axes_at(figure, 0.75, 0.85, 3.15, 2.75)
    ends, labels, colours = [], [], []
    for label, (colour, rows) in groups.items():
        curves = np.array([row["heldout"] for row in rows], float)
        steps = rows[0]["steps"]
        ax.plot(steps, curves.mean(axis=0), color=colour, marker="o", ms=4)
        ax.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=colour, alpha=0.18, lw=0)
        ends.append((steps[-1], curves.mean(axis=0)[-1]))
        labels.append(f"{label}  {ends[-1][1]:.2f}")
        colours.append(colour)
    ax.set_title("held-out answers")
    ax.set_xlabel("training step")
    ax.set_ylabel("loss (nats a token)")
    ax.set_xlim(0, max(end[0] for end in ends))
    label_lines(ax, ends, labels, colours)

    ax = axes_at(figure, 6.25, 0.85, 2.55, 2.75)
    worse = {
        label: {row["seed"]: row["prose"] - before["prose"] for row in rows} for label, (_, rows) in groups.items()
    }
    for seed in {seed for changes in worse.values() for seed in changes}:
        joined = [(place, changes[seed]) for place, changes in enumerate(worse.values()) if seed in changes]
        ax.plot(*zip(*joined, strict=True), color=FROZEN, lw=1.4, zorder=2)
    for place, (label, (colour, _)) in enumerate(groups.items()):
        changes = list(worse[label].values())
        ax.plot([place] * len(changes), changes, color=colour, marker="o", ms=7, mec=PAPER, mew=0.6, ls="", zorder=3)
        if len(changes) > 1:
            ax.plot([place - 0.22, place + 0.22], [np.mean(changes)] * 2, color=colour, lw=2.4, zorder=2.5)
    ax.axhline(0, color=FROZEN, lw=2)
    all_ = [0.0, *(change for changes in worse.values() for change in changes.values())]
    span = (max(all_) - min(all_)) or 1.0
    ax.set_ylim(min(all_) - 0.05 * span, max(all_) + 0.12 * span)
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.set_xticks(range(len(groups)), [f"{label}\n{_kept(rows)}" for label, (_, rows) in groups.items()])
    ax.set_xlabel("method, and answers with the log line", color=FAINT_INK)
    ax.set_title("other English prose")
    ax.set_ylabel("loss above the untuned model's")
    return figure


def _kept(rows: list[dict[str, Any]]) -> str:
    """In how many of the answers of all seeds the log line is kept."""
    asked = [len(row["answers"]) for row in rows]
    return f"{round(sum(row['habit'] * n for row, n in zip(rows, asked, strict=True)))} of {sum(asked)}"


def _finding(table: Table) -> str:
    """Whether LoRA learns less than full fine-tuning and forgets more, with every seed."""
    full, *others = (rows for _, rows in _groups(table).values())
    if len(others) != 1 or full[0]["method"] != "full":
        return "What a real model learns, and what it forgets of the rest"
    above = paired(others[0], full)
    learns = "less than" if min(above) > 0 else "more than" if max(above) < 0 else "as much as"
    more = [x > 0 for x in paired(others[0], full, "prose")]
    word = "more" if all(more) else "less" if not any(more) else f"more with {sum(more)} of {len(more)} seeds"
    each = " with each seed" if len(more) > 1 and word in ("more", "less") else ""
    return f"LoRA learns {learns} full fine-tuning, and forgets {word}{each}"


def _groups(table: Table) -> dict[str, tuple[str, list[dict[str, Any]]]]:
    rows = _final_rows(table)
    ranks = sorted({row["r"] for row in rows if row["method"] == "lora"})
    groups = {"full": (FULL, [row for row in rows if row["method"] == "full"])}
    groups |= {
        f"LoRA r = {r}": (LORA, [row for row in rows if row["method"] == "lora" and row["r"] == r]) for r in ranks
    }
    return {label: group for label, group in groups.items() if group[1]}


def _final_rows(table: Table) -> list[dict[str, Any]]:
    return [row for row in table.rows if row.get("phase") != "sweep"]
