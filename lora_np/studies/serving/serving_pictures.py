"""What many adapters cost: tokens a second on each workload, and bytes, as their number grows."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..harness.colours import FROZEN, LORA, OTHERS, PAPER
from ..harness.style import axes_at, label_lines, log_axis, new_figure, picture
from ..harness.table import Table
from ..harness.words import short_count

SIDES = {  # side → (its name, its colour, its column of seconds)
    "ours": ("lora_np", LORA, "seconds"),
    "merged": ("merged", FROZEN, "merged_seconds"),
    "peft": ("PEFT", OTHERS[1], "peft_seconds"),
}
Rows = list[dict[str, Any]]


@picture(
    "workload adapters seconds merged_seconds bytes merged_bytes adapter_bytes",
    settings="model rows r prompt rounds threads processor",
)
def serving_chart(table: Table) -> Figure:
    """Tokens a second against the number of adapters, a panel a workload: ours cyan, PEFT green, merged models grey; then bytes.

    Columns that are drawn where they are there: peft_seconds, peft_ratio.
    """
    settings, workloads = table.settings, list(dict.fromkeys(row["workload"] for row in table.rows))
    tall, threads = 1.15 + 2.45 * ((len(workloads) + 3) // 3), settings["threads"]
    subtitle = (
        f"a decode step of {settings['rows']} rows on {settings['model']}, r = {settings['r']} in every linear layer; "
        "the rows' adapters are drawn by the workload\nmerged: one merged model for each adapter, on its rows alone; "
        f"{threads} thread{'s' * (threads > 1)} of {settings['processor']}; median of {settings['rounds']} rounds"
    )
    figure = new_figure(11, tall, _title(table), subtitle)
    batch = settings["rows"]
    top = max(batch / row[column] for row in table.rows for *_, column in SIDES.values() if row.get(column))
    for place, name in enumerate([*workloads, "memory"]):
        left, up = 0.95 + 3.45 * (place % 3), tall - 1.15 - 2.45 * (place // 3 + 1) + 0.75
        ax = axes_at(figure, left, up, 1.85, 1.55, title=name)
        if name == "memory":
            _memory(ax, table.where(workload=workloads[0]))
        else:
            _speed(ax, table.where(workload=name), batch, top)
        ax.set_ylabel("bytes" if name == "memory" else "" if place % 3 else "tokens a second")
    return figure


def _title(table: Table) -> str:
    """What the picture says about the most adapters that were measured."""
    rows = table.where(adapters=max(row["adapters"] for row in table.rows))
    saved = f"{rows[0]['merged_bytes'] / rows[0]['bytes']:.0f}× less memory than merged models"
    ratios = [row["peft_ratio"] for row in rows if row.get("peft_ratio")]  # of the same rounds
    faster = f", {min(ratios):.1f} to {max(ratios):.0f}× PEFT's tokens a second" if ratios else ""
    return f"{rows[0]['adapters']} adapters on one base: {saved}{faster}"


def _lines(ax: Axes, rows: Rows, values: dict[str, list[float]], names: dict[str, str]) -> None:
    n = [row["adapters"] for row in rows]
    log_axis(ax.xaxis, n, "adapters")
    for side, y in values.items():
        ax.plot(n, y, color=SIDES[side][1], marker="o", ms=5, mec=PAPER, mew=0.8)
    ends = [((n[-1], y[-1]), names[side], SIDES[side][1]) for side, y in values.items()]
    label_lines(ax, *zip(*ends, strict=True), fontsize=9)


def _speed(ax: Axes, rows: Rows, batch: int, top: float) -> None:
    ax.set_ylim(0, 1.08 * top)
    there = {side: column for side, (*_, column) in SIDES.items() if rows[0].get(column)}
    values = {side: [batch / row[column] for row in rows] for side, column in there.items()}
    _lines(ax, rows, values, {side: name for side, (name, *_) in SIDES.items()})


def _memory(ax: Axes, rows: Rows) -> None:
    values = {"ours": [row["bytes"] for row in rows], "merged": [row["merged_bytes"] for row in rows]}
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda size, _: f"{short_count(size)}B".replace("BB", "GB"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(values["ours"][0] / 2, values["merged"][-1] * 2)
    _lines(ax, rows, values, {"ours": "lora_np, PEFT", "merged": "merged"})
