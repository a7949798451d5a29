"""The methods compared: quality against the parameters trained, and what is learned against what is forgotten."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lora_np.plots.methods import COLOURS
from lora_np.plots.style import FROZEN, PAPER, axes_at, for_text, new_figure, percent, picture, spread
from lora_np.studies.table import Table

MARKERS = {  # one a method, since a family shares its colour
    **{"full": "o", "lora": "o", "qlora": "s", "rslora": "D", "dora": "^", "pissa": "v", "lora-fa": "P", "lora+": "X"},
    **{"vera": "*", "prefix": "o", "prefix-mlp": "s", "houlsby": "o", "pfeiffer": "s"},
}
DEFAULT = FROZEN


@picture("method seed trainable recovered", settings="labels")
def quality_against_parameters(table: Table) -> Figure:
    """The share of full fine-tuning's held-out gain against the numbers trained: a point a method, its bar the seeds' range.

    Table: rows {method, seed, trainable, recovered}, rows of the sweep apart (phase "sweep"); settings {labels}, and runs where
    the subtitle is to say how many there were.
    """
    runs = _by_method(table)
    figure = new_figure(9, 5.3, _title(runs, table.settings["labels"]), _subtitle(table, runs))
    ax = axes_at(figure, 0.85, 0.7, 6.0, 3.65)
    ax.set_xscale("log")
    counts = {method: rows[0]["trainable"] for method, rows in runs.items()}
    ax.set_xlim(min(counts.values()) / 1.6, max(counts.values()) * 1.6)
    points = {}
    for method, rows in runs.items():
        shares = 100 * np.array([row["recovered"] for row in rows])
        points[method] = counts[method], shares.mean()
        reach = [[shares.mean() - shares.min()], [shares.max() - shares.mean()]]
        look = {"color": COLOURS.get(method, DEFAULT), "marker": MARKERS.get(method, "o"), "mec": PAPER, "mew": 0.6}
        ax.errorbar(*points[method], reach, ms=9, capsize=3, lw=1.4, zorder=3, **look)
    ax.axhline(100, color=COLOURS["full"], lw=1.4, zorder=1.5)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    ticks = [n for n in 10 ** np.arange(2, 12) * 1.0 for n in (n, 3 * n) if ax.get_xlim()[0] <= n <= ax.get_xlim()[1]]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda n, _: f"{n:,.0f}")
    ax.set_xlabel("trained parameters")
    ax.set_ylabel("share of full fine-tuning's gain (%)")
    _label_points(ax, points, {m: f"{table.settings['labels'].get(m, m)}  {y:.0f} %" for m, (_, y) in points.items()})
    return figure


def _label_points(ax: Axes, points: dict[str, tuple[float, float]], labels: dict[str, str]) -> None:
    """Each label in a column at the right, at its point's height as far as there is room, joined to it by a hairline."""
    scale = 72 / ax.figure.dpi
    at = {method: ax.transData.transform(point) * scale for method, point in points.items()}
    (_, floor), (right, ceiling) = ax.get_window_extent().get_points() * scale
    heights = spread(np.array([y for _, y in at.values()]), gap=12.5, low=floor, high=ceiling + 6)
    for (method, (x, y)), height in zip(at.items(), heights, strict=True):
        colour = COLOURS.get(method, DEFAULT)
        line = {
            "arrowstyle": "-",
            "color": colour,
            "lw": 0.7,
            "ls": ":",
            "shrinkA": 1,
            "shrinkB": 5,
            "relpos": (0, 0.5),
        }
        look = {"color": for_text(colour), "fontsize": 9.5, "va": "center_baseline", "annotation_clip": False}
        place = (right + 14 - x, height - y)
        ax.annotate(labels[method], points[method], place, textcoords="offset points", arrowprops=line, **look)


