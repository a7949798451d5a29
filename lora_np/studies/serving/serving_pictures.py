"""What many adapters cost: tokens a second on each workload, and bytes, as their number grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lora_np.studies.harness.style import (
    FROZEN,
    LORA,
    OTHERS,
    PAPER,
    axes_at,
    label_lines,
    new_figure,
    picture,
    short_count,
)
from lora_np.studies.harness.table import Table

SIDES = {"ours": ("lora_np", LORA), "merged": ("merged", FROZEN), "peft": ("PEFT", OTHERS[1])}


@picture(
    "workload adapters seconds merged_seconds bytes merged_bytes adapter_bytes",
    settings="model rows r prompt rounds threads processor",
)
def serving_chart(table: Table) -> Figure:
    """Tokens a second against the number of adapters, a panel a workload: ours cyan, PEFT green, merged models grey; then bytes.

    Table: rows {workload, adapters, seconds, merged_seconds, peft_seconds, peft_ratio, bytes, merged_bytes, adapter_bytes}.
    """
    settings, workloads = table.settings, list(dict.fromkeys(row["workload"] for row in table.rows))
    panels = len(workloads) + 1
    tall = 1.15 + 2.45 * ((panels + 2) // 3)
    figure = new_figure(
        11,
        tall,
        _title(table),
        f"a decode step of {settings['rows']} rows on {settings['model']}, r = {settings['r']} in every linear layer; "
        "the rows' adapters are drawn by the workload\n"
        "merged: one merged model for each adapter, on its rows alone; "
        f"{settings['threads']} thread{'s' * (settings['threads'] > 1)} of {settings['processor']}; "
        f"median of {settings['rounds']} rounds",
    )
    top = max(settings["rows"] / row[key] for row in table.rows for key in _seconds(row))
    for place, name in enumerate([*workloads, "bytes"]):
        ax = axes_at(figure, 0.95 + 3.45 * (place % 3), tall - 1.15 - 2.45 * (place // 3 + 1) + 0.75, 1.85, 1.55)
        if name == "bytes":
            _memory(ax, table.where(workload=workloads[0]))
        else:
            _speed(ax, table.where(workload=name), settings["rows"], top)
        ax.set_title("memory" if name == "bytes" else name)
        ax.set_xlabel("adapters")
        if name == "bytes" or not place % 3:
            ax.set_ylabel("bytes" if name == "bytes" else "tokens a second")
    return figure


def _title(table: Table) -> str:
    """What the picture says about the most adapters that were measured."""
    rows = table.where(adapters=max(row["adapters"] for row in table.rows))
    saved = f"{rows[0]['merged_bytes'] / rows[0]['bytes']:.0f}× less memory than merged models"
    ratios = [row["peft_ratio"] for row in rows if row.get("peft_ratio")]  # of the same rounds
    faster = f", {min(ratios):.1f} to {max(ratios):.0f}× PEFT's tokens a second" if ratios else ""
    return f"{rows[0]['adapters']} adapters on one base: {saved}{faster}"


def _seconds(row: dict[str, Any]) -> dict[str, str]:
    """The columns of seconds that the row has → their side."""
    columns = {"ours": "seconds", "merged": "merged_seconds", "peft": "peft_seconds"}
    return {column: side for side, column in columns.items() if row.get(column)}


def _adapters_axis(ax: Axes, rows: list[dict[str, Any]]) -> np.ndarray:
    n = np.array([row["adapters"] for row in rows])
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(n.tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda count, _: f"{count:g}")
    return n


def _lines(ax: Axes, rows: list[dict[str, Any]], values: dict[str, list[float]], names: dict[str, str]) -> None:
    n = _adapters_axis(ax, rows)
    for side, y in values.items():
        ax.plot(n, y, color=SIDES[side][1], marker="o", ms=5, mec=PAPER, mew=0.8)
    ends = [(n[-1], y[-1]) for y in values.values()]
    label_lines(ax, ends, [names[side] for side in values], [SIDES[side][1] for side in values], fontsize=9)


def _speed(ax: Axes, rows: list[dict[str, Any]], batch: int, top: float) -> None:
    ax.set_ylim(0, 1.08 * top)
    values = {side: [batch / row[column] for row in rows] for column, side in _seconds(rows[0]).items()}
    _lines(ax, rows, values, {side: name for side, (name, _) in SIDES.items()})


def _memory(ax: Axes, rows: list[dict[str, Any]]) -> None:
    values = {"ours": [row["bytes"] for row in rows], "merged": [row["merged_bytes"] for row in rows]}
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda size, _: f"{short_count(size)}B".replace("BB", "GB"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(values["ours"][0] / 2, values["merged"][-1] * 2)
    _lines(ax, rows, values, {"ours": "lora_np, PEFT", "merged": "merged"})
