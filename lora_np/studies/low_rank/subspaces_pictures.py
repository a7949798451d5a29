"""The directions of LoRA's ΔW: whether two runs share them, and what the frozen weight has in them."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lora_np.studies.harness.style import (
    FROZEN,
    HALO,
    INK,
    LORA,
    LORA_DARK,
    PAPER,
    axes_at,
    new_figure,
    note,
    percent,
    picture,
    runs_and_time,
    semicolons,
)
from lora_np.studies.harness.table import Table

OF = {"A at the start": "A before training", "A": "A: what is read", "B": "B: what is written"}
SHARED = LinearSegmentedColormap.from_list("shared", [PAPER, LORA, LORA_DARK])


@picture("kind of module r seeds d i j phi map")
def similarity_maps(table: Table, module: str = "q_proj") -> Figure:
    """φ(i, j) of two runs, for every i and j: r = 8 against r = 64 above, r = 64 of two seeds below.

    Before training A is random, so the first column is chance, max(i, j)/d. Table: rows {kind: "similarity", of, r, seeds, layer,
    module, d, i, j, phi, map}; those with a map are drawn.
    """
    rows = [row for row in table.where(kind="similarity", module=module) if "map" in row]
    pairs = list(dict.fromkeys(tuple(row["r"]) for row in rows))
    least = min(pairs[0])
    of_pairs = {of: [table.where(kind="similarity", of=of, module=module, r=list(pair)) for pair in pairs] for of in OF}
    shared = {
        of: " and ".join(percent(statistics.median(_at(row, least) for row in found)) for found in both)
        for of, both in of_pairs.items()
    }
    figure = new_figure(
        9,
        5.15,
        f"Two runs share {shared['B']} of B's directions, {shared['A']} of A's",
        f"φ(i, j) of the top i and the top j directions of two runs with different seeds: {module}, layer {rows[0]['layer']}, "
        + semicolons(f"d = {rows[0]['d']}", runs_and_time(table))
        + "\n"
        f"in the title φ({least}, {least}), upper and lower row, medians over {len(of_pairs['A'][0])} pairs of layers and runs; by "
        f"chance {percent(least / rows[0]['d'])}",
    )
    wide, high = 2.35, (0.75, 2.35)
    for column, of in enumerate(OF):
        bottom = 0.62
        for pair, tall in zip(reversed(pairs), reversed(high), strict=True):
            (row,) = [row for row in rows if row["of"] == of and tuple(row["r"]) == pair]
            ax = axes_at(figure, 0.75 + column * (wide + 0.22), bottom, wide, tall)
            _map(ax, np.array(row["map"]), pair, first=column == 0, last=pair == pairs[-1])
            bottom += tall + 0.25
        ax.set_title(OF[of], color=INK if column == 0 else LORA_DARK)
    bar = axes_at(figure, 0.75 + 3 * (wide + 0.22) + 0.03, 0.62, 0.16, 2.35)
    bar.imshow(np.linspace(0, 1, 101)[:, None], cmap=SHARED, extent=(0, 1, 0, 1), aspect="auto", origin="lower")
    bar.set(xticks=[], yticks=[0, 0.5, 1])
    bar.yaxis.tick_right()
    bar.set_title("φ")
    bar.grid(False)
    return figure


def _at(row: dict[str, Any], n: int) -> float:
    """φ(n, n)."""
    return row["phi"][row["i"].index(n)][row["j"].index(n)]


def _map(ax: Axes, phi: np.ndarray, r: tuple[int, int], first: bool, last: bool) -> None:
    n, m = phi.shape
    ax.imshow(
        phi, cmap=SHARED, vmin=0, vmax=1, extent=(0.5, m + 0.5, n + 0.5, 0.5), aspect="auto", interpolation="nearest"
    )
    ax.grid(False)
    ax.set_xticks([1, m // 4, m // 2, m] if last else [], None)
    ax.set_yticks([1, n // 2, n] if first else [], None)
    if first:
        ax.set_ylabel(f"i, of r = {r[0]}")
    if last:
        ax.set_xlabel(f"j, of r = {r[1]}")


WHOSE = {"in_delta": ("ΔW's", LORA, "o"), "in_W": ("W's own", FROZEN, "s")}  # column → name, colour, marker


@picture("kind r module in_delta in_W in_random factor")
def amplification_chart(table: Table) -> Figure:
    """What the frozen W has in the directions of ΔW, beside its own top ones and random ones, a panel a rank, a row a module.

    Points are the mean over layers and seeds, hairlines the least and the most, all in units of what random directions hold. Table:
    rows {kind: "amplification", r, seed, layer, module, in_delta, in_W, in_random, factor}.
    """
    rows = table.where(kind="amplification")
    ranks = sorted({row["r"] for row in rows})
    ranks = [ranks[0], ranks[-1]]
    inside = {r: statistics.median(row["in_delta"] / row["in_random"] for row in rows if row["r"] == r) for r in ranks}
    held = " and ".join(f"{inside[r]:.2g}× (r = {r})" for r in ranks)
    modules = list(dict.fromkeys(row["module"] for row in rows))
    figure = new_figure(
        9,
        4.4,
        f"W has in ΔW's directions {held} what random ones hold",
        semicolons("‖Uᵀ W V‖ with U, V the top r directions of LoRA's ΔW or of W itself", runs_and_time(table)) + "\n"
        "a point: the mean over layers and seeds, hairlines: all of them; in the title: the median over all matrices",
    )
    for i, r in enumerate(ranks):
        ax = axes_at(figure, 1.05 + i * 3.95, 0.7, 3.65, 2.5)
        _inside(ax, [row for row in rows if row["r"] == r], modules, labelled=i == 0)
        ax.set_title(f"r = {r}")
    return figure


def _inside(ax: Axes, rows: list[dict[str, Any]], modules: list[str], labelled: bool) -> None:
    ax.axvline(1, color=INK, lw=2)
    for band, module in enumerate(modules):
        mine = [row for row in rows if row["module"] == module]
        for key, (name, colour, marker) in WHOSE.items():
            ratios = [row[key] / row["in_random"] for row in mine]
            ax.hlines(band, min(ratios), max(ratios), color=colour, lw=1.2)
            ax.plot(statistics.mean(ratios), band, marker, color=colour, ms=8, mec="white", mew=0.5)
            if band == 0 and labelled:
                look = {"ha": "left" if key == "in_delta" else "center", "fontweight": "bold", "path_effects": HALO}
                note(ax, name, (1.08 if key == "in_delta" else statistics.mean(ratios), -0.35), (0, 3), colour, **look)
    if labelled:
        note(ax, "random", (1, len(modules) - 0.6), (-4, 2), INK, ha="right", fontweight="bold", path_effects=HALO)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    ax.set(xlim=(0.3, 45), xlabel="what W has there (× random)", ylim=(len(modules) - 0.5, -1.1))
    ax.set_yticks(range(len(modules)), modules if labelled else [""] * len(modules))
    ax.tick_params(axis="y", length=0)
