"""Pictures of four bits: the values of the codes, the error of the weights, and the loss of training over a quantised base.

A dashed line means a base in four bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from statistics import NormalDist, mean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from ..harness.colours import FAINT_INK, FROZEN, HAIRLINE, INK, LORA, OTHERS, for_text
from ..harness.paired import of_both
from ..harness.style import EDGE, axes_at, label_lines, name_axis, new_figure, note, picture, rank_axis
from ..harness.table import Table, model_name
from ..harness.words import percent, runs_and_time

CODES = {"nf4": ("NF4", INK), "int4": ("int4", OTHERS[1]), "fp4": ("FP4", OTHERS[2])}  # quant_type → (name, colour)
DASHED = (0, (4, 2))
OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2  # the probability of NF4's largest code


@picture("weights quant_type edges share", settings="block_size codes")
def nf4_codes(table: Table, weights: str = "tiny") -> Figure:
    """Draw NF4's values as quantiles of the normal distribution, with the values of int4 and FP4 below.

    Parameters
    ----------
    table : Table
        A table of the study quantization_distances with the columns `weights`, `quant_type`, `edges` and `share`. Its
        `settings` contain `block_size` and `codes`. `codes` has the sixteen values of each type.
    weights : str
        The weights that the dashed line shows.

    Returns
    -------
    Figure
        The density of the normal distribution and of `weights`; one row of marks per code.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> nf4_codes(Table.load("figures/data/quantization_distances.json")).axes[0].get_ylabel()
    'density'
    """
    subtitle = (
        "solid line: normal distribution; marks: the values of each code\n"
        f"dashed line: the weights of {weights}, each divided by the largest magnitude in its block of "
        f"{table.settings['block_size']}"
    )
    figure = new_figure(9, 4.9, "NF4's values divide each side of a normal distribution into equal shares", subtitle)
    ax = axes_at(figure, 0.85, 1.55, 7.3, 2.15, xlim=(-1.1, 1.1), ylabel="density")
    normal = NormalDist(0, 1 / NormalDist().inv_cdf(OUTERMOST))
    codes = sorted(table.settings["codes"]["nf4"])
    for i, (low, high) in enumerate(pairwise(codes)):
        x = np.linspace(low, high, 40)
        ax.fill_between(x, [normal.pdf(v) for v in x], color=FROZEN if i % 2 else HAIRLINE, lw=0)
    x = np.linspace(-1.08, 1.08, 300)
    density = [normal.pdf(v) for v in x]
    ax.plot(x, density, color=INK, lw=1.4)
    ax.vlines(codes, 0, [normal.pdf(c) for c in codes], color=INK, lw=0.8)
    row = table.where(weights=weights)[0]
    edges = np.array(row["edges"])
    heights, middles = (np.array(row["share"]) / np.diff(edges) / 2)[:-1], ((edges[:-1] + edges[1:]) / 2)[:-1]
    mirrored = np.concatenate([-middles[::-1], middles]), np.concatenate([heights[::-1], heights])
    ax.plot(*mirrored, color=FAINT_INK, lw=1.4, ls=DASHED)
    top = max(*density, *heights)  # the largest weight of each block is at 1; this spike is left out
    for side, (low, high), align in ((-1, codes[:2], "left"), (1, codes[-2:], "right")):
        share = normal.cdf(high) - normal.cdf(low)
        note(ax, f"{percent(share)} in each", (0.98 * side, 0.62 * top), (0, 0), FAINT_INK, ha=align)
    ax.set(ylim=(0, 1.08 * top))
    ax.tick_params(labelbottom=False, length=0)
    rows = _marks(axes_at(figure, 0.85, 0.65, 7.3, 0.9), {t: table.settings["codes"][t] for t in CODES})
    rows.set(xlim=(-1.1, 1.1), xlabel="weight / largest magnitude of its block")
    return figure


def _marks(ax: Axes, codes: dict[str, Iterable[float]]) -> Axes:
    """Draw one row of marks per type, with the name of the type at the right.

    The value −8/7 of int4 is left out, because no weight is as small as −8/7.
    """
    for place, (quant_type, values) in enumerate(reversed(codes.items())):
        (name, colour), values = CODES[quant_type], [c for c in values if abs(c) <= 1]
        ax.plot(values, [place] * len(values), "|", ms=13, mew=2, color=colour)
        note(ax, name, (1, place), (6, -4), colour, fontweight="bold", xycoords=EDGE)
    ax.set(ylim=(-0.6, len(codes) - 0.4), yticks=[])
    ax.grid(False)
    return ax


@picture("weights quant_type edges contribution", settings="block_size codes")
def error_by_distance(table: Table, weights: str = "N(0, 1)") -> Figure:
    """Draw which weights cause the mean error of each code: one step per bin of |w|/absmax.

    The heights of all steps of a code add up to the mean error of the code.

    Parameters
    ----------
    table : Table
        A table of the study quantization_distances with the columns `weights`, `quant_type`, `edges` and
        `contribution`. Its `settings` contain `block_size` and `codes`.
    weights : str
        The weights to show.

    Returns
    -------
    Figure
        The upper panel has the contributions; the lower panel has the magnitudes of the codes' values.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = error_by_distance(Table.load("figures/data/quantization_distances.json"))
    >>> figure.axes[0].get_ylabel()
    'part of the mean'
    """
    rows = {row["quant_type"]: row for row in table.where(weights=weights)}
    totals = {t: sum(row["contribution"]) for t, row in rows.items()}
    subtitle = (
        "lines: the part of the mean error that comes from weights of each magnitude\nmarks: the values of each code; "
        f"weights: {weights} in blocks of {table.settings['block_size']}"
    )
    title = "FP4's error comes from gaps between its values, int4's error from small weights"
    figure = new_figure(9, 4.6, title, subtitle)
    ax = axes_at(figure, 0.95, 1.5, 6.3, 1.9)
    for quant_type, row in rows.items():
        ax.stairs(row["contribution"], row["edges"], color=CODES[quant_type][1], lw=1.8)
    ax.set(xlim=(0, 1), ylim=(0, None), ylabel="part of the mean")
    ax.tick_params(labelbottom=False, length=0)
    for i, quant_type in enumerate(sorted(rows, key=lambda t: -totals[t])):
        (name, colour), top = CODES[quant_type], ax.get_ylim()[1]
        note(ax, f"{name}  {totals[quant_type]:.4f} in total", (1, top), (-4, -14 * (i + 1)), colour, ha="right")
    magnitudes = {t: np.abs(table.settings["codes"][t]) for t in CODES if t in rows}
    marks = _marks(axes_at(figure, 0.95, 0.65, 6.3, 0.85), magnitudes)
    marks.set(xlim=(0, 1), xlabel="|weight| / largest magnitude of its block")
    return figure


@picture("weights quant_type block_size mean")
def quantization_error(table: Table) -> Figure:
    """Draw the mean |error| against the block size: one panel per kind of weights, one line per code.

    Parameters
    ----------
    table : Table
        A table of the study quantization_error with the columns `weights`, `quant_type`, `block_size` and `mean`.

    Returns
    -------
    Figure
        The height of a point is the error, divided by the root mean square of the weights. The title names the code
        with the smallest error.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> [ax.get_title(loc="left") for ax in quantization_error(Table.load("figures/data/quantization_error.json")).axes]
    ['N(0, 1)', 'tiny', 'SmolLM2-135M']
    """
    kinds = list(dict.fromkeys(row["weights"] for row in table.rows))
    sizes = sorted({row["block_size"] for row in table.rows})
    subtitle = "mean |error| is divided by the root mean square of the weights"
    if "smollm2-135m" in kinds:
        subtitle += "\nmost weights in the file of SmolLM2 are already rounded to four bits"
    figure = new_figure(9, 4.45, _verdict(table), subtitle)
    wide = (7.3 - 0.25 * (len(kinds) - 1)) / len(kinds)
    top = 1.06 * max(row["mean"] for row in table.rows)
    for i, kind in enumerate(kinds):
        ax = axes_at(figure, 0.85 + i * (wide + 0.25), 0.65, wide, 2.5, title=model_name(kind))
        ends = []
        for quant_type, (name, colour) in CODES.items():
            rows = sorted(table.where(weights=kind, quant_type=quant_type), key=lambda row: row["block_size"])
            if rows:
                ax.plot([r["block_size"] for r in rows], [r["mean"] for r in rows], color=colour, marker="o", ms=4)
                ends.append(((rows[-1]["block_size"], rows[-1]["mean"]), name, colour))
        rank_axis(ax, [size for size in sizes if np.log2(size) % 2 == 0] or sizes, "weights per block")
        ax.set(ylim=(0, top), ylabel="" if i else "mean |error|")
        ax.tick_params(labelleft=i == 0)
        if i == len(kinds) - 1:
            label_lines(ax, *zip(*ends, strict=True), reach=10)
    return figure


def _verdict(table: Table) -> str:
    """Return the title: whether NF4 always has the smallest error, and at which block sizes FP4 is better than int4."""
    found = {(r["weights"], r["block_size"], r["quant_type"]): r["mean"] for r in table.rows}
    places = list(dict.fromkeys((w, b) for w, b, _ in found))
    best = all(found[(*p, "nf4")] < min(found[(*p, "fp4")], found[(*p, "int4")]) for p in places)
    better = {size for w, size in places if found[w, size, "fp4"] < found[w, size, "int4"]}
    worse = {size for w, size in places if found[w, size, "fp4"] > found[w, size, "int4"]}
    first = "NF4 has the smallest error at every block size" if best else "NF4 does not always have the smallest error"
    if better and worse and max(better) > max(worse):
        return f"{first}; FP4 beats int4 only in large blocks"
    return first if better else f"{first}; FP4 has the largest"


@picture("base layer factor cosine", settings="model")
def gradient_cosines(table: Table) -> Figure:
    """Draw the cosine between the gradients through a quantised base and the gradients through the float32 base.

    Parameters
    ----------
    table : Table
        A table of the study quantization_gradients with the columns `base`, `layer`, `factor` and `cosine`. Its
        `settings` contain `model`. The rows with the base "another batch" compare the gradients of two different batches.

    Returns
    -------
    Figure
        Each layer has one dot for dA and one dot for dB.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = gradient_cosines(Table.load("figures/data/quantization_gradients.json"))
    >>> [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    ['another batch', 'FP4', 'int4', 'NF4']
    """
    bases = sorted({row["base"] for row in table.rows}, key=lambda b: mean(r["cosine"] for r in table.where(base=b)))
    looks = {base: CODES.get(base, (base, FROZEN)) for base in bases}
    subtitle = (
        f"each dot: one layer of {table.settings['model']}; the cosine between its gradients with these weights and "
        "with float32 weights\n"
        f"filled dots: dA; hollow dots: dB"
    )
    title = "Four-bit weights hardly change a gradient; another batch changes it completely"
    figure = new_figure(9, 0.55 * len(bases) + 1.8, title, subtitle)
    ax = axes_at(figure, 1.35, 0.65, 7.2, 0.55 * len(bases))
    for place, (base, (_, colour)) in enumerate(looks.items()):
        for factor, shift, fill in (("A", 0.14, colour), ("B", -0.14, "none")):
            x = [r["cosine"] for r in table.where(base=base, factor=factor)]
            ax.plot(x, [place + shift] * len(x), "o", ms=5, mec=colour, mfc=fill, alpha=0.75)
    name_axis(ax, [name for name, _ in looks.values()])
    for tick, (_, colour) in zip(ax.get_yticklabels(), looks.values(), strict=True):
        tick.set_color(for_text(colour))
    ax.grid(True, axis="both")
    ax.set(xlim=(min(-0.25, min(r["cosine"] for r in table.rows) - 0.05), 1.02), ylim=(-0.5, len(bases) - 0.5))
    ax.set_xlabel("cosine to the gradient through float32 (1: the same direction)")
    return figure


@picture("quant_type seed steps heldout final", settings="base base_loss quantized_loss")
def qlora_losses(table: Table, *others: Table) -> Figure:
    """Draw the held-out loss over the steps of LoRA (solid) and QLoRA (dashed), one panel per table.

    Parameters
    ----------
    table, *others : Table
        Tables of the studies qlora_tiny and qlora_smollm2 with the columns `quant_type`, `seed`, `steps`, `heldout` and
        `final`. For LoRA `quant_type` is None. The tables have the settings `base`, `base_loss` and `quantized_loss`.

    Returns
    -------
    Figure
        Lines are means over the seeds, and bands are the ranges of the seeds. Grey lines are the losses of the bases
        before training.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> [ax.get_title(loc="left") for ax in qlora_losses(Table.load("figures/data/qlora_tiny.json")).axes]
    ['tiny, 3 seeds']
    """
    tables = [table, *others]
    gaps = []
    for each in tables:
        lora, qlora = of_both(each.where(quant_type=None), each.where(quant_type="nf4"))
        gap = f"{100 * (mean(qlora) / mean(lora) - 1):.1f} %".replace("-", "−")
        gaps.append(f"{gap} ({model_name(each.settings['base'])})")
    subtitle = "solid lines: LoRA on a float32 base; dashed lines: QLoRA on an NF4 base; grey lines: before training\n"
    times = [runs_and_time(each, [row for row in each.rows if row["quant_type"]]) for each in tables]
    bases = [model_name(each.settings["base"]) for each in tables]
    subtitle += "; ".join(f"QLoRA on {b}: {t.removeprefix('total: ')}" for b, t in zip(bases, times, strict=True))
    title = f"QLoRA's final loss is {' and '.join(gaps)} above LoRA's final loss"
    figure = new_figure(9, 4.5, title, subtitle)
    for i, each in enumerate(tables):
        _losses(axes_at(figure, 0.85 + 4.4 * i, 0.65, 5.4 if len(tables) == 1 else 2.4, 2.55), each)
    return figure


def _losses(ax: Axes, table: Table) -> None:
    base, ends = table.settings["base"], []
    starts = table.settings["quantized_loss"] | {None: table.settings["base_loss"]}
    for quant_type, dashes, name in ((None, "-", "LoRA"), ("nf4", DASHED, "QLoRA")):
        rows = table.where(quant_type=quant_type)
        curves, steps = np.array([row["heldout"] for row in rows], float), rows[0]["steps"]
        ax.axhline(starts[quant_type], color=FROZEN, lw=1.5, ls=dashes, zorder=1)
        ax.fill_between(steps, curves.min(axis=0), curves.max(axis=0), color=LORA, alpha=0.15, lw=0)
        ax.plot(steps, curves.mean(axis=0), color=LORA, ls=dashes)
        end = curves.mean(axis=0)[-1]
        ends.append(((steps[-1], end), f"{name}  {end:.3f}", LORA))
    seeds = len({row["seed"] for row in table.where(quant_type="nf4")})
    ax.set_title(f"{model_name(base)}, {seeds} seed{'s' if seeds > 1 else ''}")
    ax.set(
        xlabel="training step",
        ylabel="held-out loss (nats per byte)" if base == "tiny" else "held-out loss (nats per token)",
    )
    ax.set_xlim(0, max(x for (x, _), *_ in ends))
    label_lines(ax, *zip(*ends, strict=True))


ROUTES = {  # from the bottom of the picture
    "requantised": "quantised again",
    "original": "into the original weights",
    "bfloat16": "dequantised, in 16 bits",
    "dequantised": "dequantised, in float32",
}


@picture("route heldout logits kept", settings="model")
def merge_routes_chart(table: Table, *others: Table) -> Figure:
    """Draw what each way to merge a QLoRA adapter changes: the held-out loss, the logits, and the share of ΔW that remains.

    Parameters
    ----------
    table, *others : Table
        Tables of the study merge_routes with the columns `route`, `heldout`, `logits` and `kept`. The tables have the
        setting `model`.

    Returns
    -------
    Figure
        One dot per route and model: filled for the model of the first table, hollow for the model of the second table.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> [ax.get_title(loc="left") for ax in merge_routes_chart(Table.load("figures/data/merge_routes_tiny.json")).axes]
    ['held-out loss', 'logits', 'ΔW that remains']
    """
    tables = [table, *others]
    dots = zip(("filled dots", "hollow dots"), tables, strict=False)
    models = "; ".join(f"{how}: {model_name(t.settings['model'])}" for how, t in dots)
    subtitle = f"each dot compares the merged model with the QLoRA model before the merge\n{models}"
    figure = new_figure(
        9, 4.0, "Only a merge into the dequantised weights leaves the model as it was trained", subtitle
    )
    loss, logits, kept = panels = [axes_at(figure, left, 0.65, 1.95, 2.0) for left in (2.2, 4.5, 6.8)]
    for place, route in enumerate(ROUTES):
        for i, each in enumerate(tables):
            (trained,), (row,) = (each.where(route=r) for r in ("as trained", route))
            look = {"mec": LORA, "mfc": "none" if i else LORA, "ms": 6 + 4 * i, "mew": 1.6, "ls": "", "marker": "o"}
            values = 100 * (row["heldout"] / trained["heldout"] - 1), max(row["logits"], 1e-8), 100 * row["kept"]
            for ax, value in zip(panels, values, strict=True):
                ax.plot(value, place, **look)
    logits.set_xscale("log")
    logits.xaxis.set_major_locator(LogLocator(numticks=4))
    logits.xaxis.set_minor_locator(NullLocator())
    for ax, where in ((loss, 0), (kept, 100)):
        ax.axvline(where, color=FROZEN, lw=1.5, zorder=1)
    loss.xaxis.set_major_locator(MaxNLocator(4))
    kept.xaxis.set_major_locator(FixedLocator([0, 50, 100]))
    kept.set_xlim(-8, 112)
    titles = (
        ("held-out loss", "% above the loss before"),
        ("logits", "relative change"),
        ("ΔW that remains", "% of ΔW"),
    )
    for ax, (title, label) in zip(panels, titles, strict=True):
        ax.grid(True, axis="both")
        ax.margins(x=0.12)
        name_axis(ax, list(ROUTES.values()), labelled=ax is loss)
        ax.set(ylim=(-0.6, len(ROUTES) - 0.4), xlabel=label, title=title)
    return figure
