"""Merging in pictures: what stays in the weights after many times, and what two adapters keep when they are made one."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, INK, LORA, LORA_DARK, LORA_LIGHT, OTHERS, for_text
from ..harness.style import HALO, axes_at, label_lines, name_axis, new_figure, note, picture
from ..harness.table import Table

ON_THE_CHANGE, ON_THE_FACTORS = LORA, OTHERS[1]


@picture("dtype adapters cycles errors", settings="of share")
def merge_drift(table: Table) -> Figure:
    """The relative error of a weight after n merges and unmerges, both axes logarithmic, one colour a dtype.

    Dashed, the same adapter each time; full, another one each time.
    """
    dtypes = list(dict.fromkeys(row["dtype"] for row in table.rows))
    shades = dict(zip(dtypes, [LORA_LIGHT, LORA, LORA_DARK, INK], strict=False))
    of, share = table.settings["of"], table.settings["share"]
    subtitle = f"relative error of one weight of tiny; ΔW of {of} random adapters, each {share:g} of its norm"
    figure = new_figure(9, 4.7, _drift_title(table), subtitle)
    ax = axes_at(figure, 0.85, 0.65, 5.6, 3.1)
    ends = []
    for row in table.rows:
        same, colour, last = row["adapters"].startswith("the same"), shades[row["dtype"]], row["errors"][-1]
        ax.loglog(row["cycles"], row["errors"], color=colour, ls=(0, (2, 2)) if same else "-")
        label = f"{row['dtype']}, {'one' if same else 'in turns'}  {last:.0e}"
        ends.append(((row["cycles"][-1], last), label, colour))
    ax.set(xlabel="merges and unmerges", ylabel=r"$\|W - W_0\|\; /\; \|W_0\|$", xlim=(1, max(x for (x, _), *_ in ends)))
    label_lines(ax, *zip(*ends, strict=True))
    return figure


def _drift_title(table: Table) -> str:
    """The error after the last merge, of one adapter and of several in turns, in the first dtype."""
    rows = table.where(dtype=table.rows[0]["dtype"])
    last = {row["adapters"].startswith("the same"): row["errors"][-1] for row in reversed(rows)}
    times = f"{rows[0]['cycles'][-1]:,} merges in {rows[0]['dtype']}"
    return (
        f"{times}: one adapter leaves an error of {last[True]:.1%}, {table.settings['of']} in turns {last[False]:.1%}"
    )


@picture("kind weights code voice error", settings="r density")
def combinations_chart(table: Table) -> Figure:
    """Left, the held-out loss on one domain against the other, a dot a combination type; right, each one's error of ΔW.

    Grey, the base; ink, the parents, and between them the line of cat as its weights pass from one to the other. Cyan works
    on ΔW, green on A and B apart. Types that draw at random have a dot a seed.
    """
    kinds = dict.fromkeys(row["kind"] for row in table.rows if row["kind"] not in ("base", "adapter", "share"))
    losses = {kind: float(np.mean([row["code"] + row["voice"] for row in table.where(kind=kind)])) for kind in kinds}
    subtitle = (
        f"tiny, rank {table.settings['r']}, density {table.settings['density']:g}; each type at its own best scale of "
        "both weights (in brackets),\nchosen on other held-out text"
    )
    order, colours = sorted(losses, key=lambda kind: losses[kind]), (ON_THE_CHANGE, ON_THE_FACTORS)
    one, other = (next(kind for kind in order if _colour(kind) == colour) for colour in colours)
    ends = f"{one}, on ΔW, ends at {losses[one]:.2f}, {other}, on A and B apart, at {losses[other]:.2f}"
    figure = new_figure(9, 5.2, f"Two adapters made one: {ends}", subtitle)
    _losses(axes_at(figure, 0.75, 0.65, 3.65, 3.35), table, list(kinds))
    _errors(axes_at(figure, 6.85, 0.65, 1.9, 3.35), table, losses)
    return figure


def _colour(kind: str) -> str:
    return ON_THE_CHANGE if kind == "cat" or kind.endswith("svd") else ON_THE_FACTORS


def _losses(ax: Axes, table: Table, types: list[str]) -> None:
    base, parents = table.where(kind="base")[0], table.where(kind="adapter")
    line = sorted([*parents, *table.where(kind="share")], key=lambda row: row["weights"][1])
    ax.plot([row["code"] for row in line], [row["voice"] for row in line], color=FAINT_INK, lw=1, zorder=1)
    for kind in types:
        rows = table.where(kind=kind)
        ax.plot([r["code"] for r in rows], [r["voice"] for r in rows], "o", ms=6, color=_colour(kind), alpha=0.85)
    named = [  # the base lies above the code adapter or beside it, hence one label over its dot and the other below
        (base, "base", FROZEN, "left", (7, 6)),
        (parents[0], "code alone", INK, "left", (7, -15)),
        (parents[1], "voice alone", INK, "right", (4, 6)),
    ]
    for row, text, colour, side, offset in named:
        ax.plot(row["code"], row["voice"], "s", ms=7, color=colour)
        note(ax, text, (row["code"], row["voice"]), offset, colour, ha=side, path_effects=HALO)
    cat = table.where(kind="cat")[0]
    note(ax, "cat", (cat["code"], cat["voice"]), (-8, -12), LORA, ha="right", path_effects=HALO)
    ax.grid(True, axis="both")
    ax.set(xlabel="held-out loss on code (nats a byte)", ylabel="held-out loss on the voice (nats a byte)")


def _errors(ax: Axes, table: Table, losses: dict[str, float]) -> None:
    """A dot a type and seed, sorted by the sum of both losses, which stands beside the name."""
    order, names = sorted(losses, key=lambda kind: -losses[kind]), []
    for place, kind in enumerate(order):
        rows = table.where(kind=kind)
        ax.plot([row["error"] for row in rows], [place] * len(rows), "o", ms=6, color=_colour(kind), alpha=0.85)
        names.append(f"{kind} ({rows[0]['weights'][0]:g})  {losses[kind]:.2f}")
    name_axis(ax, names)
    for tick, kind in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_color(for_text(_colour(kind)))
    ax.grid(True, axis="both")
    ax.set_xlim(left=-0.05)
    ax.set_title("sum of both losses", loc="right", x=-0.04, fontsize=9.5, fontweight="normal", color=FAINT_INK)
    ax.set_xlabel("error of ΔW")
