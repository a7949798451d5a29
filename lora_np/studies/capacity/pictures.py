"""What fits into a rank: bits memorised against numbers trained, and against bits offered."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lora_np.studies.harness.style import (
    FAINT_INK,
    FROZEN,
    FULL,
    HALO,
    LORA,
    LORA_DARK,
    PAPER,
    axes_at,
    label_lines,
    new_figure,
    note,
    percent,
    picture,
    runs_and_time,
    semicolons,
)
from lora_np.studies.harness.table import Table

LINES = (1, 2)  # bits a trained number
COLUMNS = "phase method r seed strings trained offered memorised"


def _measured(table: Table) -> str:
    """The second half of a subtitle: how much was run for the table."""
    seeds = len({row["seed"] for row in table.where(phase="seeds")})
    return semicolons(f"{seeds} seeds, up to {table.settings['run']['max_steps']:,} steps", runs_and_time(table))


def _methods(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """(label, colour, its runs) by rank, full fine-tuning last."""
    ranks = sorted({row["r"] for row in rows if row["method"] == "lora"})
    found = [(f"r = {r}", LORA, [row for row in rows if row["method"] == "lora" and row["r"] == r]) for r in ranks]
    return [*found, ("full fine-tuning", FULL, [row for row in rows if row["method"] == "full"])]


@picture(COLUMNS, settings="runs run")
def capacity_chart(table: Table) -> Figure:
    """Bits memorised against numbers trained, both axes logarithmic, beside lines of one and two bits a number.

    A dot is a seed: LoRA cyan, full fine-tuning coral. A ring is the same with half the steps: where dot and ring are apart,
    the training had not come to its end. Each was offered more than 2 bits a number in as many steps, so that a string of
    many was seen less often; full fine-tuning held most of what it was offered. A tick is the most that LoRA held where it was
    offered still more. All are lower bounds, of unequal tightness.
    """
    rows, half = table.where(phase="seeds"), table.where(phase="half")
    methods = [(label, colour, runs) for label, colour, runs in _methods(rows) if runs]
    shares = {label: statistics.mean(run["memorised"] / run["trained"] for run in runs) for label, _, runs in methods}
    lora = [share for label, share in shares.items() if label != "full fine-tuning"]
    more = _offered_more(table)
    most = max([*lora, *(bits / numbers for numbers, bits in more)])
    full = [row for row in rows if row["method"] == "full"]
    capped = statistics.mean(row["memorised"] / row["offered"] for row in full)
    figure = new_figure(
        9,
        5,
        f"A number that LoRA trains holds at least {min(lora):.1f} to {most:.1f} bits of a random string",
        "a dot is a seed, a ring the first seed with half the steps, a line across: offered more; bounds, no comparison:\n"
        f"full fine-tuning held {percent(capped)} of all it was offered; {_measured(table)}",
    )
    ax = axes_at(figure, 0.95, 0.7, 5.6, 3.1)
    ax.grid(False, axis="x")
    trained = np.array([row["trained"] for row in rows], float)
    across = np.array([trained.min() / 1.5, trained.max() * 1.5])
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(*across)
    for bits in LINES:
        ax.plot(across, bits * across, color=FROZEN, lw=1.4, ls=(0, (4, 3)), zorder=1.5)
    for row in half:
        colour = FULL if row["method"] == "full" else LORA
        ax.plot(row["trained"], row["memorised"], "o", mfc=PAPER, mec=colour, mew=1.4, ms=7)
    for numbers, bits in more:
        ax.plot(numbers, bits, "_", color=LORA_DARK, ms=11, mew=2)
    for _, colour, runs in methods:
        ax.plot([run["trained"] for run in runs], [run["memorised"] for run in runs], "o", color=colour, ms=5.5, mew=0)
    means = [
        (label, colour, runs[0]["trained"], statistics.mean(run["memorised"] for run in runs))
        for label, colour, runs in methods
    ]
    ax.plot(*zip(*(mean[2:] for mean in means[:-1]), strict=True), color=LORA, lw=1.6)
    ax.set_ylim(0.55 * min(row["memorised"] for row in [*rows, *half]), 1.15 * LINES[-1] * across[1])
    *lora_means, full_mean = means
    for label, colour, x, y in lora_means:
        note(ax, label, (x, y), (-7, 5), colour, fontsize=9.5, ha="right", path_effects=HALO)
    label_lines(
        ax,
        [*((across[1], bits * across[1]) for bits in LINES), full_mean[2:]],
        [*(f"{bits} bit{'s' if bits > 1 else ''} a number" for bits in LINES), full_mean[0]],
        [*[FAINT_INK] * len(LINES), FULL],
        align=across[1],
    )
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    ax.set_xlabel("numbers that are trained")
    ax.set_ylabel("bits memorised")
    return figure


def _offered_more(table: Table) -> list[tuple[float, float]]:
    """(numbers trained, mean bits) of the largest offer to a rank, where that is more than in the comparison of ranks."""
    found = []
    offered = table.where(phase="offered")
    for r in sorted({row["r"] for row in offered}):
        usual = table.where(phase="seeds", method="lora", r=r)
        largest = max(row["offered"] for row in offered if row["r"] == r)
        runs = [row for row in offered if row["r"] == r and row["offered"] == largest]
        if usual and largest > usual[0]["offered"]:
            found.append((runs[0]["trained"], statistics.mean(row["memorised"] for row in runs)))
    return found


@picture(COLUMNS, settings="runs run knee")
def memory_knee(table: Table) -> Figure:
    """Bits memorised against bits offered, for one rank: all of them (the dashed line), and then a smaller and smaller share.

    A dot is a seed, the line their mean. As many steps each time, so that of many strings each is seen less often.
    """
    r = table.settings["knee"]
    rows = [*table.where(phase="offered"), *table.where(phase="seeds", method="lora", r=r)]
    by_offer: dict[float, list[float]] = {}
    for row in sorted(rows, key=lambda row: row["offered"]):
        by_offer.setdefault(row["offered"], []).append(row["memorised"])
    means = {offered: statistics.mean(bits) for offered, bits in by_offer.items()}
    most = max(means, key=lambda offered: means[offered])
    whole = [offered for offered, bits in means.items() if bits > 0.95 * offered]
    first, last = (max(whole) if whole else min(means)), max(means)
    title = f"Rank {r} holds {percent(means[first] / first)} of {first:,.0f} bits, {percent(means[last] / last)} of {last:,.0f}"
    if last == most and means[last] > 1.02 * means[sorted(means)[-2]]:
        title += "; the curve still rises"
    figure = new_figure(9, 4.7, title, f"random strings of 6 bits a symbol; a dot is a seed\n{_measured(table)}")
    ax = axes_at(figure, 0.95, 0.7, 5.6, 2.9)
    right, trained = 1.04 * max(means), rows[0]["trained"]
    ax.set_xlim(0, right)
    ax.set_ylim(0, 1.3 * means[most])
    top = min(right, 1.3 * means[most])
    ax.plot([0, top], [0, top], color=FROZEN, lw=1.4, ls=(0, (4, 3)))
    note(ax, "all that was offered", (0.86 * top, 0.86 * top), (8, -3), FAINT_INK, fontsize=9.5)
    ax.plot(list(means), list(means.values()), color=LORA)
    ax.plot([row["offered"] for row in rows], [row["memorised"] for row in rows], "o", color=LORA_DARK, ms=5, mew=0)
    label_lines(ax, [(last, means[last])], [f"{means[last] / trained:.2f} bits a trained number"], [LORA], align=right)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    ax.set_xlabel("bits offered")
    ax.set_ylabel("bits memorised")
    return figure
