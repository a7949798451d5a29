"""The picture of the rank of each learned ΔW, from full fine-tuning and from LoRA, beside random matrices."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import INK, METHOD_COLOURS, for_text
from ..harness.style import BOLD, axes_at, name_axis, new_figure, note, picture, rank_axis
from ..harness.table import Table, groups, mean, median
from ..harness.words import runs_and_time, semicolons

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TITLES = {"tiny": "tiny learns code", "smollm2-135m": "SmolLM2-135M learns a style"}
METHODS = {"full": "full fine-tuning", "lora": "LoRA"}
ABOVE: dict[str, Any] = {"shift": (0, 3), "ha": "center", "fontsize": 9.5, **BOLD}  # a label above the first row


@picture("model method layer module rank90 random_rank90", settings="runs")
def rank_by_layer(table: Table) -> Figure:
    """Draw how many directions hold 90 % of the energy of each ΔW, one dot per layer, one panel per model.

    Parameters
    ----------
    table : Table
        The result of the study "spectra".

    Returns
    -------
    matplotlib.figure.Figure
        Full fine-tuning is coral, and LoRA is cyan. A black bar is a random matrix of the same shape. With several
        seeds, a dot is the mean and a line is the range. The number beside a bar is a ratio: the number of directions
        of full fine-tuning (median over the layers), divided by the number of directions of the random matrix.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = rank_by_layer(Table.load("figures/data/spectra.json"))
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['tiny learns code', 'SmolLM2-135M learns a style']
    """
    models = list(dict.fromkeys(row["model"] for row in table.rows))
    found = {method: [table.where(model=model, method=method) for model in models] for method in METHODS}
    medians = {method: sorted(median(rows, "rank90") for rows in of if rows) for method, of in found.items()}
    spans = {
        method: " to ".join(dict.fromkeys(f"{n:g}" for n in (each[0], each[-1])))
        for method, each in medians.items()
        if each
    }
    title = f"90 % of ΔW's energy lies in {spans['full']} directions (full fine-tuning)"
    title += f" or {spans['lora']} (LoRA)" * ("lora" in spans)
    marks = "dots: layers, the first layer on top; black bars: random matrices of the same shape"
    numbers = "numbers: count of directions in full fine-tuning, divided by the count in a random matrix"
    measured = semicolons(numbers, runs_and_time(table))
    figure = new_figure(9, 5.2, title, f"{marks}\n{measured}")
    wide = 3.6 if len(models) > 1 else 7.7
    for i, model in enumerate(models):
        ax = axes_at(figure, 1.05 + i * (wide + 0.3), 0.7, wide, 3.25)
        _panel(ax, table.where(model=model), labelled=i == 0)
        ax.set_title(TITLES.get(model, model))
    chance = table.where(model=model, module=MODULES[0])[0]["random_rank90"]
    note(ax, "random", (chance, -0.5), colour=INK, **ABOVE)
    return figure


def _panel(ax: Axes, rows: list[dict[str, Any]], labelled: bool) -> None:
    """Draw one model. Each module has one row, with one dot per layer from the first layer to the last."""
    layers = 1 + max(row["layer"] for row in rows)
    dot = {"ms": 3.2, "mew": 0} if layers > 10 else {"ms": 5, "mew": 0.4}
    for band, module in enumerate(MODULES):
        mine = [row for row in rows if row["module"] == module]
        places = band - 0.36 + 0.72 * (np.arange(layers) + 0.5) / layers
        chance = mine[0]["random_rank90"]
        ax.plot([chance, chance], [band - 0.4, band + 0.4], color=INK, lw=2.2, solid_capstyle="butt")
        ratio = statistics.median(row["rank90"] / chance for row in mine if row["method"] == "full")
        note(ax, f"{ratio:.2f}", (chance, band), (5, 0), INK, fontsize=9.5, va="center_baseline")
        for method, colour in METHOD_COLOURS.items():
            by_layer = groups([row for row in mine if row["method"] == method], "layer").values()
            if not by_layer:
                continue
            least, most = ([end(row["rank90"] for row in seeds) for seeds in by_layer] for end in (min, max))
            ax.hlines(places, least, most, color=colour, lw=0.8)
            means = [mean(seeds, "rank90") for seeds in by_layer]
            ax.plot(means, places, "o", color=colour, mec="white", **dot)
            if band == 0 and labelled:
                note(ax, METHODS[method], (float(np.median(means)), -0.5), colour=colour, **ABOVE)
    widest = max(max(row["shape"]) for row in rows)
    rank_axis(ax, [2**k for k in range(widest.bit_length())], "directions that hold 90 % of ‖ΔW‖²")
    ax.set(ylim=(6.6, -0.95), xlim=(0.85, 2.1 * max(row["random_rank90"] for row in rows)))
    name_axis(ax, MODULES, labelled=labelled)
    ax.grid(False)
    for edge in np.arange(0.5, 6):
        ax.axhline(edge, color=for_text(INK), lw=0.3, alpha=0.35)
