"""Pictures of capacity: bits memorised against trained parameters, and against bits offered."""

from __future__ import annotations

import statistics

import numpy as np
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, FULL, LORA, LORA_DARK, METHOD_COLOURS, PAPER
from ..harness.style import DASHED, HALO, axes_at, label_lines, new_figure, note, picture, thousands
from ..harness.table import Table, groups, mean
from ..harness.words import percent, runs_and_time, semicolons

LINES = (1, 2)  # bits per trained parameter
COLUMNS = "phase method r seed strings trained offered memorised"


def _dots(table: Table) -> str:
    """Return the first part of a subtitle, which explains the dots and the line."""
    seeds = len({row["seed"] for row in table.where(phase="seeds")})
    return f"dots and line: {seeds} seeds and their mean"


@picture(COLUMNS, settings="runs run")
def capacity_chart(table: Table) -> Figure:
    """Draw the bits memorised against the trained parameters, for LoRA at each rank and for full fine-tuning.

    Parameters
    ----------
    table : Table
        The result of the study "capacity".

    Returns
    -------
    matplotlib.figure.Figure
        Two logarithmic axes with lines at 1 and 2 bits per parameter. LoRA is cyan, and full fine-tuning is coral. A
        dot is one seed, and a ring is a run of the first seed with half the steps. The dash is the mean of the runs
        with more strings. If a dot is above its ring, the second half of the steps adds bits. All numbers are lower
        bounds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = capacity_chart(Table.load("figures/data/capacity.json"))
    >>> figure.axes[0].get_xlabel()
    'trained parameters'
    """
    rows, half = table.where(phase="seeds"), table.where(phase="half")
    full, by_rank = table.where(phase="seeds", method="full"), groups(table.where(phase="seeds", method="lora"), "r")
    shares = [statistics.mean(run["memorised"] / run["trained"] for run in runs) for runs in by_rank.values()]
    more = _offered_more(table)
    title = f"At every rank, LoRA memorises at least {min(shares):.1f} bits per trained parameter"
    marks = f"{_dots(table)}; rings: runs with half the steps; short bar: runs with more training strings"
    figure = new_figure(9, 4.9, title, f"{marks}\n{runs_and_time(table)}")
    ax = axes_at(figure, 0.95, 0.7, 5.6, 3.1, xscale="log", yscale="log")
    ax.grid(False, axis="x")
    trained = np.array([row["trained"] for row in rows], float)
    across = np.array([trained.min() / 1.5, trained.max() * 1.5])
    for bits in LINES:
        ax.plot(across, bits * across, color=FROZEN, lw=1.4, ls=DASHED, zorder=1.5)
    for row in half:
        colour = METHOD_COLOURS[row["method"]]
        ax.plot(row["trained"], row["memorised"], "o", mfc=PAPER, mec=colour, mew=1.4, ms=7)
    for numbers, held in more:
        ax.plot(numbers, held, "_", color=LORA_DARK, ms=11, mew=2)
    for runs, colour in [*((runs, LORA) for runs in by_rank.values()), (full, FULL)]:
        ax.plot([run["trained"] for run in runs], [run["memorised"] for run in runs], "o", color=colour, ms=5.5, mew=0)
    means = {r: (runs[0]["trained"], mean(runs, "memorised")) for r, runs in by_rank.items()}
    ax.plot(*zip(*means.values(), strict=True), color=LORA, lw=1.6)
    ax.set(xlim=across, ylim=(0.55 * min(row["memorised"] for row in [*rows, *half]), 1.15 * LINES[-1] * across[1]))
    for r, point in means.items():
        note(ax, f"r = {r}", point, (-7, 5), LORA, fontsize=9.5, ha="right", path_effects=HALO)
    ends = [((across[1], bits * across[1]), f"{bits} bit{'s' * (bits > 1)} per parameter", FAINT_INK) for bits in LINES]
    ends.append(((full[0]["trained"], mean(full, "memorised")), "full fine-tuning", FULL))
    label_lines(ax, *zip(*ends, strict=True), align=across[1])
    thousands(ax.xaxis, ax.yaxis)
    ax.set(xlabel="trained parameters", ylabel="bits memorised")
    return figure


def _offered_more(table: Table) -> list[tuple[float, float]]:
    """Return the number of trained parameters and the mean bits, for each rank that was also trained on more strings."""
    found = []
    for r, offers in groups(table.where(phase="offered"), "r").items():
        largest, runs = list(groups(offers, "offered").items())[-1]
        usual = table.where(phase="seeds", method="lora", r=r)
        if usual and largest > usual[0]["offered"]:
            found.append((runs[0]["trained"], mean(runs, "memorised")))
    return found


@picture(COLUMNS, settings="runs run knee")
def memory_knee(table: Table) -> Figure:
    """Draw the bits memorised against the bits offered, for one rank.

    Parameters
    ----------
    table : Table
        The result of the study "capacity".

    Returns
    -------
    matplotlib.figure.Figure
        Each dot is one seed; the line is the mean over the seeds. The dashed line shows a model that holds all
        bits offered. All runs have the same number of steps, so a run with many strings sees each string less often.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = memory_knee(Table.load("figures/data/capacity.json"))
    >>> figure.axes[0].get_xlabel()
    'bits offered'
    """
    r = table.settings["knee"]
    rows = [*table.where(phase="offered"), *table.where(phase="seeds", method="lora", r=r)]
    means = {offered: mean(runs, "memorised") for offered, runs in groups(rows, "offered").items()}
    last = max(means)
    first = max((offered for offered, bits in means.items() if bits > 0.95 * offered), default=min(means))
    most_of, rest_of = percent(means[first] / first), percent(means[last] / last)
    title = f"Rank {r} memorises {most_of} of {first:,.0f} random bits, but only {rest_of} of {last:,.0f}"
    most = max(means.values())
    figure = new_figure(9, 4.5, title, semicolons(_dots(table), runs_and_time(table)))
    right, trained = 1.04 * last, rows[0]["trained"]
    ax = axes_at(figure, 0.95, 0.7, 5.6, 2.9, xlim=(0, right), ylim=(0, 1.3 * most))
    top = min(right, 1.3 * most)
    ax.plot([0, top], [0, top], color=FROZEN, lw=1.4, ls=DASHED)
    note(ax, "all bits offered", (0.86 * top, 0.86 * top), (8, -3), FAINT_INK, fontsize=9.5)
    ax.plot(list(means), list(means.values()), color=LORA)
    ax.plot([row["offered"] for row in rows], [row["memorised"] for row in rows], "o", color=LORA_DARK, ms=5, mew=0)
    label_lines(ax, [(last, means[last])], [f"{means[last] / trained:.2f} bits per parameter"], [LORA], align=right)
    thousands(ax.xaxis, ax.yaxis)
    ax.set(xlabel="bits offered", ylabel="bits memorised")
    return figure
