"""Pictures of the studies on target modules, dropout and batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, FULL, LORA, LORA_DARK, LORA_LIGHT, OTHERS, PAPER
from ..harness.style import DOTTED, EDGE, axes_at, label_lines, log_axis, new_figure, note, picture, with_range
from ..harness.table import Table, arrays, groups
from ..harness.words import runs_and_time, semicolons, short_count

Losses = Mapping[Any, np.ndarray]
LOSS = "held-out loss at the end (nats per byte)"
KEPT: dict[str, Any] = {
    "color": OTHERS[1],
    "marker": "^",
    "ls": DOTTED,
}  # the look of runs that all have one learning rate
OWN: dict[str, Any] = {"color": LORA, "marker": "o"}  # the look of runs at their own best learning rates
GROUP_COLOURS = {"attention": LORA_LIGHT, "MLP": LORA, "all-linear": LORA_DARK}


def measured(table: Table, dots: bool = False) -> str:
    """Return the end of a subtitle, which explains the points and gives the number of runs and their time.

    If `dots` is true, the points are seeds; otherwise they are means over the seeds.
    """
    seeds = len(table.settings["seeds"])
    means = f"points and bars: mean and range of {seeds} seeds" if seeds > 1 else ""
    return semicolons(f"dots: the {seeds} seeds" if dots else means, runs_and_time(table))


def not_above(values: np.ndarray, others: np.ndarray) -> bool:
    """Return False if `values` are higher than `others` with every seed, else True.

    `values` and `others` have one number per seed.
    """
    return not (values > others).all()


def octaves(low: float, high: float, step: int = 1) -> list[float]:
    """Return the ticks of a learning rate: 0.001 · 2ⁿ from `low` to `high`."""
    first, last = math.floor(math.log2(low / 1e-3) + 1e-9), math.ceil(math.log2(high / 1e-3) - 1e-9)
    return [1e-3 * 2.0**n for n in range(first, last + 1, step)]


@picture("target_modules trainable seed phase final", settings="runs seeds module_r base_loss")
def target_modules_chart(table: Table) -> Figure:
    """Draw the loss of an adapter in each kind of matrix alone and in groups of matrices, with the lowest loss on top.

    Parameters
    ----------
    table : Table
        The result of the study "target_modules".

    Returns
    -------
    matplotlib.figure.Figure
        One kind of matrix is green; a group of matrices is blue. Each dot is one seed. Each setting has its own best
        learning rate. The vertical line is the loss of the base.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = target_modules_chart(Table.load("figures/data/target_modules.json"))
    >>> len(figure.axes[0].get_yticklabels())
    11
    """
    rows = table.where(phase="seeds")
    count = {row["target_modules"]: row["trainable"] for row in rows}
    by_target = arrays(rows, "target_modules")
    order = sorted(by_target, key=lambda name: -by_target[name].mean())
    alone = [name for name in order if name.endswith("_proj")]
    title = "Loss of each group of matrices"
    if alone:
        least = [name for name in alone if not_above(by_target[alone[0]], by_target[name])]
        title = f"An adapter (r = {table.settings['module_r']}) lowers the loss most in {alone[-1]} "
        title += f"and least in {' and '.join(least)}"
    marks = "green: one kind of matrix; blue: a group of matrices"
    figure = new_figure(9, 1.6 + 0.29 * len(order), title, semicolons(marks, measured(table, dots=True)))
    ax = axes_at(figure, 1.25, 0.65, 5.6, 0.29 * len(order))
    base = table.settings["base_loss"]
    for place, name in enumerate(order):
        colour = OTHERS[1] if name in alone else LORA
        mean = by_target[name].mean()
        ax.plot([base, mean], [place, place], color=colour, lw=2.5, alpha=0.45)
        ax.plot(by_target[name], [place] * len(by_target[name]), "o", color=colour, ms=5, mec=PAPER, mew=0.7)
        note(ax, f"{mean:.3f}, {short_count(count[name])} parameters", (1, place), (10, -3.5), colour, xycoords=EDGE)
    ax.axvline(base, color=FAINT_INK, lw=1.2)
    ax.set_yticks(range(len(order)), [name.replace("_proj", "") for name in order])
    ax.set(ylim=(-0.6, len(order) - 0.4), xlabel=f"{LOSS}; vertical line: the base")
    ax.grid(False)
    return figure


@picture("target_modules r trainable matched_r seed phase final", settings="runs seeds")
def equal_parameters_chart(table: Table) -> Figure:
    """Draw the loss of attention, MLP and all layers with equally many parameters.

    Parameters
    ----------
    table : Table
        The result of the study "equal_parameters".

    Returns
    -------
    matplotlib.figure.Figure
        One group of rows per number of parameters. Each dot is one seed. Each setting has its own best learning rate.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = equal_parameters_chart(Table.load("figures/data/equal_parameters.json"))
    >>> figure.axes[0].get_yticklabels()[0].get_text()
    'all-linear, r = 18'
    """
    rows = table.where(phase="seeds")
    budgets = sorted({row["matched_r"] for row in rows})
    by_size = {b: arrays(of_size, "target_modules") for b, of_size in groups(rows, "matched_r").items()}
    ahead = sum((by_name["MLP"] < by_name["attention"]).all() for by_name in by_size.values())
    title = "LoRA in the MLP reaches a lower loss than LoRA of equal size in attention"
    if ahead < len(budgets):
        title = f"At {ahead} of {len(budgets)} sizes, LoRA in the MLP has a lower loss than in attention"
    order = [(b, name) for b in budgets[::-1] for name in ("all-linear", "MLP", "attention") if name in by_size[b]]
    places = {key: i + 0.6 * (len(budgets) - 1 - budgets.index(key[0])) for i, key in enumerate(order)}
    runs = {key: found[0] for key, found in groups(rows, "matched_r", "target_modules").items()}
    height = 0.32 * (max(places.values()) + 1.4)
    figure = new_figure(
        9,
        1.6 + height,
        title,
        semicolons(
            "size: number of trained parameters; each row at its best learning rate", measured(table, dots=True)
        ),
    )
    ax = axes_at(figure, 2.0, 0.65, 4.6, height)
    for (budget, name), place in places.items():
        losses, colour = by_size[budget][name], GROUP_COLOURS[name]
        ax.plot([min(losses), max(losses)], [place] * 2, color=colour, lw=3, alpha=0.5)
        ax.plot(losses, [place] * len(losses), "o", color=colour, ms=6.5, mec=PAPER, mew=0.8)
        text = f"{np.mean(losses):.3f}, {runs[budget, name]['trainable']:,} parameters"
        note(ax, text, (1, place), (10, -3.5), colour, xycoords=EDGE)
    ax.set_yticks(list(places.values()), [f"{name}, r = {runs[b, name]['r']}" for b, name in places])
    ax.set(ylim=(-0.7, max(places.values()) + 0.7), xlabel=LOSS)
    ax.grid(False)
    return figure


@picture("lora_dropout train_bytes lr seed phase final", settings="runs seeds fixed_lr small_steps steps base_loss")
def dropout_chart(table: Table) -> Figure:
    """Draw the loss against the dropout probability, on little text and on all of the text.

    Parameters
    ----------
    table : Table
        The result of the study "dropout".

    Returns
    -------
    matplotlib.figure.Figure
        Two panels with equal scales. Green marks are runs at one learning rate, and cyan marks are runs at the best
        learning rate of each probability. The frozen base is grey.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = dropout_chart(Table.load("figures/data/dropout.json"))
    >>> figure.axes[0].get_title(loc="left")
    '8 kB of text, read 12 times'
    """
    settings, base = table.settings, table.settings["base_loss"]
    little = [row for row in table.rows if row["train_bytes"] is not None]
    phases = ([row for row in little if row["phase"] == phase] for phase in ("fixed", "seeds"))
    kept, own = (arrays(found, "lora_dropout") for found in phases)
    whole = arrays(table.where(train_bytes=None, phase="fixed"), "lora_dropout")
    passes = settings["small_steps"] * settings["batch_size"] * settings["seq_len"] / settings["small_bytes"]
    title, above = _dropout_title(settings, kept, own), min(v.min() for v in kept.values()) > base
    rate = f"η = {settings['fixed_lr']:g}"
    first = (
        f"with little text and {rate}, every model ends with a higher loss than the base" if above else f"green: {rate}"
    )
    figure = new_figure(9, 4.6, title, f"η: learning rate; {first}\n{measured(table)}")
    left, right = axes_at(figure, 0.85, 0.7, 2.5, 2.6), axes_at(figure, 6.0, 0.7, 2.5, 2.6)
    ends = [with_range(left, kept, **KEPT), with_range(left, own, **OWN)]
    with_range(right, whole, **KEPT)
    shown_in = {left: [*kept.values(), *own.values()], right: [*whole.values()]}
    panels = {ax: np.concatenate([[base], *losses]) for ax, losses in shown_in.items()}
    span = 1.25 * max(map(np.ptp, panels.values()))
    for ax, shown in panels.items():
        middle = (shown.min() + shown.max()) / 2
        ax.axhline(base, color=FROZEN, lw=2)
        ax.set(ylim=(middle - span / 2, middle + span / 2), xlabel="dropout", ylabel=LOSS, xticks=list(whole))
    left.set_title(f"{settings['small_bytes'] // 1024} kB of text, read {passes:.0f} times")
    right.set_title(f"all text, read in part, η = {settings['fixed_lr']:g}")
    rates = sorted({row["lr"] for row in little if row["phase"] == "seeds"})
    own_best = f"best η, {rates[0]:g}" + f" to {rates[-1]:g}" * (len(rates) > 1)
    labels = [f"all at η = {settings['fixed_lr']:g}", own_best, f"frozen base {base:.3f}"]
    edge = left.get_xlim()[1]
    label_lines(left, [*ends, (edge, base)], labels, [OTHERS[1], LORA, FROZEN], align=edge, reach=8)
    return figure


def _dropout_title(settings: Mapping[str, Any], kept: Losses, own: Losses) -> str:
    """Return the title: how much the best dropout lowers the loss on little text, compared with no dropout.

    The title gives this number at one learning rate and at the best rates.
    """
    at_one, at_best = (by_p[0.0].mean() - min(v.mean() for v in by_p.values()) for by_p in (kept, own))
    rate = settings["fixed_lr"]
    return f"On little text, dropout lowers the loss by {at_one:.3f} at η = {rate:g}, by {at_best:.3f} at the best η"


@picture("method batch_size max_steps lr seed phase final", settings="runs seeds")
def batch_size_chart(table: Table) -> Figure:
    """Draw the loss against the batch size, for full fine-tuning and LoRA at their best learning rates.

    Parameters
    ----------
    table : Table
        The result of the study "batch_size".

    Returns
    -------
    matplotlib.figure.Figure
        Full fine-tuning is coral, and LoRA is cyan. All runs read the same number of tokens.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = batch_size_chart(Table.load("figures/data/batch_size.json"))
    >>> figure.axes[0].get_xlabel()
    'sequences per batch'
    """
    rows = table.where(phase="seeds")
    lines = {name: [row for row in rows if row["method"] == name] for name in ("full", "lora")}
    losses = {name: arrays(found, "batch_size") for name, found in lines.items()}
    sizes = list(losses["full"])
    gaps = [losses["lora"][b].mean() - losses["full"][b].mean() for b in sizes]
    first, *_, last = (f"{gap:+.3f} with batches of {b}".replace("-", "−") for gap, b in zip(gaps, sizes, strict=True))
    title = f"LoRA's gap is {first}, and {last}"
    same = "gap: LoRA's loss minus full fine-tuning's; all runs read the same number of tokens, at the best η of each method"
    figure = new_figure(9, 4.4, title, f"{same}\n{measured(table)}")
    ax = axes_at(figure, 0.85, 0.7, 5.6, 2.65)
    looks: dict[str, dict[str, Any]] = {"full": {"color": FULL, "marker": "s"}, "lora": {"color": LORA, "marker": "o"}}
    ends = [with_range(ax, losses[name], **looks[name]) for name in lines]
    for (name, found), shift, edge in zip(lines.items(), (-16, 10), (np.min, np.max), strict=True):
        for b, lr in {row["batch_size"]: row["lr"] for row in found}.items():
            point, colour = (b, edge(losses[name][b])), looks[name]["color"]
            note(ax, f"η = {lr:g}", point, (0, shift), colour, ha="center", fontsize=9)
    steps = {row["batch_size"]: row["max_steps"] for row in rows}
    log_axis(ax.xaxis, sizes)
    ax.xaxis.set_major_formatter(lambda b, _: f"{b:g}\n{steps.get(round(b), 0)} steps")
    ax.margins(x=0.1, y=0.22)
    ax.set(xlabel="sequences per batch", ylabel=LOSS)
    names = ["full fine-tuning", f"LoRA r = {lines['lora'][0]['r']}"]
    label_lines(ax, ends, names, [FULL, LORA], align=ax.get_xlim()[1], reach=8)
    return figure
