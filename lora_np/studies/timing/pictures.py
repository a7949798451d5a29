"""Two pictures: the time and the memory of a LoRA step of each competitor, and how the time grows."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from ..harness.colours import FAINT_INK, FROZEN, INK, LORA, LORA_LIGHT, OTHERS, PAPER, for_text
from ..harness.style import DASHED, HALO, axes_at, name_axis, new_figure, note, picture, rank_axis
from ..harness.table import Table, model_name

COMPETITORS = {  # competitor → (its name, its colour)
    "ours": ("lora_np", LORA),
    "ours, one worker": ("lora_np, workers=1", LORA_LIGHT),
    "PEFT": ("PyTorch + PEFT", OTHERS[1]),
    "PEFT compiled": ("PEFT, compiled", OTHERS[0]),
}


@picture("case competitor seconds ratio peak_bytes rounds", settings="cases threads rounds processor")
def speed_chart(table: Table) -> Figure:
    """Draw the seconds and the peak memory of a LoRA step: one bar per competitor and case.

    Parameters
    ----------
    table : Table
        The result of `lora_np.studies.timing.speed.speed`.

    Returns
    -------
    matplotlib.figure.Figure
        The bars of lora_np are cyan; the bars of PyTorch with PEFT are green. The grey part of a bar is the floor: the
        time of the products with frozen matrices alone, in NumPy's BLAS. The memory includes the weights and the
        libraries. The black line is the middle half of the rounds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> len(speed_chart(Table.load("figures/data/speed.json")).axes)  # time and memory of three cases
    6
    """
    settings = table.settings
    cases = [case for case in settings["cases"] if table.where(case=case)]
    groups = [[row for row in table.where(case=case) if row["competitor"] in COMPETITORS] for case in cases]
    heights = [0.34 * len(rows) for rows in groups]
    tall = 1.25 + sum(heights) + 0.75 * len(cases)
    blas = settings.get("blas", {}).get("floor", {}).get("blas", "")  # another BLAS may be faster
    floor_of = f"NumPy ({blas.split()[0]})" if blas else "NumPy"
    subtitle = (
        f"grey: the floor, which is the time of the products with frozen matrices in {floor_of}\n"
        f"{_machine(settings, 'bars', 'black lines')}"
    )
    figure = new_figure(9, tall, _title(table, cases), subtitle)
    bottom = tall - 0.9
    for case, rows, height in zip(cases, groups, heights, strict=True):
        bottom -= height + 0.6
        floor = next((row["seconds"] for row in table.where(case=case, competitor="floor")), 0.0)
        batch = settings["cases"][case]
        size = f"{model_name(case)}, {batch['batch_size']} × {batch['seq_len']} tokens"
        _seconds(axes_at(figure, 1.5, bottom, 3.6, height, title=size), rows, floor)
        ax = axes_at(figure, 6.75, bottom, 1.35, height)
        _memory(ax, rows)
        ax.set_title("peak memory", fontweight="normal")
        bottom -= 0.15
    return figure


def _machine(settings: dict[str, Any], medians: str, spreads: str) -> str:
    threads = settings["threads"]
    of = f"{threads} thread{'s' * (threads > 1)} of {settings['processor']}"
    return f"{medians} and {spreads}: median and middle half of {settings['rounds']} rounds; {of}"


def _title(table: Table, cases: list[str]) -> str:
    """Return the title: PEFT's time divided by this library's time, on SmolLM2-135M or else on the first case."""
    case = "smollm2-135m" if "smollm2-135m" in cases else cases[0]
    ratios = {row["competitor"]: row["ratio"] for row in table.where(case=case) if row["competitor"] != "floor"}
    eager, compiled = ratios.get("PEFT"), ratios.get("PEFT compiled")
    if eager is None:
        return f"The cost of a LoRA step on {model_name(case)}"
    also = "" if compiled is None else f" (compiled PEFT: {compiled:.2f}×)"
    return f"On {model_name(case)}, PEFT takes {eager:.2f}× the time of lora_np{also}"


def _bars(ax: Axes, rows: list[dict[str, Any]], names: list[str], longest: float) -> None:
    """Set up the axes of a bar chart with one bar per row and no ticks."""
    ax.set(ylim=(len(rows) - 0.5, -0.5), xticks=[], xlim=(0, longest))
    name_axis(ax, names)
    ax.grid(False)
    ax.spines[["left", "bottom"]].set_visible(False)


def _seconds(ax: Axes, rows: list[dict[str, Any]], floor: float) -> None:
    for place, row in enumerate(rows):
        seconds, (_, colour) = row["seconds"], COMPETITORS[row["competitor"]]
        low, high = np.percentile(row["rounds"], [25, 75])
        ax.barh(place, seconds, height=0.7, color=colour)
        ax.barh(place, min(floor, seconds), height=0.7, color=FROZEN)
        ax.plot([low, high], [place, place], color=INK, lw=1.6, solid_capstyle="butt", path_effects=HALO)
        ratio = "" if row["ratio"] is None or row["competitor"] == "ours" else f"   {row['ratio']:.2f}×"
        note(ax, f"{_seconds_said(seconds)}{ratio}", (max(seconds, high), place), (6, 0), colour, va="center_baseline")
    if floor:
        look = {"ha": "right", "va": "top", "fontsize": 9}
        note(ax, f"floor {_seconds_said(floor)}", (floor, len(rows) - 0.5), (0, -2), FROZEN, **look)
    _bars(ax, rows, [COMPETITORS[row["competitor"]][0] for row in rows], max(row["seconds"] for row in rows))


def _memory(ax: Axes, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        size, (_, colour) = row["peak_bytes"] or 0, COMPETITORS[row["competitor"]]
        ax.barh(place, size, height=0.7, color=colour)
        said = "not known" if not size else f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
        note(ax, said, (size, place), (6, 0), colour, va="center_baseline")
    _bars(ax, rows, [""] * len(rows), max(row["peak_bytes"] or 1 for row in rows))


def _seconds_said(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.0f} ms"


SWEEPS = {  # sweep → (label of its axis, its unit)
    "tokens": ("tokens in {batch_size} rows", "token"),
    "batch": ("rows of {seq_len} tokens", "row"),
    "layers": ("layers (vocabulary of {vocab_size}, a small head)", "layer"),
    "r": ("rank r", "rank"),
}


@picture("sweep x seconds rounds ratio batch_size seq_len vocab_size", settings="lines shape threads processor rounds")
def scaling_chart(table: Table) -> Figure:
    """Draw the seconds of a step against tokens, rows, layers and rank, with a fitted straight line in each panel.

    Parameters
    ----------
    table : Table
        The result of `lora_np.studies.timing.speed.speed_scaling`. The setting "lines" has the straight line of each
        sweep.

    Returns
    -------
    matplotlib.figure.Figure
        Points are medians of the rounds; bars are the middle halves of the rounds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> len(scaling_chart(Table.load("figures/data/speed_scaling.json")).axes)
    4
    """
    settings = table.settings
    sweeps = {sweep: table.where(sweep=sweep) for sweep in SWEEPS if table.where(sweep=sweep)}
    tall = 1.05 + 2.75 * ((len(sweeps) + 1) // 2)
    shape = model_name(settings["shape"])
    subtitle = f"training steps of a model with random weights and the shape of {shape}\n"
    subtitle += _machine(settings, "dots", "bars")
    figure = new_figure(9, tall, _growth({name: rows for name, rows in sweeps.items() if name != "r"}), subtitle)
    for place, (sweep, rows) in enumerate(sweeps.items()):
        left, up = 0.8 + 4.45 * (place % 2), tall - 1.0 - 2.75 * (place // 2 + 1) + 0.7
        _sweep(axes_at(figure, left, up, 3.45, 1.95), sweep, rows, settings["lines"][sweep])
    return figure


def _growth(sweeps: dict[str, list[dict[str, Any]]]) -> str:
    """Return the title: growth counts as linear if the slopes of both halves of each sweep are nearly equal.

    "Nearly equal" means that the ratio of the two slopes is between 0.8 and 1.25.
    """
    bends = []
    for rows in sweeps.values():
        first, middle, last = ((row["x"], row["seconds"]) for row in (rows[0], rows[len(rows) // 2], rows[-1]))
        early, late = ((b[1] - a[1]) / (b[0] - a[0]) for a, b in ((first, middle), (middle, last)))
        bends.append(late / early if early > 0 else np.inf)
    if not bends or not all(0.8 <= bend <= 1.25 for bend in bends):
        return "How the time of a LoRA step grows"
    names = [{"batch": "rows"}.get(sweep, sweep) for sweep in sweeps]
    several = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"The time of a LoRA step grows linearly with {several}"


def _sweep(ax: Axes, sweep: str, rows: list[dict[str, Any]], line: dict[str, float]) -> None:
    label, one = SWEEPS[sweep]
    x = np.array([row["x"] for row in rows])
    seconds = np.array([row["seconds"] for row in rows])
    low, high = np.percentile([row["rounds"] for row in rows], [25, 75], axis=1)
    along = np.linspace(x.min() if sweep == "r" else 0, x.max(), 100)
    ax.plot(along, line["slope"] * along + line["intercept"], color=FAINT_INK, lw=1.2, ls=DASHED, zorder=1.5)
    bars = np.maximum(0, [seconds - low, high - seconds])
    ax.errorbar(x, seconds, bars, color=LORA, ls="", marker="o", ms=6.5, mec=PAPER, mew=0.8, capsize=3)
    ax.set_ylim(0, 1.3 * max(seconds.max(), high.max()))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    if sweep == "r":
        rank_axis(ax, x.tolist())
        said = f"r = {x[-1]} takes {rows[-1]['ratio']:.2f}× as long as r = {x[0]}"
    else:
        ax.set_xlim(0, 1.04 * x.max())
        ax.xaxis.set_major_locator(FixedLocator(_apart(x)))
        said = f"{1000 * line['slope']:.3g} ms per {one}, R² = {line['r_squared']:.4f}"
    ax.text(0.02, 0.97, said, transform=ax.transAxes, va="top", color=for_text(LORA), path_effects=HALO)
    ax.set(xlabel=label.format(**rows[0]), ylabel="seconds per step")


def _apart(x: np.ndarray, share: float = 0.09) -> list[float]:
    """Return the values of the sorted x whose labels do not overlap; the last value is always included."""
    kept = [x[-1]]
    for value in x[-2::-1]:
        if kept[-1] - value >= share * x[-1]:
            kept.append(value)
    return kept
