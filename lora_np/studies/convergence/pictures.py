"""LoRA against full fine-tuning: the loss as it falls, the gain that each rank recovers, and the rates tried."""

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
LOOKS: dict[str, dict[str, Any]] = {
    "attention": {"color": LORA, "mec": LORA, "marker": "s", "mfc": PAPER, "ls": (0, (5, 1.5))},
    "all-linear": {"color": LORA_DARK, "mec": LORA_DARK, "marker": "o", "ls": "-"},
}
UNITS = {"step": "training step", "seconds": "training time (seconds)"}


@picture("method r target_modules seed steps heldout seconds", settings="base_loss")
def loss_curves(table: Table, x: str = "step") -> Figure:
    """Held-out loss over steps or seconds: full fine-tuning coral, LoRA cyan (a higher rank is darker), the base grey.

    One panel a kind of target modules, full fine-tuning in each. A line is the mean over seeds, its band their range. The rows
    of the sweep (phase "sweep") are left out. `x` is "step" or "seconds".
    """
    if x not in UNITS:
        raise ValueError(f"x is {x!r}; expected 'step' or 'seconds'.")
    rows, base = _final_rows(table), table.settings["base_loss"]
    seeds, panels = len({row["seed"] for row in rows}), _panels(rows)
    title = "LoRA against full fine-tuning" + ", each at its own best learning rate" * _was_swept(table)
    band = f"mean over {seeds} seeds, the band is their range" if seeds > 1 else "one seed"
    figure = new_figure(9, 4.9, title, semicolons(band, runs_and_time(table)))
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
        ax.set(xlabel=UNITS[x], ylabel="" if place else "held-out loss (nats a byte)")
    return figure


def _was_swept(table: Table) -> bool:
    """Whether each method was tried at several learning rates."""
    tried: dict[tuple, set[float]] = {}
    for row in table.where(phase="sweep"):
        tried.setdefault((row["method"], row["r"], row["target_modules"]), set()).add(row["lr"])
    return bool(tried) and all(len(rates) > 1 for rates in tried.values())


def _final_rows(table: Table) -> Rows:
    """The runs to compare: everything that is no part of the learning-rate sweep."""
    return [row for row in table.rows if row.get("phase") != "sweep"]


def _panels(rows: Rows) -> list[str]:
    kinds = {row["target_modules"] for row in rows if row["method"] == "lora"}
    return [kind for kind in TARGETS if kind in kinds] + sorted(kinds - set(TARGETS))


def _lora(rows: Rows, target: str) -> Rows:
    """LoRA's runs, for one kind of target modules."""
    return [row for row in rows if (row["method"], row["target_modules"]) == ("lora", target)]


def _groups(rows: Rows, target: str) -> dict[str, tuple[str, Rows]]:
    """label → (colour, the runs of all seeds): full fine-tuning, then LoRA by rank, for one kind of target modules."""
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
    """The share of full fine-tuning's held-out gain that each rank recovers, attention-only and with all linear layers.

    A point is the mean over seeds, its bar their range; the coral band is full fine-tuning's own range, 100 % its mean. The
    rows of the sweep (phase "sweep") are left out. `short` is the same study with fewer steps, of which the first kind of
    target modules is drawn too; then both have settings {steps}.
    """
    rows = _final_rows(table)
    own = 100 * np.array([row["recovered"] for row in rows if row["method"] == "full"])
    shares = _shares(rows)
    lines = [(TARGETS.get(t, t), LOOKS.get(t, LOOKS["attention"]), by_rank) for t, by_rank in shares.items()]
    if short is not None:
        target = next(t for t in ("all-linear", *shares) if t in shares)
        lines = [(f"{name}, {table.settings['steps']} steps", look, by_rank) for name, look, by_rank in lines]
        look = LOOKS.get(target, LOOKS["attention"]) | {"mfc": PAPER, "ls": DOTTED, "lw": 1.6, "ms": 5.5}
        lines.append((f"the same, {short.settings['steps']} steps", look, _shares(_final_rows(short))[target]))

    seeds = len({row["seed"] for row in rows})
    subtitle = f"mean and range of {seeds} seeds" if seeds > 1 else "one seed"
    subtitle += ", each method at its own best rate" * _was_swept(table)
    figure = new_figure(9, 4.5, _gain_title(shares, wanted), semicolons(subtitle, runs_and_time(table)))
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
    ends.append(((right, 100 * wanted), f"{percent(wanted)} of its gain", FAINT_INK))
    label_lines(ax, *zip(*ends, strict=True), align=right)
    return figure


