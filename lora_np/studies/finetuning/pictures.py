"""Pictures of SmolLM2-135M in fine-tuning: its answers before and after, and the losses on answers and on other prose."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
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
def before_after(table: Table, questions: Sequence[int] = (12, 10, 1), longest: int = 230) -> Figure:
    """Write the model's answers before fine-tuning beside its answers with the adapter.

    Parameters
    ----------
    table : Table
        The result of the study "finetuning". settings["before"] has the answers of the untuned model.
    questions : sequence of int
        The indices of the held-out questions to show, from 0.
    longest : int
        The number of characters after which an answer is cut.

    Returns
    -------
    matplotlib.figure.Figure
        Answers before fine-tuning are grey; answers with the adapter are cyan. Runs of the learning-rate sweep are not
        used.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = before_after(Table.load("figures/data/finetuning.json"), questions=[12])
    >>> figure.axes[0].texts[2].get_text()
    'What is your favorite time of day?'
    """
    before, (_, after) = table.settings["before"]["answers"], next(reversed(_groups(table).values()))
    blocks = []
    pairs = list(zip(before, after[0]["answers"], strict=True))
    for one, other in [pairs[i] for i in questions if i < len(pairs)] or pairs:
        answers = [_wrapped(text["answer"], longest) for text in (one, other)]
        blocks.append((one["question"], answers, max(len(lines) for lines in answers)))
    height = 1.35 + sum(LINE * (lines + 2.6) for *_, lines in blocks)
    title = "The adapter teaches a small model a style of answering, but no facts"
    figure = new_figure(
        9,
        height,
        title,
        "SmolLM2-135M-Instruct answers questions that are not in the training data (greedy decoding)",
    )
    ax = axes_at(figure, 0, 0, 9, height, xlim=(0, 9), ylim=(0, height))
    ax.set_axis_off()
    columns, up = ((0.22, "before", FROZEN), (4.65, "with the adapter", LORA)), height - 1.0
    for x, name, colour in columns:
        ax.text(x, up, name, color=for_text(colour), fontweight="bold", va="top")
    up -= 2.0 * LINE
    for question, answers, lines in blocks:
        ax.text(0.22, up, question, color=INK, fontweight="bold", fontsize=9.5, va="top")
        up -= 1.25 * LINE
        for (x, _, colour), answer in zip(columns, answers, strict=True):
            ax.text(x, up, "\n".join(answer), color=for_text(colour), fontsize=9, va="top", linespacing=1.25)
        up -= LINE * (lines + 1.35)
    return figure


def _wrapped(text: str, longest: int) -> list[str]:
    text = " ".join(text.split()).replace("$", r"\$")
    return textwrap.wrap(text if len(text) <= longest else text[:longest].rsplit(" ", 1)[0] + " …", 60)


@picture("method seed steps heldout final prose habit", settings="before")
def learned_and_forgotten(table: Table) -> Figure:
    """Draw the loss on held-out answers over the steps, and how much the loss on other prose rises.

    Parameters
    ----------
    table : Table
        The result of the study "finetuning". Runs of the learning-rate sweep are not drawn.

    Returns
    -------
    matplotlib.figure.Figure
        The left panel has the loss on held-out answers. A line is the mean of a method's seeds, and a band is their
        range. The right panel has the rise of the loss on prose; 0 is the model before fine-tuning. Dots are seeds,
        grey lines join the runs of one seed, and short bars are means.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> learned_and_forgotten(Table.load("figures/data/finetuning.json")).axes[1].get_ylabel()
    'rise of the loss (nats per token)'
    """
    runs = _groups(table)
    seeds = max(len(rows) for _, rows in runs.values())
    left, right = f"left: mean and range of {seeds} seeds", "right: one dot per seed"
    how = semicolons("SmolLM2-135M", left, right) if seeds > 1 else "SmolLM2-135M, one seed"
    subtitle = semicolons(how, runs_and_time(table))
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
    ax.set(xlabel="training step", ylabel="loss (nats per token)", xlim=(0, max(x for (x, _), *_ in ends)))
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
    ax.set(xlim=(-0.6, len(runs) - 0.4), ylabel="rise of the loss (nats per token)")
    ax.set_xticks(range(len(runs)), [f"{label}\n{_kept(rows)}" for label, (_, rows) in runs.items()])
    ax.set_xlabel("answers with the log line", color=FAINT_INK)


def _kept(rows: list[dict[str, Any]]) -> str:
    """Return how many answers, over all seeds, contain the line "Logged at dusk: …", such as "45 of 45"."""
    asked = sum(len(row["answers"]) for row in rows)
    return f"{round(sum(row['habit'] * len(row['answers']) for row in rows))} of {asked}"


def _finding(runs: Groups) -> str:
    """Return the title: whether LoRA learns less than full fine-tuning and forgets more, with every seed."""
    full, *others = (rows for _, rows in runs.values())
    if len(others) != 1 or full[0]["method"] != "full":
        return "What a real model learns and forgets in fine-tuning"
    above = paired_differences(others[0], full)
    learns = "less than" if min(above) > 0 else "more than" if max(above) < 0 else "as much as"
    more = [x > 0 for x in paired_differences(others[0], full, "prose")]
    word = "more" if all(more) else "less" if not any(more) else f"more with {sum(more)} of {len(more)} seeds"
    each = f" with all {len(more)} seeds" if len(more) > 1 and word in ("more", "less") else ""
    return f"LoRA learns {learns} full fine-tuning, and forgets {word}{each}"


def _groups(table: Table) -> Groups:
    rows = [row for row in table.rows if row.get("phase") != "sweep"]
    full = {"full": (FULL, [row for row in rows if row["method"] == "full"])}
    lora = groups([row for row in rows if row["method"] == "lora"], "r")
    found = full | {f"LoRA r = {r}": (LORA, runs) for r, runs in lora.items()}
    return {label: group for label, group in found.items() if group[1]}
