"""Pictures of the directions of LoRA's ΔW: the overlap of two runs, and the size of W in these directions."""

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

OF = {"A at the start": "A before training", "A": "A: directions read", "B": "B: directions written"}
SHARED: dict[str, Any] = {"cmap": shades(PAPER, LORA, LORA_DARK), "aspect": "auto"}


@picture("kind of module r seeds d i j phi map")
def similarity_maps(table: Table, module: str = "q_proj") -> Figure:
    """Draw φ(i, j) of two runs for every i and j.

    The upper maps compare a low rank with a high rank; the lower maps compare two seeds of the high rank.

    Parameters
    ----------
    table : Table
        The result of the study "subspaces".
    module : str
        The kind of matrix: "q_proj" or "v_proj".

    Returns
    -------
    matplotlib.figure.Figure
        The columns of maps show A before training, A after training, and B after training. Before training, A is
        random, so its φ is about max(i, j)/d. A larger φ is darker. Only rows with the column `map` are drawn.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = similarity_maps(Table.load("figures/data/subspaces.json"))
    >>> [ax.get_title(loc="left") for ax in figure.axes[1:6:2]]
    ['A before training', 'A: directions read', 'B: directions written']
    """
    similar = table.where(kind="similarity", module=module)
    maps = {(row["of"], tuple(row["r"])): row for row in similar if "map" in row}
    pairs = list(dict.fromkeys(pair for _, pair in maps))
    first, least = next(iter(maps.values())), min(pairs[0])
    of_pairs = groups([row | {"pair": pairs.index(tuple(row["r"]))} for row in similar], "of", "pair")
    medians = {key: statistics.median(_at(row, least) for row in found) for key, found in of_pairs.items()}
    spans = {of: sorted(medians[of, i] for i in range(len(pairs))) for of in OF}
    shared = {of: f"{percent(each[0]).removesuffix(' %')} to {percent(each[-1])}" for of, each in spans.items()}
    d = first["d"]
    measured = (
        f"φ(i, j): overlap of the top i directions of one run with the top j directions of another run, in {module}"
    )
    counted = f"the title gives medians of φ({least}, {least}); by chance, φ({least}, {least}) is {percent(least / d)}"
    counted = semicolons(counted, runs_and_time(table))
    title = f"Two runs share {shared['B']} of B's directions and {shared['A']} of A's directions"
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
    ax.set(ylabel=f"i (r = {r[0]})" if first else "", xlabel=f"j (r = {r[1]})" if last else "")


DIRECTIONS = {"in_delta": ("of ΔW", LORA, "o"), "in_W": ("of W itself", FROZEN, "s")}  # column → name, colour, marker


@picture("kind r module in_delta in_W in_random factor")
def amplification_chart(table: Table) -> Figure:
    """Draw the size of the frozen W in the top directions of ΔW and of W itself, relative to random directions.

    Parameters
    ----------
    table : Table
        The result of the study "subspaces".

    Returns
    -------
    matplotlib.figure.Figure
        One panel per rank, one row per module. Points are medians over layers and seeds; lines are the ranges over
        layers and seeds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = amplification_chart(Table.load("figures/data/subspaces.json"))
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['r = 4', 'r = 64']
    """
    by_rank = groups(table.where(kind="amplification"), "r")
    ranks = {r: by_rank[r] for r in (min(by_rank), max(by_rank))}
    inside = {r: statistics.median(row["in_delta"] / row["in_random"] for row in rows) for r, rows in ranks.items()}
    times = " to ".join(dict.fromkeys(f"{ratio:.2g}" for ratio in (min(inside.values()), max(inside.values()))))
    norms = "size of W in r directions: ‖Uᵀ W V‖; the columns of U and V are the directions"
    marks = semicolons(
        "points and lines: median and range over layers and seeds; title: medians over all matrices",
        runs_and_time(table),
    )
    title = f"W is {times} times as large in the directions of ΔW as in random directions"
    figure = new_figure(9, 4.4, title, f"{norms}\n{marks}")
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
        for key, (name, colour, marker) in DIRECTIONS.items():
            ratios = [row[key] / row["in_random"] for row in mine]
            ax.hlines(band, min(ratios), max(ratios), color=colour, lw=1.2)
            ax.plot(statistics.median(ratios), band, marker, color=colour, ms=8, mec="white", mew=0.5)
            if band == 0 and labelled:
                place, side = (1.08, "left") if key == "in_delta" else (statistics.median(ratios), "center")
                note(ax, name, (place, -0.35), (0, 3), colour, ha=side, **BOLD)
    if labelled:
        note(ax, "random", (1, len(modules) - 0.6), (-4, 2), INK, ha="right", **BOLD)
    log_axis(ax.xaxis, [0.5, 1, 2, 5, 10, 20, 50], "size of W in the directions (random = 1)")
    ax.set(xlim=(0.3, 45), ylim=(len(modules) - 0.5, -1.1))
    name_axis(ax, modules, labelled=labelled)
