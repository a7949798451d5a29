"""Merging in pictures: what stays in the weights after many times, and what two adapters keep when they are made one."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_np.studies.harness.style import (
    FAINT_INK,
    FROZEN,
    HALO,
    INK,
    LORA,
    LORA_DARK,
    LORA_LIGHT,
    OTHERS,
    axes_at,
    for_text,
    label_lines,
    new_figure,
    note,
    picture,
)
from lora_np.studies.harness.table import Table

ON_THE_CHANGE, ON_THE_FACTORS = LORA, OTHERS[1]


@picture("dtype adapters cycles errors", settings="of share")
def merge_drift(table: Table) -> Figure:
    """The relative error of a weight after n merges and unmerges, both axes logarithmic, one colour a dtype.

    Dashed, the same adapter each time; full, another one each time. Table: rows {dtype, adapters, cycles, errors}.
    """
    dtypes = list(dict.fromkeys(row["dtype"] for row in table.rows))
    shades = dict(zip(dtypes, [LORA_LIGHT, LORA, LORA_DARK, INK], strict=False))
    figure = new_figure(
        9,
        4.7,
        _drift_title(table),
        f"relative error of one weight of tiny; ΔW of {table.settings['of']} random adapters, "
        f"each {table.settings['share']:g} of its norm",
    )
    ax = axes_at(figure, 0.85, 0.65, 5.6, 3.1)
    ends, labels, colours = [], [], []
    for row in table.rows:
        same = row["adapters"].startswith("the same")
        ax.loglog(row["cycles"], row["errors"], color=shades[row["dtype"]], ls=(0, (2, 2)) if same else "-")
        ends.append((row["cycles"][-1], row["errors"][-1]))
        labels.append(f"{row['dtype']}, {'one' if same else 'in turns'}  {row['errors'][-1]:.0e}")
        colours.append(shades[row["dtype"]])
    ax.set_xlabel("merges and unmerges")
    ax.set_ylabel(r"$\|W - W_0\|\; /\; \|W_0\|$")
    ax.set_xlim(1, max(x for x, _ in ends))
    label_lines(ax, ends, labels, colours)
    return figure


def _drift_title(table: Table) -> str:
    """The error after the last merge, of one adapter and of several in turns, in the first dtype."""
    dtype, of = table.rows[0]["dtype"], table.settings["of"]
    rows = table.where(dtype=dtype)
    one, turns = (
        next(row["errors"][-1] for row in rows if row["adapters"].startswith("the same") is same)
        for same in (True, False)
    )
    return f"{rows[0]['cycles'][-1]:,} merges in {dtype}: one adapter leaves an error of {one:.1%}, {of} in turns {turns:.1%}"


@picture("kind weights code voice error", settings="r density")
def combinations_chart(table: Table) -> Figure:
    """Left, the held-out loss on one domain against the other, a dot a combination type; right, each one's error of ΔW.

    Grey, the base; ink, the parents, and between them the line of cat as its weights pass from one to the other. Cyan works
    on ΔW, green on A and B apart. Types that draw at random have a dot a seed. Table: rows {kind, weights, code, voice, error}.
    """
    types = [
        kind for kind in dict.fromkeys(row["kind"] for row in table.rows) if kind not in ("base", "adapter", "share")
    ]
    figure = new_figure(
        9,
        5.2,
        _combinations_title(table, types),
        f"tiny, rank {table.settings['r']}, density {table.settings['density']:g}; each type at its own best scale of "
        "both weights (in brackets),\nchosen on other held-out text",
    )
    _losses(axes_at(figure, 0.75, 0.65, 3.65, 3.35), table, types)
    _errors(axes_at(figure, 6.85, 0.65, 1.9, 3.35), table, types)
    return figure


def _combinations_title(table: Table, types: list[str]) -> str:
    """The best type on ΔW and the best on the factors, by the sum of both losses."""
    best = {
        colour: min((_loss(table, kind), kind) for kind in types if _colour(kind) == colour)
        for colour in (ON_THE_CHANGE, ON_THE_FACTORS)
    }
    (loss, kind), (other_loss, other) = best[ON_THE_CHANGE], best[ON_THE_FACTORS]
    return f"Two adapters made one: {kind}, on ΔW, ends at {loss:.2f}, {other}, on A and B apart, at {other_loss:.2f}"


def _loss(table: Table, kind: str) -> float:
    """Both held-out losses together, the mean over draws."""
    return float(np.mean([row["code"] + row["voice"] for row in table.where(kind=kind)]))


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
    ax.set_xlabel("held-out loss on code (nats a byte)")
    ax.set_ylabel("held-out loss on the voice (nats a byte)")


def _errors(ax: Axes, table: Table, types: list[str]) -> None:
    """A dot a type and seed, sorted by the sum of both losses, which stands beside the name."""
    found = {kind: table.where(kind=kind) for kind in types}
    loss = {kind: _loss(table, kind) for kind in types}
    order = sorted(types, key=lambda kind: -loss[kind])
    for place, kind in enumerate(order):
        errors = [row["error"] for row in found[kind]]
        ax.plot(errors, [place] * len(errors), "o", ms=6, color=_colour(kind), alpha=0.85)
    labels = [f"{kind} ({found[kind][0]['weights'][0]:g})  {loss[kind]:.2f}" for kind in order]
    ax.set_yticks(range(len(order)), labels)
    for tick, kind in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_color(for_text(_colour(kind)))
    ax.grid(True, axis="both")
    ax.tick_params(axis="y", length=0)
    ax.set_xlim(left=-0.05)
    ax.set_title("sum of both losses", loc="right", x=-0.04, fontsize=9.5, fontweight="normal", color=FAINT_INK)
    ax.set_xlabel("error of ΔW")
