"""Pictures of LoRA and full fine-tuning: the loss over time, the recovered gain, and the learning rates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, FULL, LORA, LORA_DARK, PAPER, rank_shades
from ..harness.style import DASHED, DOTTED, EDGE, axes_at, label_lines, new_figure, note, picture, rank_axis, with_range
from ..harness.table import Table, arrays, groups
from ..harness.words import percent, runs_and_time, semicolons

Rows = list[dict[str, Any]]
TARGETS = {"attention": "attention only", "all-linear": "all linear layers"}
GAIN = "full fine-tuning's gain"
LOOKS: dict[str, dict[str, Any]] = {
    "attention": {"color": LORA, "mec": LORA, "marker": "s", "mfc": PAPER, "ls": (0, (5, 1.5))},
    "all-linear": {"color": LORA_DARK, "mec": LORA_DARK, "marker": "o", "ls": "-"},
}
UNITS = {"step": "training step", "seconds": "training time (seconds)"}


@picture("method r target_modules seed steps heldout seconds", settings="base_loss")
def loss_curves(table: Table, x: str = "step") -> Figure:
    """Draw the held-out loss over training steps or seconds, for full fine-tuning and LoRA at each rank.

    Parameters
    ----------
    table : Table
        The result of the study "convergence". Runs of the learning-rate sweep are not drawn.
    x : "step" or "seconds"
        The quantity on the horizontal axis.

    Returns
    -------
    matplotlib.figure.Figure
        One panel per choice of target modules. Full fine-tuning is coral, LoRA is cyan (darker for higher ranks), and
        the base is grey. Lines are means over the seeds; bands are the ranges of the seeds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = loss_curves(Table.load("figures/data/convergence.json"))
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['attention only', 'all linear layers']
    """
    if x not in UNITS:
        raise ValueError(f"x is {x!r}; expected 'step' or 'seconds'.")
    rows, base = _final_rows(table), table.settings["base_loss"]
    seeds, panels = len({row["seed"] for row in rows}), _panels(rows)
    lines = f"lines and bands: mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    lines = semicolons(lines, "each method at its best learning rate" * _was_swept(table), runs_and_time(table))
    figure = new_figure(9, 4.9, _curves_title(rows), lines)
    column = 9 / len(panels)
    lowest = min(min(row["heldout"]) for row in rows)
    span = base - lowest
    for place, target in enumerate(panels):
        ax = axes_at(figure, 0.75 + place * column * 0.97, 0.65, column - 1.85, 3.0)
        ax.set_ylim(lowest - 0.13 * span, base + 0.09 * span)
        _curves(ax, _groups(rows, target), "steps" if x == "step" else x)
        ax.axhline(base, color=FROZEN, lw=2, zorder=1.5)
        note(ax, f"frozen base {base:.3f}", (1, base), (0, 4), FROZEN, xycoords=EDGE, ha="right", fontsize=9.5)
        ax.set_title(TARGETS.get(target, target), pad=12)
        ax.set(xlabel=UNITS[x], ylabel="" if place else "held-out loss (nats per byte)")
    return figure


def _curves_title(rows: Rows) -> str:
    """Return the title: whether LoRA ends at a higher loss than full fine-tuning, and whether rank narrows the gap."""
    panels = [_groups(rows, target) for target in _panels(rows)]
    ends = [[np.mean([run["heldout"][-1] for run in runs]) for _, runs in panel.values()] for panel in panels]
    if not all("full" in panel and min(lora) > full for panel, (full, *lora) in zip(panels, ends, strict=True)):
        return "The held-out loss of LoRA and full fine-tuning"
    falling = all(len(lora) > 1 and (np.diff(lora) < 0).all() for _, *lora in ends)
    return "LoRA ends at a higher loss than full fine-tuning" + "; a higher rank narrows the gap" * falling


def _rates_title(panels: dict[str, dict[str, tuple[str, Rows]]]) -> str:
    """Return the title: whether, in all panels, the highest rank has a lower best rate than the lowest rank."""
    best = [
        {runs[0]["r"]: min(runs, key=_loss)["lr"] for _, runs in methods.values() if runs[0]["r"]}
        for methods in panels.values()
    ]
    low, high = min(map(min, best)), max(map(max, best))
    if low < high and all(rates[max(rates)] < rates[min(rates)] for rates in best):
        return f"LoRA's best learning rate is lower at r = {high} than at r = {low}"
    return "The final loss of each method at several learning rates"


def _was_swept(table: Table) -> bool:
    """Return True if each method was run at several learning rates."""
    tried: dict[tuple, set[float]] = {}
    for row in table.where(phase="sweep"):
        tried.setdefault((row["method"], row["r"], row["target_modules"]), set()).add(row["lr"])
    return bool(tried) and all(len(rates) > 1 for rates in tried.values())


def _final_rows(table: Table) -> Rows:
    """Return the runs to compare, without the runs of the learning-rate sweep."""
    return [row for row in table.rows if row.get("phase") != "sweep"]


def _panels(rows: Rows) -> list[str]:
    kinds = {row["target_modules"] for row in rows if row["method"] == "lora"}
    return [kind for kind in TARGETS if kind in kinds] + sorted(kinds - set(TARGETS))


def _lora(rows: Rows, target: str) -> Rows:
    """Return the runs of LoRA with the given target modules."""
    return [row for row in rows if (row["method"], row["target_modules"]) == ("lora", target)]


def _groups(rows: Rows, target: str) -> dict[str, tuple[str, Rows]]:
    """Return a mapping from a label to a colour and runs: full fine-tuning, and LoRA at each rank."""
    shades = rank_shades([row["r"] for row in rows if row["method"] == "lora"])
    full = [row for row in rows if row["method"] == "full"]
    lora = {f"r = {r}": (shades[r], runs) for r, runs in groups(_lora(rows, target), "r").items()}
    return ({"full": (FULL, full)} if full else {}) | lora


def _curves(ax: Axes, methods: dict[str, tuple[str, Rows]], x: str) -> None:
    lines = []
    for label, (colour, runs) in methods.items():
        shortest = min(len(run["heldout"]) for run in runs)
        across = np.mean([run[x][:shortest] for run in runs], axis=0)
        losses = np.array([run["heldout"][:shortest] for run in runs], float)
        mean, look = losses.mean(axis=0), {"lw": 2.8, "zorder": 2.4} if label == "full" else {"lw": 1.6, "zorder": 2.5}
        ax.plot(across, mean, color=colour, **look)
        ax.fill_between(across, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.18, lw=0)
        lines.append(((across[-1], mean[-1]), f"{label}  {mean[-1]:.3f}", colour))
    ax.set_xlim(0, max(end[0] for end, *_ in lines))
    label_lines(ax, *zip(*lines, strict=True))


@picture("method r target_modules seed recovered")
def recovered_gain(table: Table, short: Table | None = None, wanted: float = 0.95) -> Figure:
    """Draw the share of full fine-tuning's gain that LoRA recovers at each rank.

    Parameters
    ----------
    table : Table
        The result of the study "convergence". Runs of the learning-rate sweep are not drawn.
    short : Table, optional
        The result of the same study with fewer steps. If `short` is given, both tables need the setting "steps".
    wanted : float
        The share of the gain that counts as enough. The title gives the lowest rank that reaches this share; a dashed
        line marks the share.

    Returns
    -------
    matplotlib.figure.Figure
        Points are means over the seeds; bars are the ranges of the seeds. The coral line is the mean of full
        fine-tuning; the coral band is the range of its seeds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> recovered_gain(Table.load("figures/data/convergence.json")).axes[0].get_ylabel()
    "share of full fine-tuning's gain (%)"
    """
    rows = _final_rows(table)
    own = 100 * np.array([row["recovered"] for row in rows if row["method"] == "full"])
    shares = _shares(rows)
    lines = [(TARGETS.get(t, t), LOOKS.get(t, LOOKS["attention"]), by_rank) for t, by_rank in shares.items()]
    if short is not None:
        target = next(t for t in ("all-linear", *shares) if t in shares)
        lines = [(f"{name}, {table.settings['steps']} steps", look, by_rank) for name, look, by_rank in lines]
        look = LOOKS.get(target, LOOKS["attention"]) | {"mfc": PAPER, "ls": DOTTED, "lw": 1.6, "ms": 5.5}
        lines.append(
            (
                f"{TARGETS.get(target, target)}, {short.settings['steps']} steps",
                look,
                _shares(_final_rows(short))[target],
            )
        )

    seeds = len({row["seed"] for row in rows})
    marks = f"marks and bars: mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    marks = semicolons(marks, "each method at its best learning rate" * _was_swept(table), runs_and_time(table))
    figure = new_figure(9, 4.5, _gain_title(shares, wanted), marks)
    ax = axes_at(figure, 0.85, 0.7, 5.9 if short else 6.3, 2.85)
    ax.axhspan(own.min(), own.max(), color=FULL, alpha=0.18, lw=0)
    ax.axhline(100, color=FULL, lw=2.4)
    ax.axhline(100 * wanted, color=FAINT_INK, lw=1.2, ls=DASHED)
    ends = []
    for name, look, by_rank in lines:
        percents = {r: 100 * share for r, share in by_rank.items()}
        end = with_range(ax, percents, **{"lw": 2, "ms": 7.5, "capsize": 3.5, "mew": 1.6} | look)
        ends.append((end, name, look["color"]))
    rank_axis(ax, sorted({r for by_rank in shares.values() for r in by_rank}))
    ax.set_ylabel("share of full fine-tuning's gain (%)")
    right = ax.get_xlim()[1]
    ends.append(((right, 100), "full fine-tuning", FULL))
    ends.append(((right, 100 * wanted), f"{percent(wanted)} of the gain", FAINT_INK))
    label_lines(ax, *zip(*ends, strict=True), align=right)
    return figure


def _shares(rows: Rows) -> dict[str, dict[int, np.ndarray]]:
    """Return the recovered shares by target modules and rank: an array with one share per seed."""
    return {target: arrays(_lora(rows, target), "r", "recovered") for target in _panels(rows)}


def _gain_title(shares: dict[str, dict[int, np.ndarray]], wanted: float) -> str:
    """Return the title: the lowest rank that recovers the wanted share, or the largest share recovered."""
    target = "all-linear" if "all-linear" in shares else next(iter(shares))
    means = {r: share.mean() for r, share in shares[target].items()}
    place = {"all-linear": "all linear layers", "attention": "attention alone"}.get(target, target)
    missing = [r for r, mean in means.items() if mean < wanted]
    enough = [r for r in means if r > max(missing, default=0)]
    best = max(means, key=lambda r: means[r])
    if not enough:
        return f"LoRA on {place} recovers at most {percent(means[best])} of {GAIN}, at r = {best}"
    if enough == [max(means)]:
        return f"LoRA on {place} recovers {percent(means[enough[0]])} of {GAIN} at r = {enough[0]}"
    return f"LoRA on {place} recovers {percent(wanted)} of {GAIN} from r = {enough[0]} on"


@picture("method r target_modules lr validation")
def learning_rates(table: Table) -> Figure:
    """Draw the validation loss at the end of training against the learning rate, for each method.

    Parameters
    ----------
    table : Table
        The result of the study "convergence". Only the runs of the learning-rate sweep are drawn. A row without the
        column `phase` counts as a run of the sweep.

    Returns
    -------
    matplotlib.figure.Figure
        One panel per choice of target modules; rings mark the best learning rate of each method. A triangle at the
        upper edge is a run that diverged, or whose final loss is far above the other losses.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> learning_rates(Table.load("figures/data/convergence.json")).axes[0].get_xscale()
    'log'
    """
    rows = [row for row in table.rows if row.get("phase", "sweep") == "sweep"]
    panels = {target: _groups(rows, target) for target in _panels(rows)}
    bests = [min(map(_loss, runs)) for each in panels.values() for _, runs in each.values()]
    lowest, highest = min(bests), max(filter(math.isfinite, map(_loss, rows)), default=1.0)
    ceiling = min(highest, max(bests) + 0.4 * (max(bests) - lowest)) if max(bests) > lowest else highest
    span = max(ceiling - lowest, 1e-3)
    off_scale = "triangles: losses above the frame" * any(_loss(row) > ceiling for row in rows)
    subtitle = semicolons("rings: the best rate of each method, chosen with one seed", off_scale, runs_and_time(table))
    figure = new_figure(9, 4.7, _rates_title(panels), subtitle)
    column, rates = 9 / len(panels), [row["lr"] for row in rows]
    for place, (target, methods) in enumerate(panels.items()):
        ax = axes_at(figure, 0.75 + place * column * 0.97, 0.65, column - 2.0, 3.0, xscale="log")
        ax.set(xlim=(min(rates) / 1.4, max(rates) * 1.4), ylim=(lowest - 0.07 * span, ceiling + 0.07 * span))
        _sweeps(ax, methods, ceiling)
        ax.set_title(TARGETS.get(target, target))
        ax.set(xlabel="learning rate", ylabel="" if place else "final validation loss (nats per byte)")
    return figure


def _loss(row: dict[str, Any]) -> float:
    """Return the validation loss of a run; a run that diverged (NaN or None) counts as infinite."""
    loss = row["validation"]
    return math.inf if loss is None or math.isnan(loss) else float(loss)


def _sweeps(ax: Axes, methods: dict[str, tuple[str, Rows]], ceiling: float) -> None:
    lines = []
    for label, (colour, runs) in methods.items():
        runs = sorted(runs, key=lambda run: run["lr"])
        rates, losses = np.array([run["lr"] for run in runs]), np.array([_loss(run) for run in runs])
        shown, lost, best = np.minimum(losses, ceiling), losses > ceiling, int(np.argmin(losses))
        ax.plot(rates, shown, color=colour, lw=2.6 if label == "full" else 1.5, marker="o", ms=3.5)
        ax.plot(rates[lost], shown[lost], "^", color=colour, ms=8, mec=PAPER)
        ax.plot(rates[best], shown[best], "o", mfc=PAPER, mec=colour, mew=2.2, ms=9, zorder=4)
        lines.append(((rates[best], shown[best]), f"{label} at {rates[best]:.2g}", colour))
    label_lines(ax, *zip(*lines, strict=True), align=ax.get_xlim()[1])
