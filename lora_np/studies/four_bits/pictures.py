"""Four bits in pictures: where the codes lie, how far the weights are from them, and what training over them loses.

Dashed means over four bits, here and in every picture of QLoRA; the colours keep their meaning.
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

CODES = {"nf4": ("NF4", INK), "int4": ("int4", OTHERS[1]), "fp4": ("FP4", OTHERS[2])}  # type → (its name, its colour)
DASHED = (0, (4, 2))
OUTERMOST = 1 - (1 / 30 + 1 / 32) / 2  # the probability of NF4's largest code


@picture("weights quant_type edges share", settings="block_size codes")
def nf4_codes(table: Table, weights: str = "tiny") -> Figure:
    """NF4's codes under the normal density that they are quantiles of: between two of them lies the same share of weights.

    Dashed, how the real `weights` lie; below, the same sixteen places for int4 and FP4. Rows of one of `weights` are enough;
    settings["codes"] has the values of each type.
    """
    subtitle = (
        "the normal distribution, cut so that each side's strips hold the same share of it; dashed, the weights of "
        f"{weights}\nin blocks of {table.settings['block_size']}, each divided by its largest magnitude"
    )
    figure = new_figure(9, 4.9, "NF4 sets its codes so that normal weights fall evenly between them", subtitle)
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
    top = max(*density, *heights)  # the largest of each block is at 1 itself, a spike of 1/block, and left out
    for side, (low, high), align in ((-1, codes[:2], "left"), (1, codes[-2:], "right")):
        share = normal.cdf(high) - normal.cdf(low)
        note(ax, f"{percent(share)} in each", (0.98 * side, 0.62 * top), (0, 0), FAINT_INK, ha=align)
    ax.set(ylim=(0, 1.08 * top))
    ax.tick_params(labelbottom=False, length=0)
    rows = _marks(axes_at(figure, 0.85, 0.65, 7.3, 0.9), {t: table.settings["codes"][t] for t in CODES})
    rows.set(xlim=(-1.1, 1.1), xlabel="weight / largest magnitude of its block")
    return figure


def _marks(ax: Axes, codes: dict[str, Iterable[float]]) -> Axes:
    """A row of marks a type, its name at the right; int4's −8/7, which no weight has, is left out."""
    for place, (quant_type, values) in enumerate(reversed(codes.items())):
        (name, colour), values = CODES[quant_type], [c for c in values if abs(c) <= 1]
        ax.plot(values, [place] * len(values), "|", ms=13, mew=2, color=colour)
        note(ax, name, (1, place), (6, -4), colour, fontweight="bold", xycoords=EDGE)
    ax.set(ylim=(-0.6, len(codes) - 0.4), yticks=[])
    ax.grid(False)
    return ax


@picture("weights quant_type edges contribution", settings="block_size codes")
def error_by_distance(table: Table, weights: str = "N(0, 1)") -> Figure:
    """From which weights a code's mean error comes: a step a bin of |w|/absmax, whose heights add up to the error.

    settings["codes"] has the values of each type.
    """
    rows = {row["quant_type"]: row for row in table.where(weights=weights)}
    totals = {t: sum(row["contribution"]) for t, row in rows.items()}
    subtitle = (
        f"{weights} in blocks of {table.settings['block_size']}: what the weights of each bin add to the mean |error|; "
        "the marks are the codes'\nmagnitudes"
    )
    figure = new_figure(9, 4.6, "FP4 loses in its wide gaps, int4 where most weights are", subtitle)
    ax = axes_at(figure, 0.95, 1.5, 6.3, 1.9)
    for quant_type, row in rows.items():
        ax.stairs(row["contribution"], row["edges"], color=CODES[quant_type][1], lw=1.8)
    ax.set(xlim=(0, 1), ylim=(0, None), ylabel="part of the mean")
    ax.tick_params(labelbottom=False, length=0)
    for i, quant_type in enumerate(sorted(rows, key=lambda t: -totals[t])):
        (name, colour), top = CODES[quant_type], ax.get_ylim()[1]
        note(ax, f"{name}  {totals[quant_type]:.4f} in all", (1, top), (-4, -14 * (i + 1)), colour, ha="right")
    magnitudes = {t: np.abs(table.settings["codes"][t]) for t in CODES if t in rows}
    marks = _marks(axes_at(figure, 0.95, 0.65, 6.3, 0.85), magnitudes)
    marks.set(xlim=(0, 1), xlabel="|weight| / largest magnitude of its block")
    return figure


@picture("weights quant_type block_size mean")
def quantization_error(table: Table) -> Figure:
    """The mean |error| by block size, a panel for each kind of weights, a line a type."""
    kinds = list(dict.fromkeys(row["weights"] for row in table.rows))
    sizes = sorted({row["block_size"] for row in table.rows})
    subtitle = "mean |error| of a weight in units of the weights' root mean square, by the size of the block that shares a scale"
    if "smollm2-135m" in kinds:
        subtitle += "\n(SmolLM2's file rounds most weights to four bits already)"
    figure = new_figure(9, 4.3, _verdict(table), subtitle)
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
        rank_axis(ax, [size for size in sizes if np.log2(size) % 2 == 0] or sizes, "weights a block")
        ax.set(ylim=(0, top), ylabel="" if i else "mean |error|")
        ax.tick_params(labelleft=i == 0)
        if i == len(kinds) - 1:
            label_lines(ax, *zip(*ends, strict=True), reach=10)
    return figure