@picture("method seed steps heldout prose", settings="base_loss base_prose labels")
def methods_learned_and_forgotten(table: Table) -> Figure:
    """Training as a path: nats a byte of code learned to the right, nats a byte of prose forgotten upward, from the base at 0, 0.

    A line is the mean over seeds, its last point has the seeds' range in both. Left, full fine-tuning, LoRA and what is no ΔW;
    right, LoRA's family. Table: rows {method, seed, steps, heldout, prose}, rows of the sweep apart (phase "sweep"); settings
    {base_loss, base_prose, labels}.
    """
    runs = _by_method(table)
    sides = [[m for m in runs if m in PANELS[0]], [m for m in runs if m not in PANELS[0] or m in ("full", "lora")]]
    figure = new_figure(9, 5.0, "What each method learns of the new, and forgets of the old", _subtitle(table, runs))
    paths = {method: _path(table, rows) for method, rows in runs.items()}
    corners = np.concatenate([path.reshape(-1, 2) for path in paths.values()])
    low, high = corners.min(axis=0), corners.max(axis=0)
    margin = 0.06 * (high - low)
    for i, (side, title) in enumerate(zip(sides, ("LoRA beside what is no ΔW", "LoRA's family"), strict=True)):
        ax = axes_at(figure, 0.8 + 4.2 * i, 0.7, 2.55, 3.1)
        ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
        ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
        ax.axhline(0, color=FROZEN, lw=2, zorder=1.5)
        ends = {}
        for method in side:
            path, colour = paths[method], COLOURS.get(method, DEFAULT)
            mean, last = path.mean(axis=0), path[:, -1]
            ax.plot(*mean.T, color=colour, lw=2.4 if method in ("full", "lora") else 1.5, zorder=2.5)
            reach = np.array([mean[-1] - last.min(axis=0), last.max(axis=0) - mean[-1]]).T
            look = {"color": colour, "marker": MARKERS.get(method, "o"), "ms": 7, "mec": PAPER, "mew": 0.6}
            ax.errorbar(*mean[-1], reach[1][:, None], reach[0][:, None], capsize=2, lw=1.2, zorder=3, **look)
            ends[method] = tuple(mean[-1])
        _label_points(ax, ends, {m: table.settings["labels"].get(m, m) for m in ends})
        ax.set_title(title, pad=10)
        ax.set_xlabel("code learned (nats a byte)")
        if i:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("prose forgotten (nats a byte)")
    return figure


PANELS = (("full", "lora", "prefix", "prefix-mlp", "houlsby", "pfeiffer"),)


def _path(table: Table, rows: list[dict[str, Any]]) -> np.ndarray:
    """(seeds, points, 2): what was learned and forgotten since the base, the base first."""
    learned = table.settings["base_loss"] - np.array([row["heldout"] for row in rows])
    forgotten = np.array([row["prose"] for row in rows]) - table.settings["base_prose"]
    return np.stack([learned, forgotten], axis=-1)


def _by_method(table: Table) -> dict[str, list[dict[str, Any]]]:
    """method → its runs at its best rate, in the order of the table."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in table.rows:
        if row.get("phase") != "sweep":
            runs.setdefault(row["method"], []).append(row)
    return runs


def _title(runs: dict[str, list[dict[str, Any]]], labels: dict[str, str]) -> str:
    """How near the methods come to full fine-tuning."""
    means = {m: float(np.mean([row["recovered"] for row in rows])) for m, rows in runs.items() if m != "full"}
    best, last = max(means.values()), min(means.values())
    if len(means) == 1:
        (only,) = means
        return f"{labels.get(only, only)} recovers {percent(best)} of full fine-tuning's gain"
    return f"The best of {len(means)} methods recovers {percent(best)} of full fine-tuning's gain, the last {percent(last)}"


def _subtitle(table: Table, runs: dict[str, list[dict[str, Any]]]) -> str:
    """Seeds, rates, and what it took."""
    seeds = len(next(iter(runs.values())))
    said = f"each at its own best learning rate; mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    count = table.settings.get("runs")
    return said + (f"; {count} runs, {table.seconds / 60:.0f} minutes of one core" if count else "")
