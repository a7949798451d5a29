"""Pictures of adapters in use: the error of many merges, two adapters combined into one, and many adapters on one base."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from ..harness.colours import FAINT_INK, FROZEN, INK, LORA, LORA_DARK, LORA_LIGHT, OTHERS, PAPER, for_text
from ..harness.style import HALO, axes_at, label_lines, log_axis, name_axis, new_figure, note, picture
from ..harness.table import Table, groups, mean
from ..harness.words import percent, semicolons, short_count

ON_THE_CHANGE, ON_THE_FACTORS = LORA, OTHERS[1]


@picture("dtype adapters cycles errors", settings="of share")
def merge_drift(table: Table) -> Figure:
    """Draw the relative error of a weight after n merges and unmerges, with one colour per dtype and logarithmic axes.

    Parameters
    ----------
    table : Table
        A table of the study merge_drift with the columns `dtype`, `adapters`, `cycles` and `errors`. The table has the
        settings `of` and `share`.

    Returns
    -------
    Figure
        Dashed lines: the same adapter is merged every time. Solid lines: each merged adapter is drawn at random.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> merge_drift(Table.load("figures/data/merge_drift.json")).axes[0].get_xlabel()
    'merges and unmerges'
    """
    dtypes = list(dict.fromkeys(row["dtype"] for row in table.rows))
    shades = dict(zip(dtypes, [LORA_LIGHT, LORA, LORA_DARK, INK], strict=False))
    of, share = table.settings["of"], table.settings["share"]
    subtitle = (
        f"dashed lines: always the same random adapter; solid lines: {of} random adapters in turn\n"
        f"each adapter has the size ‖ΔW‖ = {share:g} ‖W‖"
    )
    rows = table.where(dtype=dtypes[0])
    last = {row["adapters"].startswith("the same"): row["errors"][-1] for row in reversed(rows)}
    title = (
        f"After {rows[0]['cycles'][-1]:,} merges in {dtypes[0]}, W's error is {percent(last[True])} with one adapter, "
    )
    figure = new_figure(9, 4.9, f"{title}{percent(last[False])} with {of}", subtitle)
    ax = axes_at(figure, 0.85, 0.65, 5.6, 3.1)
    ends = []
    for row in table.rows:
        same, colour, last = row["adapters"].startswith("the same"), shades[row["dtype"]], row["errors"][-1]
        ax.loglog(row["cycles"], row["errors"], color=colour, ls=(0, (2, 2)) if same else "-")
        label = f"{row['dtype']}, {'1 adapter' if same else f'{of} adapters'}  {last:.0e}"
        ends.append(((row["cycles"][-1], last), label, colour))
    ax.set(xlabel="merges and unmerges", ylabel=r"$\|W - W_0\|\; /\; \|W_0\|$", xlim=(1, max(x for (x, _), *_ in ends)))
    label_lines(ax, *zip(*ends, strict=True))
    return figure


@picture("kind weights code voice error", settings="r density")
def combinations_chart(table: Table) -> Figure:
    """Draw two adapters, combined with each type of combination: the held-out losses on both domains, and the error of ΔW.

    Parameters
    ----------
    table : Table
        A table of the study combinations with the columns `kind`, `weights`, `code`, `voice` and `error`. The table has
        the settings `r` and `density`.

    Returns
    -------
    Figure
        The left panel has the two losses. A dot is the mean of a type over the seeds, with the range of the seeds as a
        cross. The squares are the base and the two adapters, and the line is `cat` with other weights; the squares and
        the line are also means over the seeds. The right panel has the error of ΔW.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> [ax.get_xlabel() for ax in combinations_chart(Table.load("figures/data/combinations.json")).axes]
    ['held-out loss on code (nats per byte)', 'error of ΔW']
    """
    kinds = dict.fromkeys(row["kind"] for row in table.rows if row["kind"] not in ("base", "adapter", "share"))
    losses = {kind: mean(table.where(kind=kind), "code") + mean(table.where(kind=kind), "voice") for kind in kinds}
    seeds = len({row["seed"] for row in table.rows if "seed" in row})
    over = f"; mean and range of {seeds} seeds" if seeds > 1 else ""
    subtitle = (
        "each dot: one type of combination; in brackets: the best factor, which multiplies both adapters\n"
        f"squares: the base and the single adapters; line: the type “cat” with other weights{over}"
    )
    order, colours = sorted(losses, key=lambda kind: losses[kind]), (ON_THE_CHANGE, ON_THE_FACTORS)
    one, other = (next(kind for kind in order if _colour(kind) == colour) for colour in colours)
    title = f"The sum of both losses is {losses[one]:.2f} with the type “{one}” and {losses[other]:.2f} with the type “{other}”"
    figure = new_figure(9, 5.2, title, subtitle)
    _losses(axes_at(figure, 0.75, 0.65, 3.65, 3.35), table, list(kinds))
    _errors(axes_at(figure, 6.85, 0.65, 1.9, 3.35), table, losses)
    return figure


def _colour(kind: str) -> str:
    return ON_THE_CHANGE if kind == "cat" or kind.endswith("svd") else ON_THE_FACTORS


def _losses(ax: Axes, table: Table, types: list[str]) -> None:
    base, *parents = (
        _loss(row for row in table.rows if row["weights"] == weights and row["kind"] in ("base", "adapter"))
        for weights in ([0, 0], [1, 0], [0, 1])
    )
    shares = groups(({"share": row["weights"][1]} | row for row in table.where(kind="share")), "share")
    line = [parents[0], *map(_loss, shares.values()), parents[1]]
    ax.plot(*zip(*line, strict=True), color=FAINT_INK, lw=1, zorder=1)
    for kind in types:
        rows = table.where(kind=kind)
        (x, across), (y, along) = _spread(rows, "code"), _spread(rows, "voice")
        ax.errorbar(x, y, along, across, fmt="o", ms=6, lw=1.2, color=_colour(kind), alpha=0.85)
    named: list[tuple[tuple[float, float], str, str, str, tuple[float, float]]] = [
        # the base and the code adapter can be close: one label is above its square, the other below
        (base, "base", FROZEN, "left", (7, 6)),
        (parents[0], "code alone", INK, "left", (7, -15)),
        (parents[1], "voice alone", INK, "right", (4, 6)),
    ]
    for point, text, colour, side, offset in named:
        ax.plot(*point, "s", ms=7, color=colour)
        note(ax, text, point, offset, colour, ha=side, path_effects=HALO)
    note(ax, "cat", _loss(table.where(kind="cat")), (-8, -12), LORA, ha="right", path_effects=HALO)
    for place, (colour, text) in enumerate(((ON_THE_CHANGE, "● works on ΔW"), (ON_THE_FACTORS, "● works on A and B"))):
        note(ax, text, (1, 1), (-4, -14 - 15 * place), colour, ha="right", xycoords="axes fraction", fontsize=9.5)
    ax.grid(True, axis="both")
    ax.set(xlabel="held-out loss on code (nats per byte)", ylabel="held-out loss on the voice (nats per byte)")


def _loss(rows: Iterable[dict[str, Any]]) -> tuple[float, float]:
    """Return the losses on both domains: means over the seeds."""
    found = list(rows)
    return mean(found, "code"), mean(found, "voice")


def _spread(rows: Rows, column: str) -> tuple[float, list[list[float]]]:
    """Return the mean of a column, and how far its range reaches below and above the mean."""
    values = [row[column] for row in rows]
    middle = mean(rows, column)
    return middle, [[middle - min(values)], [max(values) - middle]]


def _errors(ax: Axes, table: Table, losses: dict[str, float]) -> None:
    """Draw the mean and the range of each type.

    The types are sorted by the sum of both losses; the label of a type shows this sum.
    """
    order, names = sorted(losses, key=lambda kind: -losses[kind]), []
    for place, kind in enumerate(order):
        rows = table.where(kind=kind)
        error, reach = _spread(rows, "error")
        ax.errorbar(error, place, xerr=reach, fmt="o", ms=6, lw=1.2, color=_colour(kind), alpha=0.85)
        names.append(f"{kind} ({rows[0]['weights'][0]:g})  {losses[kind]:.2f}")
    name_axis(ax, names)
    for tick, kind in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_color(for_text(_colour(kind)))
    ax.grid(True, axis="both")
    ax.set_xlim(left=-0.05)
    ax.set_title("sum of both losses", loc="right", x=-0.04, fontsize=9.5, fontweight="normal", color=FAINT_INK)
    ax.set_xlabel("error of ΔW")


COMPETITORS = {  # key → (name, colour, column of seconds)
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
    """Draw tokens per second against the number of adapters, one panel per workload. The last panel shows the bytes.

    Parameters
    ----------
    table : Table
        A table of the study serving with the columns `workload`, `adapters`, `seconds`, `merged_seconds`, `bytes`,
        `merged_bytes` and `adapter_bytes`, and optionally the columns `peft_seconds` and `peft_ratio`. The table has
        the settings `model`, `rows`, `r`, `prompt`, `rounds`, `threads` and `processor`.

    Returns
    -------
    Figure
        The panel of a workload has one line for this library, one for PEFT (if PEFT was measured) and one for merged
        models.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> [ax.get_title(loc="left") for ax in serving_chart(Table.load("figures/data/serving.json")).axes]
    ['identical', 'distinct', 'uniform', 'zipf 1.5', 'skewed', 'memory']
    """
    settings, workloads = table.settings, list(dict.fromkeys(row["workload"] for row in table.rows))
    most = table.where(adapters=max(row["adapters"] for row in table.rows))
    tall, threads = 1.35 + 2.45 * ((len(workloads) + 3) // 3), settings["threads"]
    subtitle = (
        f"each panel: another rule that chooses the adapters (r = {settings['r']}) of the {settings['rows']} rows\n"
        f"{semicolons('grey: one merged model per adapter instead of one base', _peft_ratios(most))}\n"
        f"dots: medians of {settings['rounds']} rounds; {threads} thread{'s' * (threads > 1)} of {settings['processor']}"
    )
    figure = new_figure(9, tall, _memory_title(most), subtitle)
    batch = settings["rows"]
    top = max(batch / row[column] for row in table.rows for *_, column in COMPETITORS.values() if row.get(column))
    for place, name in enumerate([*workloads, "memory"]):
        left, up = 0.92 + 2.78 * (place % 3), tall - 1.35 - 2.45 * (place // 3 + 1) + 0.75
        ax = axes_at(figure, left, up, 1.48, 1.55, title=name)
        if name == "memory":
            _bytes(ax, table.where(workload=workloads[0]))
        else:
            _tokens_per_second(ax, table.where(workload=name), batch, top)
        ax.set_ylabel("" if place % 3 else "tokens per second")
    return figure


def _memory_title(rows: Rows) -> str:
    """Return the title: the memory of merged models, compared with adapters. `rows` have the largest number of adapters."""
    number, times = f"{rows[0]['adapters']:,}", f"{rows[0]['merged_bytes'] / rows[0]['bytes']:.0f}×"
    return f"{number} merged models need {times} the memory of {number} adapters"


def _peft_ratios(rows: Rows) -> str:
    """Return the time of PEFT's step divided by the time of this library's step, or "" without PEFT."""
    ratios = [row["peft_ratio"] for row in rows if row.get("peft_ratio")]  # of the same rounds
    return f"PEFT's step takes {min(ratios):.1f} to {max(ratios):.1f} times as long as lora_np's" if ratios else ""


def _lines(ax: Axes, rows: Rows, values: dict[str, list[float]], names: dict[str, str]) -> None:
    n = [row["adapters"] for row in rows]
    log_axis(ax.xaxis, n, "adapters")
    for name, y in values.items():
        ax.plot(n, y, color=COMPETITORS[name][1], marker="o", ms=5, mec=PAPER, mew=0.8)
    ends = [((n[-1], y[-1]), names[name], COMPETITORS[name][1]) for name, y in values.items()]
    label_lines(ax, *zip(*ends, strict=True), fontsize=9.5, reach=10)


def _tokens_per_second(ax: Axes, rows: Rows, batch: int, top: float) -> None:
    ax.set_ylim(0, 1.08 * top)
    there = {key: column for key, (*_, column) in COMPETITORS.items() if rows[0].get(column)}
    values = {key: [batch / row[column] for row in rows] for key, column in there.items()}
    _lines(ax, rows, values, {key: name for key, (name, *_) in COMPETITORS.items()})


def _bytes(ax: Axes, rows: Rows) -> None:
    values = {"ours": [row["bytes"] for row in rows], "merged": [row["merged_bytes"] for row in rows]}
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(lambda size, _: f"{short_count(size)}B".replace("BB", "GB"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(values["ours"][0] / 2, values["merged"][-1] * 2)
    _lines(ax, rows, values, {"ours": "one base", "merged": "merged"})