def _verdict(table: Table) -> str:
    """What the lines say, in a title: whether NF4 is best everywhere, and where FP4 beats int4."""
    found = {(r["weights"], r["block_size"], r["quant_type"]): r["mean"] for r in table.rows}
    places = list(dict.fromkeys((w, b) for w, b, _ in found))
    best = all(found[(*p, "nf4")] < min(found[(*p, "fp4")], found[(*p, "int4")]) for p in places)
    better = {size for w, size in places if found[w, size, "fp4"] < found[w, size, "int4"]}
    worse = {size for w, size in places if found[w, size, "fp4"] > found[w, size, "int4"]}
    first = "NF4 is nearest at every block size" if best else "NF4 is not nearest everywhere"
    if better and worse and max(better) > max(worse):
        return f"{first}; FP4 beats int4 in large blocks only"
    return first if better else f"{first}; FP4 is furthest"


@picture("base layer factor cosine", settings="model")
def gradient_cosines(table: Table) -> Figure:
    """How near the gradients through a quantised base are to the float32 base's: a dot for dA and one for dB of each layer.

    The base "another batch" is the yardstick.
    """
    bases = sorted({row["base"] for row in table.rows}, key=lambda b: mean(r["cosine"] for r in table.where(base=b)))
    looks = {base: CODES.get(base, (base, FROZEN)) for base in bases}
    middle = float(np.median([row["cosine"] for row in table.where(base=bases[-1])]))
    subtitle = (
        f"dA and dB of each layer of {table.settings['model']} against those through float32 weights, same adapter and batch; "
        f"median with {looks[bases[-1]][0]} {middle:.3f}"
    )
    title = "Four bits turn a gradient a little; the next batch turns it altogether"
    figure = new_figure(9, 0.55 * len(bases) + 1.6, title, subtitle)
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
    ax.set_xlabel("cosine to the gradient through float32 (1: the same direction); full dA, hollow dB")
    return figure


@picture("quant_type seed steps heldout final", settings="base base_loss quantized_loss")
def qlora_losses(table: Table, *others: Table) -> Figure:
    """Held-out loss over steps, LoRA (quant_type None) full and QLoRA dashed, a panel a table; grey, the untrained base of each.

    A line is the mean over seeds, its band their range.
    """
    tables = [table, *others]
    said = []
    for each in tables:
        lora, qlora = of_both(each.where(quant_type=None), each.where(quant_type="nf4"))
        said.append(f"{100 * (mean(qlora) / mean(lora) - 1):.1f} %".replace("-", "−"))
    subtitle = (
        "held-out loss; full, LoRA over float32; dashed, over NF4 with double quantisation (QLoRA); grey, the base untrained\n"
        "the runs of QLoRA, left and right: "
        + " and ".join(runs_and_time(t, [row for row in t.rows if row["quant_type"]]) for t in tables)
    )
    title = f"Over four bits LoRA's loss ends {' and '.join(said)} above that over float32"
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
    ax.set(xlabel="training step", ylabel="loss (nats a byte)" if base == "tiny" else "loss (nats a token)")
    ax.set_xlim(0, max(x for (x, _), *_ in ends))
    label_lines(ax, *zip(*ends, strict=True))


ROUTES = {  # from below
    "requantised": "quantised again",
    "original": "into the original weights",
    "bfloat16": "dequantised, in 16 bits",
    "dequantised": "dequantised, in float32",
}


@picture("route heldout logits kept", settings="model")
def merge_routes_chart(table: Table, *others: Table) -> Figure:
    """What three ways to merge a QLoRA adapter leave: the held-out loss, the logits, and how much of ΔW is in the weights.

    A full dot a route for the first table's model, a hollow one for another's.
    """
    tables = [table, *others]
    dots = zip(("full dots", "hollow ones"), tables, strict=False)
    models = ", ".join(f"{how} {model_name(t.settings['model'])}" for how, t in dots)
    subtitle = f"QLoRA adapters merged, against the same beside their four bits: {models}"
    figure = new_figure(9, 3.8, "Only one route gives the model that was trained", subtitle)
    loss, logits, arrived = panels = [axes_at(figure, left, 0.65, 1.95, 2.0) for left in (2.2, 4.5, 6.8)]
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
    for ax, where in ((loss, 0), (arrived, 100)):
        ax.axvline(where, color=FROZEN, lw=1.5, zorder=1)
    loss.xaxis.set_major_locator(MaxNLocator(4))
    arrived.xaxis.set_major_locator(FixedLocator([0, 50, 100]))
    arrived.set_xlim(-8, 112)
    said = (("held-out loss", "% above that as trained"), ("logits", "relative change"), ("ΔW that arrives", "% of it"))
    for ax, (title, label) in zip(panels, said, strict=True):
        ax.grid(True, axis="both")
        ax.margins(x=0.12)
        name_axis(ax, list(ROUTES.values()), labelled=ax is loss)
        ax.set(ylim=(-0.6, len(ROUTES) - 0.4), xlabel=label, title=title)
    return figure
