"""What fits into a rank: bits memorised against numbers trained, and against bits offered."""

from __future__ import annotations

import statistics

import numpy as np
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, FULL, LORA, LORA_DARK, METHOD_COLOURS, PAPER
from ..harness.style import DASHED, HALO, axes_at, label_lines, new_figure, note, picture, thousands
from ..harness.table import Table, groups, mean
from ..harness.words import percent, runs_and_time, semicolons

LINES = (1, 2)  # bits a trained number
COLUMNS = "phase method r seed strings trained offered memorised"


def _measured(table: Table) -> str:
    """The second half of a subtitle: how much was run for the table."""
    seeds = len({row["seed"] for row in table.where(phase="seeds")})
    return semicolons(f"{seeds} seeds, up to {table.settings['run']['max_steps']:,} steps", runs_and_time(table))


@picture(COLUMNS, settings="runs run")
def capacity_chart(table: Table) -> Figure:
    """Bits memorised against numbers trained, both axes logarithmic, beside lines of one and two bits a number.

    A dot is a seed: LoRA cyan, full fine-tuning coral. A ring is the same with half the steps: where dot and ring are apart,
    the training had not come to its end. Each was offered more than 2 bits a number in as many steps, so that a string of
    many was seen less often; full fine-tuning held most of what it was offered. A tick is the most that LoRA held where it was
    offered still more. All are lower bounds, of unequal tightness.
    """
    rows, half = table.where(phase="seeds"), table.where(phase="half")
    full, by_rank = table.where(phase="seeds", method="full"), groups(table.where(phase="seeds", method="lora"), "r")
    shares = [statistics.mean(run["memorised"] / run["trained"] for run in runs) for runs in by_rank.values()]
    more = _offered_more(table)
    most = max([*shares, *(bits / numbers for numbers, bits in more)])
    capped = statistics.mean(row["memorised"] / row["offered"] for row in full)
    title = f"A number that LoRA trains holds at least {min(shares):.1f} to {most:.1f} bits of a random string"
    marks = "a dot is a seed, a ring the first seed with half the steps, a line across: offered more; bounds, no comparison:"
    subtitle = f"{marks}\nfull fine-tuning held {percent(capped)} of all it was offered; {_measured(table)}"
    figure = new_figure(9, 5, title, subtitle)
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
    ends = [((across[1], bits * across[1]), f"{bits} bit{'s' * (bits > 1)} a number", FAINT_INK) for bits in LINES]
    ends.append(((full[0]["trained"], mean(full, "memorised")), "full fine-tuning", FULL))
    label_lines(ax, *zip(*ends, strict=True), align=across[1])
    thousands(ax.xaxis, ax.yaxis)
    ax.set(xlabel="numbers that are trained", ylabel="bits memorised")
    return figure


def _offered_more(table: Table) -> list[tuple[float, float]]:
    """(numbers trained, mean bits) of the largest offer to a rank, where that is more than in the comparison of ranks."""
    found = []
    for r, offers in groups(table.where(phase="offered"), "r").items():
        largest, runs = list(groups(offers, "offered").items())[-1]
        usual = table.where(phase="seeds", method="lora", r=r)
        if usual and largest > usual[0]["offered"]:
            found.append((runs[0]["trained"], mean(runs, "memorised")))
    return found


@picture(COLUMNS, settings="runs run knee")
def memory_knee(table: Table) -> Figure:
    """Bits memorised against bits offered, for one rank: all of them (the dashed line), and then a smaller and smaller share.

    A dot is a seed, the line their mean. As many steps each time, so that of many strings each is seen less often.
    """
    r = table.settings["knee"]
    rows = [*table.where(phase="offered"), *table.where(phase="seeds", method="lora", r=r)]
    means = {offered: mean(runs, "memorised") for offered, runs in groups(rows, "offered").items()}
    *_, before, last = means
    first = max((offered for offered, bits in means.items() if bits > 0.95 * offered), default=min(means))
    title = f"Rank {r} holds {percent(means[first] / first)} of {first:,.0f} bits, {percent(means[last] / last)} of {last:,.0f}"
    most = max(means.values())
    if means[last] == most and most > 1.02 * means[before]:
        title += "; the curve still rises"
    figure = new_figure(9, 4.7, title, f"random strings of 6 bits a symbol; a dot is a seed\n{_measured(table)}")
    right, trained = 1.04 * last, rows[0]["trained"]
    ax = axes_at(figure, 0.95, 0.7, 5.6, 2.9, xlim=(0, right), ylim=(0, 1.3 * most))
    top = min(right, 1.3 * most)
    ax.plot([0, top], [0, top], color=FROZEN, lw=1.4, ls=DASHED)
    note(ax, "all that was offered", (0.86 * top, 0.86 * top), (8, -3), FAINT_INK, fontsize=9.5)
    ax.plot(list(means), list(means.values()), color=LORA)
    ax.plot([row["offered"] for row in rows], [row["memorised"] for row in rows], "o", color=LORA_DARK, ms=5, mew=0)
    label_lines(ax, [(last, means[last])], [f"{means[last] / trained:.2f} bits a trained number"], [LORA], align=right)
    thousands(ax.xaxis, ax.yaxis)
    ax.set(xlabel="bits offered", ylabel="bits memorised")
    return figure