def _shares(rows: Rows) -> dict[str, dict[int, np.ndarray]]:
    """target modules → rank → what each seed's run recovered."""
    return {target: arrays(_lora(rows, target), "r", "recovered") for target in _panels(rows)}


def _gain_title(shares: dict[str, dict[int, np.ndarray]], wanted: float) -> str:
    """What the picture says: from which rank on the wanted share is recovered, or the most that was."""
    target = "all-linear" if "all-linear" in shares else next(iter(shares))
    means = {r: share.mean() for r, share in shares[target].items()}
    place = {"all-linear": "With all linear layers", "attention": "In attention alone"}.get(target, f"On {target}")
    missing = [r for r, mean in means.items() if mean < wanted]
    enough = [r for r in means if r > max(missing, default=0)]
    best = max(means, key=lambda r: means[r])
    if not enough:
        return f"{place} LoRA recovers at most {percent(means[best])} of the gain, at r = {best}"
    if enough == [max(means)]:
        return f"{place} LoRA recovers {percent(means[enough[0]])} of the gain at r = {enough[0]}, the highest tried"
    return f"{place} LoRA recovers {percent(wanted)} of the gain from r = {enough[0]} on"


@picture("method r target_modules lr validation")
def learning_rates(table: Table) -> Figure:
    """The loss that the rates are chosen by against the learning rate, for each method; a ring marks each one's best.

    One panel a kind of target modules, full fine-tuning (coral) in each. A run that diverged, or that ended far above the others'
    best, is a triangle at the upper edge. Of the rows those of the sweep (phase "sweep"), or all where none has a phase.
    """
    rows = [row for row in table.rows if row.get("phase", "sweep") == "sweep"]
    panels = {target: _groups(rows, target) for target in _panels(rows)}
    bests = [min(map(_loss, runs)) for each in panels.values() for _, runs in each.values()]
    lowest, highest = min(bests), max(filter(math.isfinite, map(_loss, rows)), default=1.0)
    ceiling = min(highest, max(bests) + 0.4 * (max(bests) - lowest)) if max(bests) > lowest else highest
    span = max(ceiling - lowest, 1e-3)
    off_scale = "triangles ended above the frame" * any(_loss(row) > ceiling for row in rows)
    title = "Each method at several learning rates; the comparison takes its best"
    subtitle = semicolons("one seed; a ring marks the best, and the label gives it", off_scale, runs_and_time(table))
    figure = new_figure(9, 4.7, title if _was_swept(table) else "One rate each", subtitle)
    column, rates = 9 / len(panels), [row["lr"] for row in rows]
    for place, (target, methods) in enumerate(panels.items()):
        ax = axes_at(figure, 0.75 + place * column * 0.97, 0.65, column - 2.0, 3.0, xscale="log")
        ax.set(xlim=(min(rates) / 1.4, max(rates) * 1.4), ylim=(lowest - 0.07 * span, ceiling + 0.07 * span))
        _sweeps(ax, methods, ceiling)
        ax.set_title(TARGETS.get(target, target))
        ax.set(xlabel="learning rate", ylabel="" if place else "validation loss at the end (nats a byte)")
    return figure


def _loss(row: dict[str, Any]) -> float:
    """A run's validation loss; infinite where it diverged (NaN or None)."""
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
