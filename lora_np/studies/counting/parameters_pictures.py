"""Pictures of how few parameters LoRA trains, for one matrix (drawn to scale) and for published models."""

from __future__ import annotations

import re
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from ..harness.colours import FAINT_INK, FROZEN, FULL, INK, LORA, LORA_DARK, PAPER, contrast, for_text, rank_shades
from ..harness.style import axes_at, blank, name_axis, new_figure, note, picture
from ..harness.table import Table
from ..harness.words import percent, short_count

MIDDLE = {"va": "center_baseline"}
TARGETS = {"all-linear": "all linear layers", "q_proj, v_proj": "queries and values", "c_attn": "c_attn"}


@picture("r full lora factor share")
def one_matrix_chart(table: Table, drawn_rank: int = 8) -> Figure:
    """Draw the trained parameters of one square matrix: all of W, and LoRA at each rank.

    Parameters
    ----------
    table : Table
        The result of `lora_np.studies.counting.parameters.one_matrix`.
    drawn_rank : int
        The rank of the factors B and A drawn at the right. The nearest rank in the table is used.

    Returns
    -------
    matplotlib.figure.Figure
        Left: one bar per rank (cyan) and one for all of W (coral), on one linear scale. Right: W, B and A as areas, to scale.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> len(one_matrix_chart(Table.load("figures/data/one_matrix.json")).axes)
    2
    """
    rows = sorted(table.rows, key=lambda row: row["r"])
    full, size = rows[0]["full"], round(rows[0]["full"] ** 0.5)
    tall = max(4.5, 1.95 + 0.42 * (len(rows) + 1))
    factors = _range([row["factor"] for row in rows])
    title = f"A {size} × {size} matrix has {factors} times as many parameters as LoRA trains"
    figure = new_figure(9, tall, title, "bars and areas show the numbers of parameters to scale")
    _bars(axes_at(figure, 0.8, 0.72, 4.5, tall - 1.6), rows, full)
    nearest = min(rows, key=lambda row: abs(row["r"] - drawn_rank))
    _areas(blank(axes_at(figure, 5.6, 0.3, 3.25, tall - 1.1)), size, nearest)
    return figure


def _bars(ax: Axes, rows: list[dict[str, Any]], full: int) -> None:
    shades = rank_shades([row["r"] for row in rows])
    ax.barh(0, full, height=0.66, color=FULL)
    ax.text(full * 0.015, 0, f"{full:,}", fontweight="bold", **MIDDLE)
    ax.text(full * 0.985, 0, "all of W", ha="right", **MIDDLE)
    for place, row in enumerate(rows, start=1):
        shade = shades[row["r"]]
        ax.barh(place, row["lora"], height=0.66, color=shade, snap=False)  # a bar thinner than a pixel is drawn fainter
        note(ax, f"{row['lora']:,}", (row["lora"], place), (6, 0), shade, fontweight="bold", **MIDDLE)
        ax.text(full * 0.6, place, f"{row['factor']:,.0f}× fewer", ha="right", **MIDDLE)
        ax.text(full, place, f"{percent(row['share'])} of W", ha="right", **MIDDLE)
    name_axis(ax, ["full", *(f"r = {row['r']}" for row in rows)])
    ax.set(xlim=(0, full), ylim=(len(rows) + 0.6, -0.6), xlabel="trained parameters (millions)")
    ax.xaxis.set_major_formatter(lambda count, _: f"{count / 1e6:.3g}")
    ax.grid(False)
    ax.spines["left"].set_visible(False)


def _range(factors: list[float]) -> str:
    """Return the smallest and the largest factor as text, for example "32 to 2,048"."""
    return " to ".join(f"{factor:,.0f}" for factor in sorted({min(factors), max(factors)}))


def _areas(ax: Axes, size: int, row: dict[str, Any]) -> None:
    """Draw W as a square, B (size × r) at the left of W, and A (r × size) above W."""
    r, gap = row["r"], 0.06 * size
    ax.add_patch(Rectangle((0, 0), size, size, fc=FULL, lw=0))
    ax.add_patch(Rectangle((-gap - r, 0), r, size, fc=LORA, lw=0, snap=False))
    ax.add_patch(Rectangle((0, size + gap), size, r, fc=LORA, lw=0, snap=False))
    ax.text(size / 2, size / 2, f"W\n{size} × {size}", ha="center", va="center", linespacing=1.5)
    cyan = for_text(LORA)
    ax.text(-gap - r - 0.03 * size, size / 2, f"B: {size} × {r}", ha="right", va="center", color=cyan, rotation=90)
    ax.text(size / 2, size + gap + r + 0.03 * size, f"A: {r} × {size}", ha="center", va="bottom", color=cyan)
    ax.set(xlim=(-0.2 * size, 1.06 * size), ylim=(0, 1.2 * size))
    ax.set_anchor("E")


