"""The directions of LoRA's ΔW: whether two runs share them, and what the frozen weight has in them."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FROZEN, INK, LORA, LORA_DARK, PAPER, shades
from ..harness.style import BOLD, axes_at, log_axis, name_axis, new_figure, note, picture
from ..harness.table import Table, groups
from ..harness.words import percent, runs_and_time, semicolons

OF = {"A at the start": "A before training", "A": "A: what is read", "B": "B: what is written"}
SHARED: dict[str, Any] = {"cmap": shades(PAPER, LORA, LORA_DARK), "aspect": "auto"}


@picture("kind of module r seeds d i j phi map")
def similarity_maps(table: Table, module: str = "q_proj") -> Figure:
    """φ(i, j) of two runs, for every i and j: r = 8 against r = 64 above, r = 64 of two seeds below.

    Before training A is random, so the first column is chance, max(i, j)/d. Of the rows of kind "similarity" those with a map
    are drawn.
    """
    similar = table.where(kind="similarity", module=module)
    maps = {(row["of"], tuple(row["r"])): row for row in similar if "map" in row}
    pairs = list(dict.fromkeys(pair for _, pair in maps))
    first, least = next(iter(maps.values())), min(pairs[0])
    of_pairs = groups([row | {"pair": pairs.index(tuple(row["r"]))} for row in similar], "of", "pair")
    medians = {key: percent(statistics.median(_at(row, least) for row in found)) for key, found in of_pairs.items()}
    shared = {of: " and ".join(medians[of, i] for i in range(len(pairs))) for of in OF}
    d, count = first["d"], len(of_pairs["A", 0])
    measured = "φ(i, j) of the top i and the top j directions of two runs with different seeds: "
    measured += f"{module}, layer {first['layer']}, " + semicolons(f"d = {d}", runs_and_time(table))
    counted = f"in the title φ({least}, {least}), upper and lower row, medians over {count} pairs of layers and runs; "
    counted += f"by chance {percent(least / d)}"
    title = f"Two runs share {shared['B']} of B's directions, {shared['A']} of A's"
    figure = new_figure(9, 5.15, title, f"{measured}\n{counted}")
    wide, rows = 2.35, {pairs[-1]: (0.62, 2.35), pairs[0]: (3.22, 0.75)}  # pair → its panels' bottom and height
    for column, of in enumerate(OF):
        for pair, (bottom, tall) in rows.items():
            ax = axes_at(figure, 0.75 + column * (wide + 0.22), bottom, wide, tall)
            _map(ax, np.array(maps[of, pair]["map"]), pair, first=column == 0, last=pair == pairs[-1])
        ax.set_title(OF[of], color=LORA_DARK if column else INK)
    bar = axes_at(figure, 0.75 + 3 * (wide + 0.22) + 0.03, 0.62, 0.16, 2.35)
    bar.imshow(np.linspace(0, 1, 101)[:, None], extent=(0, 1, 0, 1), origin="lower", **SHARED)
    bar.set(xticks=[], yticks=[0, 0.5, 1], title="φ")
    bar.yaxis.tick_right()
    bar.grid(False)
    return figure


def _at(row: dict[str, Any], n: int) -> float:
    """φ(n, n)."""
    return row["phi"][row["i"].index(n)][row["j"].index(n)]


def _map(ax: Axes, phi: np.ndarray, r: tuple[int, int], first: bool, last: bool) -> None:
    n, m = phi.shape
    ax.imshow(phi, vmin=0, vmax=1, extent=(0.5, m + 0.5, n + 0.5, 0.5), interpolation="nearest", **SHARED)
    ax.grid(False)
    ax.set(xticks=[1, m // 4, m // 2, m] if last else [], yticks=[1, n // 2, n] if first else [])
    ax.set(ylabel=f"i, of r = {r[0]}" if first else "", xlabel=f"j, of r = {r[1]}" if last else "")


WHOSE = {"in_delta": ("ΔW's", LORA, "o"), "in_W": ("W's own", FROZEN, "s")}  # column → name, colour, marker


@picture("kind r module in_delta in_W in_random factor")
def amplification_chart(table: Table) -> Figure:
    """What the frozen W has in the directions of ΔW, beside its own top ones and random ones, a panel a rank, a row a module.

    Points are the mean over layers and seeds, hairlines the least and the most, all in units of what random directions hold. The
    rows of kind "amplification" are drawn.
    """
    by_rank = groups(table.where(kind="amplification"), "r")
    ranks = {r: by_rank[r] for r in (min(by_rank), max(by_rank))}
    inside = {r: statistics.median(row["in_delta"] / row["in_random"] for row in rows) for r, rows in ranks.items()}
    held = " and ".join(f"{times:.2g}× (r = {r})" for r, times in inside.items())
    norms = "‖Uᵀ W V‖ with U, V the top r directions of LoRA's ΔW or of W itself"
    marks = (
        "a point: the mean over layers and seeds, hairlines: all of them; in the title: the median over all matrices"
    )
    subtitle = f"{semicolons(norms, runs_and_time(table))}\n{marks}"
    figure = new_figure(9, 4.4, f"W has in ΔW's directions {held} what random ones hold", subtitle)
    for i, (r, rows) in enumerate(ranks.items()):
        ax = axes_at(figure, 1.05 + i * 3.95, 0.7, 3.65, 2.5)
        _inside(ax, rows, labelled=i == 0)
        ax.set_title(f"r = {r}")
    return figure


def _inside(ax: Axes, rows: list[dict[str, Any]], labelled: bool) -> None:
    modules = list(dict.fromkeys(row["module"] for row in rows))
    ax.axvline(1, color=INK, lw=2)
    for band, module in enumerate(modules):
        mine = [row for row in rows if row["module"] == module]
        for key, (name, colour, marker) in WHOSE.items():
            ratios = [row[key] / row["in_random"] for row in mine]
            ax.hlines(band, min(ratios), max(ratios), color=colour, lw=1.2)
            ax.plot(statistics.mean(ratios), band, marker, color=colour, ms=8, mec="white", mew=0.5)
            if band == 0 and labelled:
                place, side = (1.08, "left") if key == "in_delta" else (statistics.mean(ratios), "center")
                note(ax, name, (place, -0.35), (0, 3), colour, ha=side, **BOLD)
    if labelled:
        note(ax, "random", (1, len(modules) - 0.6), (-4, 2), INK, ha="right", **BOLD)
    log_axis(ax.xaxis, [0.5, 1, 2, 5, 10, 20, 50], "what W has there (× random)")
    ax.set(xlim=(0.3, 45), ylim=(len(modules) - 0.5, -1.1))
    name_axis(ax, modules, labelled=labelled)
