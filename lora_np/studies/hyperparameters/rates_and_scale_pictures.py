"""Pictures of the studies on learning rate and rank, α, and the scaling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from ..harness.colours import FAINT_INK, FULL, LORA, LORA_DARK, OTHERS, PAPER, rank_shades
from ..harness.style import DASHED, DOTTED, axes_at, label_lines, log_axis, new_figure, picture, rank_axis, with_range
from ..harness.table import Table, arrays, groups
from ..harness.words import runs_and_time, semicolons
from .pictures import KEPT, LOSS, OWN, Losses, measured, not_above, octaves

RULES: dict[str, dict[str, Any]] = {
    "α/r": {"color": LORA, "marker": "o", "ls": "-"},
    "α/√r": {"color": LORA_DARK, "marker": "s", "ls": (0, (5, 1.5))},
    "α = 2r": {"color": OTHERS[1], "marker": "^", "ls": DOTTED},
}


@picture("method r rule lr seed phase validation own_best", settings="runs seeds lora_alpha")
def rates_by_rank(table: Table, other: Table | None = None) -> Figure:
    """Draw the validation loss against the learning rate for each rank, and the best learning rate of each rank.

    Parameters
    ----------
    table : Table
        The result of the study "learning_rates_by_rank".
    other : Table, optional
        The result of the study "convergence": longer runs with α in proportion to r.

    Returns
    -------
    matplotlib.figure.Figure
        The left panel has one line per rank for the first seed and a fixed α, with a ring at the best rate. The right
        panel has the best rate against the rank: median and range of the seeds. Two lines mark the best rate of full
        fine-tuning and ten times this rate.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = rates_by_rank(Table.load("figures/data/learning_rates_by_rank.json"))
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['α = 32 for every rank', 'best rate of each rank']
    """
    panels = "left: the first seed, with a ring at the best rate of each rank; right: median and range of the seeds"
    longer = "grey: longer runs with α in proportion to r" if other is not None else ""
    figure = new_figure(9, 5.1, _rate_title(table), f"{panels}\n{semicolons(longer, runs_and_time(table))}")
    left, right = axes_at(figure, 0.8, 0.7, 3.0, 3.1), axes_at(figure, 5.75, 0.7, 1.75, 3.1)
    swept = [row for row in table.where(rule="α/r", phase="sweep") if row["validation"] is not None]
    lines = []
    for r, colour in [(None, FULL), *rank_shades([row["r"] for row in swept if row["r"]]).items()]:
        runs = sorted((row for row in swept if row["r"] == r), key=lambda row: row["lr"])
        points = [(run["lr"], run["validation"]) for run in runs]
        best = min(points, key=lambda point: point[1])
        left.plot(*zip(*points, strict=True), color=colour, marker="o", ms=3.2, lw=1.5 if r else 2.5)
        left.plot(*best, "o", mfc=PAPER, mec=colour, mew=2, ms=8, zorder=4)
        lines.append((best, f"r = {r}" if r else "full", colour))
    rates = octaves(min(row["lr"] for row in swept), max(row["lr"] for row in swept))
    log_axis(left.xaxis, rates[:: 2 if len(rates) > 5 else 1], "learning rate η")
    left.set(xlim=(rates[0] / 1.3, rates[-1] * 1.3), ylabel="validation loss at the end (nats per byte)")
    left.set_title(f"α = {table.settings['lora_alpha']:g} for every rank")
    label_lines(left, *zip(*lines, strict=True), align=left.get_xlim()[1], reach=8)
    _best_rates(right, table, other)
    return figure


def _best_rates(ax: Axes, table: Table, other: Table | None) -> None:
    of_alpha, of_2r = own_bests(table, "α/r"), own_bests(table, "α = 2r")
    full, alpha, ranks = of_alpha[None], table.settings["lora_alpha"], list(table.settings["ranks"])
    middle = np.median(full)
    in_proportion = f"α = {alpha / table.settings['r']:g}r"
    lines = [(f"α = {alpha:g}", RULES["α/r"], of_alpha), (in_proportion, RULES["α = 2r"], of_2r)]
    if other is not None:
        rows = other.where(phase="seeds", method="lora", target_modules="all-linear", seed=other.settings["seeds"][0])
        look = {"color": FAINT_INK, "marker": "D", "ls": (0, (5, 1.5)), "ms": 4.5}
        name = f"α = {other.settings['alpha_over_r']:g}r, {other.settings['steps']} steps"
        lines.append((name, look, arrays(rows, "r", "lr")))
    lines = [(name, look, {r: rates for r, rates in by_rank.items() if r}) for name, look, by_rank in lines]
    ends = [(with_range(ax, by_rank, np.median, **look), name, look["color"]) for name, look, by_rank in lines]
    everything = np.concatenate([full, 10 * full, *(rates for *_, by_rank in lines for rates in by_rank.values())])
    log_axis(ax.yaxis, octaves(everything.min(), everything.max()))
    rank_axis(ax, ranks)
    ax.xaxis.set_major_locator(FixedLocator(ranks[::2]))
    low, high = ax.get_xlim()
    ax.axhspan(full.min(), full.max(), color=FULL, alpha=0.18, lw=0)
    ax.axhline(middle, color=FULL, lw=2.2)
    ax.axhline(10 * middle, color=FULL, lw=1.2, ls=DASHED)
    ax.set(xlim=(low, high), ylabel="best learning rate η", title="best rate of each rank")
    ends += [((high, middle), "full", FULL), ((high, 10 * middle), "10 × full", FULL)]
    label_lines(ax, *zip(*ends, strict=True), align=high, reach=8)


def own_bests(table: Table, rule: str) -> dict[int | None, np.ndarray]:
    """Return the best learning rates of the seeds for each rank (None: full fine-tuning), chosen on validation text."""
    rows = table.where(rule=rule, own_best=True)
    return {r or None: rates for r, rates in arrays([row | {"r": row["r"] or 0} for row in rows], "r", "lr").items()}


def _rate_title(table: Table) -> str:
    """Return the title: LoRA's best rate divided by full fine-tuning's best rate, and how many seeds differ."""
    by_rank = own_bests(table, "α/r")
    full, rates = np.median(by_rank.pop(None)), by_rank.values()
    ratios = sorted(np.median(found) / full for found in rates)
    times = " to ".join(dict.fromkeys(f"{ratio:.2g}" for ratio in (ratios[0], ratios[-1])))
    strays = [f"{rate / full:.2g}" for found in rates for rate in found if rate != np.median(found)]
    but = f" ({strays[0]}× with one seed)" if len(strays) == 1 else f" ({len(strays)} seeds differ)" * bool(strays)
    return (
        f"At α = {table.settings['lora_alpha']:g}, LoRA's best learning rate is {times}× that of full fine-tuning{but}"
    )


@picture("lora_alpha lr seed phase final", settings="runs seeds r fixed_lr")
def alpha_chart(table: Table) -> Figure:
    """Draw the loss at one learning rate and at the best rate, and the best learning rate, against α.

    Parameters
    ----------
    table : Table
        The result of the study "alpha".

    Returns
    -------
    matplotlib.figure.Figure
        Left: the losses. Right: the best rate η, with dashed lines where η·α or η²·α stays constant.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = alpha_chart(Table.load("figures/data/alpha.json"))
    >>> [ax.get_xlabel() for ax in figure.axes]
    ['α', 'α']
    """
    rate, r = table.settings["fixed_lr"], table.settings["r"]
    kept, own = arrays(table.where(phase="fixed"), "lora_alpha"), arrays(table.where(phase="seeds"), "lora_alpha")
    widest = [max(v.mean() for v in d.values()) - min(v.mean() for v in d.values()) for d in (kept, own)]
    title = f"α changes the loss by {widest[0]:.3f} if η stays the same, by {widest[1]:.3f} if each α has its best η"
    figure = new_figure(9, 4.4, title, semicolons(f"LoRA with r = {r}", measured(table)))
    left, right = axes_at(figure, 0.85, 0.7, 2.7, 2.8), axes_at(figure, 5.9, 0.7, 1.9, 2.8)
    ends = [with_range(left, kept, **KEPT), with_range(left, own, **OWN)]
    log_axis(left.xaxis, list(kept))
    left.set(xlabel="α", ylabel=LOSS)
    label_lines(left, ends, [f"all at η = {rate:g}", "best η of each α"], [OTHERS[1], LORA], align=left.get_xlim()[1])
    best = {a: found[0]["lr"] for a, found in groups(table.where(phase="seeds"), "lora_alpha").items()}
    alphas, rates = np.array(list(best)), np.array(list(best.values()))
    right.plot(alphas, rates, color=LORA, marker="o", ms=6.5)
    lines = [((alphas[-1], rates[-1]), "best rate", LORA)]
    centre, middle = (np.exp(np.log(values).mean()) for values in (alphas, rates))  # geometric means
    for name, power, colour in (("η·α constant", 1.0, OTHERS[0]), ("η²·α constant", 0.5, FAINT_INK)):
        kept_rates = middle * (centre / alphas) ** power
        right.plot(alphas, kept_rates, color=colour, lw=1.2, ls=DASHED)
        lines.append(((alphas[-1], kept_rates[-1]), name, colour))
    low, high = min(rates.min(), middle * (centre / alphas[-1])), max(rates.max(), middle * centre / alphas[0])
    log_axis(right.yaxis, octaves(low, high, 2), "best learning rate η")
    log_axis(right.xaxis, list(best), "α")
    label_lines(right, *zip(*lines, strict=True), align=right.get_xlim()[1], reach=8)
    return figure


@picture("rule r seed final grad_norm", settings="runs seeds r fixed_lr base_loss")
def rank_scaling_chart(table: Table) -> Figure:
    """Draw the loss and the norm of the first gradient against the rank, for α/r, α/√r and α = 2r at one learning rate.

    Parameters
    ----------
    table : Table
        The result of the study "scaling".

    Returns
    -------
    matplotlib.figure.Figure
        Left: the loss at the end. Right: the norm of the first gradient. Points are means over the seeds; bars are the
        range of the seeds.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = rank_scaling_chart(Table.load("figures/data/scaling.json"))
    >>> figure.axes[1].get_ylabel()
    'norm of the first gradient'
    """
    settings = table.settings
    rules = [rule for rule in RULES if table.where(rule=rule)]
    losses = {rule: arrays(table.where(rule=rule), "r") for rule in rules}
    kept = f"all runs at the learning rate {settings['fixed_lr']:g}; {measured(table)}"
    figure = new_figure(9, 4.4, _scaling_title(losses, settings["r"]), kept)
    left, right = axes_at(figure, 0.85, 0.7, 2.9, 2.8), axes_at(figure, 5.6, 0.7, 2.3, 2.8)
    norms = {rule: arrays(table.where(rule=rule), "r", "grad_norm") for rule in rules}
    for ax, what in ((left, losses), (right, norms)):
        ends = [(with_range(ax, what[rule], **RULES[rule]), rule, RULES[rule]["color"]) for rule in rules]
        rank_axis(ax, list(what[rules[0]]))
        if ax is right:
            values = [v.mean() for by_rank in norms.values() for v in by_rank.values()]
            low, high = math.floor(math.log2(min(values))), math.ceil(math.log2(max(values)))
            log_axis(ax.yaxis, [2.0**n for n in range(low, high + 1)])
        label_lines(ax, *zip(*ends, strict=True), align=ax.get_xlim()[1], reach=8)
    left.set_ylabel(LOSS)
    right.set_ylabel("norm of the first gradient")
    return figure


def _scaling_title(losses: Mapping[str, Losses], r: int) -> str:
    """Return the title: the rule or rules with the lowest loss at the largest rank."""
    top = {rule: by_rank[max(by_rank)] for rule, by_rank in losses.items()}
    best = min(top.values(), key=np.mean)
    lowest = [rule for rule, found in top.items() if not_above(found, best)]
    highest: int = max(next(iter(losses.values())))
    has = "has" if len(lowest) == 1 else "have"
    return f"At r = {highest}, {' and '.join(lowest)} {has} the lowest loss, with the learning rate tuned at r = {r}"