@picture("model total targets r trainable share")
def whole_models_chart(table: Table) -> Figure:
    """Draw the share of parameters that LoRA trains in published models.

    Parameters
    ----------
    table : Table
        The result of `lora_np.studies.counting.parameters.whole_models`.

    Returns
    -------
    matplotlib.figure.Figure
        Each model has one grey dot for all parameters and one cyan dot per choice of target modules. The axis is
        logarithmic. The number in a cyan dot is the rank; the line from the cyan dot to the grey dot shows the saving.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> whole_models_chart(Table.load("figures/data/whole_models.json")).axes[0].get_xscale()
    'log'
    """
    models = sorted({row["model"]: row["total"] for row in table.rows}.items(), key=lambda item: item[1])
    kinds = list(dict.fromkeys(row["targets"] for row in table.rows))
    shades = dict(zip(kinds, ("#8fd3e2", LORA, LORA_DARK), strict=False))
    shares = [row["share"] for row in table.rows]
    tall = 1.85 + 0.52 * len(models)
    span = f"{percent(min(shares))} to {percent(max(shares))}" if len(set(shares)) > 1 else percent(shares[0])
    figure = new_figure(9, tall, f"LoRA trains {span} of the parameters of {len(models)} published models")
    ax = axes_at(figure, 1.4, 0.72, 6.1, tall - 1.75)
    for place, (model, total) in enumerate(models):
        for i, kind in enumerate(kinds):
            rail = place + 0.42 * ((i + 0.5) / len(kinds) - 0.5) * 2
            rows = sorted(table.where(model=model, targets=kind), key=lambda row: row["r"])
            if rows:
                _rail(ax, rail, rows, shades[kind], total, place)
        ax.plot(total, place, "o", color=FROZEN, ms=14, mec=PAPER, mew=1.2)
        note(ax, short_count(total), (total, place), (11, 0), FROZEN, **MIDDLE)
    _models_axis(ax, models, table)
    _targets_key(figure, shades)
    return figure


def _rail(ax: Axes, height: float, rows: list[dict[str, Any]], shade: str, total: int, place: int) -> None:
    """Draw the row of one model and one choice of target modules: dots, a line to the grey dot, and the shares."""
    stops = [rows[0]["trainable"], rows[-1]["trainable"], total]
    ax.plot(stops, [height, height, place], color=FROZEN, alpha=0.5, lw=1.6, zorder=1)
    inside = {"ha": "center", "fontsize": 8.5, "fontweight": "bold", "color": INK if contrast(shade) < 3.5 else PAPER}
    for row in rows:
        ax.plot(row["trainable"], height, "o", color=shade, ms=14, mec=PAPER, mew=1)
        ax.text(row["trainable"], height, str(row["r"]), **inside, **MIDDLE)
    shares = [percent(row["share"]) for row in (rows[0], rows[-1])]
    text = shares[-1] if len(rows) == 1 else f"{shares[0].removesuffix(' %')} – {shares[1]}"
    _in_share_column(ax, height, text, for_text(shade), **MIDDLE)


def _in_share_column(ax: Axes, height: float, text: str, colour: str, **look: Any) -> None:
    """Write a text into the column at the right, outside the axes."""
    ax.text(1.215, height, text, transform=ax.get_yaxis_transform(), ha="right", fontsize=9, color=colour, **look)


def _models_axis(ax: Axes, models: list[tuple[str, int]], table: Table) -> None:
    smallest = min(row["trainable"] for row in table.rows)
    ax.set_xscale("log")
    ax.set(xlim=(smallest / 1.9, models[-1][1] * 3), ylim=(len(models) - 0.4, -0.6))
    name_axis(ax, [model for model, _ in models])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda count, _: re.sub(r"\.0+", "", short_count(count)))
    ax.set_xlabel("parameters, on a logarithmic axis (the number in a dot is the rank r)")
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    _in_share_column(ax, -0.75, "share trained", FAINT_INK)


def _targets_key(figure: Figure, shades: dict[str, str]) -> None:
    """Draw the key of the colours where other pictures have a subtitle."""
    wide, tall = figure.get_size_inches()
    dots = {f"LoRA on {TARGETS.get(kind, kind)}": shade for kind, shade in shades.items()} | {"all parameters": FROZEN}
    handles = [Line2D([], [], marker="o", ls="", ms=8, color=colour, label=label) for label, colour in dots.items()]
    place = {"loc": "upper left", "bbox_to_anchor": (0.22 / wide, 1 - 0.48 / tall), "ncols": len(dots)}
    tight = {"borderpad": 0, "borderaxespad": 0, "handletextpad": 0.1, "handlelength": 1.2, "columnspacing": 1.4}
    figure.legend(handles=handles, frameon=False, labelcolor=FAINT_INK, **place, **tight)
