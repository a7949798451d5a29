"""Which rank a learned ΔW has: each layer of each module, from full fine-tuning and from LoRA, beside random matrices."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lora_np.studies.harness.style import (
    FULL,
    HALO,
    INK,
    LORA,
    axes_at,
    for_text,
    new_figure,
    note,
    picture,
    rank_axis,
    runs_and_time,
    semicolons,
)
from lora_np.studies.harness.table import Table

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TITLES = {"tiny": "tiny learns code", "smollm2-135m": "SmolLM2-135M learns a voice"}


@picture("model method layer module rank90 random_rank90", settings="runs")
def rank_by_layer(table: Table) -> Figure:
    """How many directions hold 90 % of a ΔW's energy, a dot a layer (the first at the top of its band), a panel a model.

    Coral: full fine-tuning; cyan: LoRA; the ink line: a random matrix of the shape, beside it what share of its count full
    fine-tuning's has. Of several seeds the dots are means, and a hairline goes from the least to the most.
    Table: rows {model, method, r, seed, layer, module, shape, rank90, random_rank90}.
    """
    models = list(dict.fromkeys(row["model"] for row in table.rows))
    counts = {}
    for method in ("full", "lora"):
        of = [[row["rank90"] for row in table.where(model=m, method=method)] for m in models]
        counts[method] = " and ".join(f"{statistics.median(found):g}" for found in of if found)
    title = f"{counts['full']} directions hold 90 % of full fine-tuning's change"
    if counts["lora"]:
        title += f", {counts['lora']} of LoRA's"
    figure = new_figure(
        9,
        5.2,
        title,
        "a dot a layer, the first at the top; ink: a random matrix of the shape, and full's count as a share of its\n"
        + semicolons("medians of the matrices in the title", runs_and_time(table)),
    )
    wide = 3.6 if len(models) > 1 else 7.7
    for i, model in enumerate(models):
        ax = axes_at(figure, 1.05 + i * (wide + 0.3), 0.7, wide, 3.25)
        _panel(ax, table.where(model=model), labelled=i == 0)
        if i == len(models) - 1:
            chance = table.where(model=model, module=MODULES[0])[0]["random_rank90"]
            note(
                ax,
                "random",
                (chance, -0.5),
                (0, 3),
                INK,
                ha="center",
                fontsize=9.5,
                fontweight="bold",
                path_effects=HALO,
            )
        ax.set_title(TITLES.get(model, model))
    return figure


def _panel(ax: Axes, rows: list[dict[str, Any]], labelled: bool) -> None:
    """Seven bands, one a module, from the first layer to the last."""
    layers = 1 + max(row["layer"] for row in rows)
    size = 3.2 if layers > 10 else 5
    for band, module in enumerate(MODULES):
        mine = [row for row in rows if row["module"] == module]
        places = band - 0.36 + 0.72 * (np.arange(layers) + 0.5) / layers
        chance = mine[0]["random_rank90"]
        ax.plot([chance, chance], [band - 0.4, band + 0.4], color=INK, lw=2.2, solid_capstyle="butt")
        ratio = statistics.median(r["rank90"] / chance for r in mine if r["method"] == "full")
        note(ax, f"{ratio:.2f}", (chance, band), (5, 0), INK, fontsize=9.5, va="center_baseline")
        for method, colour in (("full", FULL), ("lora", LORA)):
            by_layer = [[r["rank90"] for r in mine if r["method"] == method and r["layer"] == i] for i in range(layers)]
            if not by_layer[0]:
                continue
            ax.hlines(places, [min(x) for x in by_layer], [max(x) for x in by_layer], color=colour, lw=0.8)
            means = [statistics.mean(x) for x in by_layer]
            ax.plot(means, places, "o", color=colour, ms=size, mec="white", mew=0.4 if size > 4 else 0)
            if band == 0 and labelled:
                text = {"full": "full fine-tuning", "lora": "LoRA"}[method]
                look = {"ha": "center", "fontweight": "bold", "path_effects": HALO}
                note(ax, text, (float(np.median(means)), -0.5), (0, 3), colour, fontsize=9.5, **look)
    most = max(max(row["shape"]) for row in rows)
    rank_axis(ax, [2**k for k in range(most.bit_length()) if 2**k <= most], "directions that hold 90 % of ‖ΔW‖²")
    ax.set(ylim=(6.6, -0.95), xlim=(0.85, 2.1 * max(row["random_rank90"] for row in rows)))
    ax.set_yticks(range(7), MODULES if labelled else [""] * 7)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    for edge in np.arange(0.5, 6):
        ax.axhline(edge, color=for_text(INK), lw=0.3, alpha=0.35)
