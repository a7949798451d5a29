"""Gradients by hand: what LoRA sees of the full gradient, how well each layer's formula is proven, and what a step costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lora_np.plots.style import (
    FAINT_INK,
    FROZEN,
    FULL,
    HALO,
    INK,
    LORA,
    LORA_LIGHT,
    OTHERS,
    PAPER,
    axes_at,
    for_text,
    new_figure,
    note,
    picture,
    rank_axis,
    signed_colours,
)

# ------------------------------------------------------------------------------- the full gradient and its two shadows


@picture()
def gradient_shadows(dW: np.ndarray, dA: np.ndarray, dB: np.ndarray, name: str = "one layer") -> Figure:
    """Full fine-tuning's dW (d, k) in coral, and in cyan what LoRA computes instead: dA (r, k) below it, dB (d, r) beside it.

    An entry is a cell; the sides are to scale, ink is negative and each matrix has a colour scale of its own. `name` is
    the layer's, for the subtitle. Raises ValueError where the shapes do not belong together.
    """
    (d, k), r = dW.shape, dA.shape[0]
    if dA.shape != (r, k) or dB.shape != (d, r):
        raise ValueError(f"dW is {dW.shape}; expected dA (r, {k}) and dB ({d}, r), got {dA.shape} and {dB.shape}")
    inch = min(5.4 / (k + r), 3.1 / (d + r))  # one entry, in inches
    wide, high, narrow, gap, bottom = k * inch, d * inch, r * inch, 0.62, 0.3
    left = max(1.35, (9 - wide - gap - narrow) / 2)
    tall = bottom + narrow + gap + high + 1.1
    figure = new_figure(
        9,
        tall,
        f"LoRA computes {r * (d + k):,} numbers of gradient where full fine-tuning computes {d * k:,}",
        f"{name}, r = {r}; a cell is an entry, ink is negative, each matrix on a colour scale of its own",
    )
    top = bottom + narrow + gap
    _matrix(axes_at(figure, left, top, wide, high), dW, FULL)
    _matrix(axes_at(figure, left, bottom, wide, narrow), dA, LORA)
    _matrix(axes_at(figure, left + wide + gap, top, narrow, high), dB, LORA)

    sheet = axes_at(figure, 0, 0, 9, tall, xlim=(0, 9), ylim=(0, tall))
    sheet.set_axis_off()
    cyan, coral = for_text(LORA), for_text(FULL)
    arrow = {"arrowstyle": "-|>", "color": LORA, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
    middle, centre = left + wide / 2, top + high / 2
    sheet.annotate("", (middle, bottom + narrow + 0.06), (middle, top - 0.06), arrowprops=arrow)
    sheet.text(middle + 0.14, bottom + narrow + gap / 2, r"$s\,B^{\!\top}\cdot$", color=cyan, fontsize=14, va="center")
    sheet.annotate("", (left + wide + gap - 0.06, centre), (left + wide + 0.06, centre), arrowprops=arrow)
    sheet.text(left + wide + gap / 2, centre + 0.12, r"$\cdot\,s\,A^{\!\top}$", color=cyan, fontsize=14, ha="center")
    sheet.text(left - 0.12, centre, f"$dW$\n{d} × {k}", color=coral, ha="right", va="center", linespacing=1.5)
    sheet.text(left - 0.12, bottom + narrow / 2, f"$dA$   {r} × {k}", color=cyan, ha="right", va="center")
    sheet.text(left + wide + gap + narrow + 0.12, centre, f"$dB$\n{d} × {r}", color=cyan, va="center", linespacing=1.5)
    return figure


def _matrix(ax: Axes, values: np.ndarray, colour: str) -> None:
    limit = np.percentile(abs(values), 98) or 1  # dW has a few large entries, which would leave the rest white
    ax.imshow(values, cmap=signed_colours(colour), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour)


# --------------------------------------------------------------------------------------- which numerical derivative

STEPS = {  # method → its look: the one that is used is ink, the two that are not are the green of other methods
    "forward difference": {"color": OTHERS[2], "ls": (0, (4, 1.5)), "marker": "^"},
    "central difference": {"color": OTHERS[1], "ls": (0, (6, 1.5)), "marker": "s"},
    "complex step": {"color": INK, "ls": "-", "marker": "o"},
}

LABELS = {  # method → (h, error) beside its line, and on which side of that the words stand
    "forward difference": ((2e-5, 3e-4), "right"),
    "central difference": ((2e-7, 3e-12), "right"),
    "complex step": ((1e-19, 2e-14), "left"),
}


@picture()
def step_sizes(h: Sequence[float], errors: Mapping[str, Sequence[float]], subtitle: str = "") -> Figure:
    """Relative error of a numerical derivative against its step h, both logarithmic, a line a method of `STEPS`.

    An error is drawn at least as large as half the spacing of float64, under which it means nothing.
    """
    figure = new_figure(
        9, 4.7, "A smaller step ruins a difference; the complex step only gets better with it", subtitle
    )
    ax = axes_at(figure, 0.95, 0.72, 7.7, 3.05)
    h, spacing = np.asarray(h), np.finfo(float).eps
    for method, values in errors.items():
        shown = np.maximum(values, spacing / 2)
        ax.plot(h, shown, ms=3.5, lw=1.4, **STEPS[method])
        best = int(np.argmin(shown))
        least = f"at best {values[best]:.0e}, at h = {h[best]:.0e}"
        if values[best] <= 2 * spacing:
            least = f"to rounding, for all h below {h[np.flatnonzero(shown > 20 * spacing)[0]]:.0e}"
        place, align = LABELS[method]
        note(ax, method, place, (0, 1), STEPS[method]["color"], ha=align, fontweight="bold", path_effects=HALO)
        note(ax, least, place, (0, -3), STEPS[method]["color"], ha=align, va="top", fontsize=9, path_effects=HALO)
    ax.axhline(spacing, color=FAINT_INK, lw=1, ls=":")
    note(ax, "spacing of float64", (h.max(), spacing), (-4, 4), FAINT_INK, ha="right", fontsize=9)
    ax.set(xscale="log", yscale="log", xlim=(h.min(), h.max()), ylim=(spacing / 8, 30))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set_xlabel("step $h$")
    ax.set_ylabel("relative error")
    return figure


# ------------------------------------------------------------------------------------------------ errors, side by side

MARKERS = (
    {"marker": "o", "color": LORA, "ms": 6.5},
    {"marker": "D", "color": LORA_LIGHT, "ms": 5.5},
    {"marker": "s", "color": OTHERS[0], "ms": 6},
    {"marker": "^", "color": OTHERS[1], "ms": 7},
)
CORRECT = {"marker": "o", "color": OTHERS[1], "ms": 8}
MISTAKE = {"marker": "X", "color": INK, "ms": 9}
EDGES: dict[str, Any] = {"ls": "", "mec": PAPER, "mew": 0.6}
LOWEST = 1e-18  # an error of 0 is drawn here


@picture()
def relative_errors(
    errors: Mapping[str, Mapping[str, float | Sequence[float]]],
    tolerance: float,
    title: str,
    subtitle: str = "",
) -> Figure:
    """A row for each of `errors`, and in it a point for each error of each series, on a logarithmic axis.

    `errors` is row → series → one relative error or several. Series called "derived" and "mistake" have looks of their
    own (green, ink); others are of LoRA and cyan. Left of the line at `tolerance` an error is rounding. An error of 0 is
    drawn at the left edge.
    """
    series = list({name: None for row in errors.values() for name in row})
    looks = dict(zip(series, MARKERS, strict=False)) | {"derived": CORRECT, "mistake": MISTAKE}
    apart = {name: 0.24 * (i / max(1, len(series) - 1) - 0.5) for i, name in enumerate(series)}
    shifts = apart | {"derived": 0.0, "mistake": 0.0}  # these two never meet
    tall = 1.95 + 0.34 * len(errors)
    figure = new_figure(9, tall, title, subtitle)
    ax = axes_at(figure, 1.75, 0.72, 6.9, 0.34 * len(errors))
    ax.axvspan(LOWEST, tolerance, color=FROZEN, alpha=0.13, lw=0)
    ax.axvline(tolerance, color=FAINT_INK, lw=1, ls=":")
    for place, row in enumerate(errors.values()):
        for name, values in row.items():
            points = np.maximum(np.atleast_1d(values), LOWEST * 1.5)
            ax.plot(points, np.full(len(points), place + shifts[name]), **EDGES, **looks[name], clip_on=False)
    ax.set(xscale="log", xlim=(LOWEST, 10), ylim=(len(errors) - 0.4, -0.6))
    ax.set_yticks(range(len(errors)), list(errors))
    ax.xaxis.set_major_locator(FixedLocator([10.0**n for n in range(-18, 2, 3)]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.set_xlabel("relative error" + (" (0 is drawn at the edge)" if _has_zero(errors) else ""))
    beside = {"colour": FAINT_INK, "xycoords": ("data", "axes fraction"), "fontsize": 9}
    note(ax, f"rounding, below {tolerance:.0e}", (tolerance, 1), (-5, 5), ha="right", **beside)
    note(ax, "wrong", (tolerance, 1), (5, 5), **beside)
    if len(series) > 1:
        handles = [ax.plot([], [], **EDGES, **looks[name])[0] for name in series]
        figure.legend(
            handles,
            series,
            loc="upper right",
            bbox_to_anchor=(1, 1 - 0.66 / tall),
            ncols=len(series),
            frameon=False,
            handletextpad=0.1,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
    return figure


def _has_zero(errors: Mapping[str, Mapping[str, float | Sequence[float]]]) -> bool:
    return any(np.min(values) == 0 for row in errors.values() for values in row.values())


# -------------------------------------------------------------------------------------------------- what a step costs


@picture()
def step_flops(ranks: Sequence[int], ratios: Mapping[int, Sequence[float]], floor: float) -> Figure:
    """A LoRA step's FLOPs over a full fine-tuning step's, for one d × d layer, against the rank r; a cyan line a width d.

    `ratios` is d → the ratio at each of `ranks`; `floor` is the share of the frozen products, which no rank avoids.
    """
    figure = new_figure(
        9,
        4.5,
        "A LoRA step costs two thirds of a full one, plus 2r/d for the bypass",
        "FLOPs of the matrix products of one d × d layer, forward and backward",
    )
    ax = axes_at(figure, 0.95, 0.72, 6.0, 2.9)
    ax.set_ylim(0, 1.5)
    ax.fill_between(ranks, 0, floor, color=FROZEN, alpha=0.35, lw=0)
    ax.axhline(1, color=FULL, lw=2)
    for (d, values), look in zip(ratios.items(), ("-", (0, (5, 1.5)), (0, (1.5, 1.5))), strict=False):
        ratio = np.asarray(values)
        shown = ratio <= 1.45
        ax.plot(np.asarray(ranks)[shown], ratio[shown], color=LORA, ls=look, marker="o", ms=5, clip_on=False)
        last = np.flatnonzero(shown)[-1]
        note(ax, f"LoRA, d = {d:,}", (ranks[last], ratio[last]), (8, 0), LORA, va="center_baseline", path_effects=HALO)
    rank_axis(ax, ranks)
    ax.set_xlim(ranks[0], ranks[-1])
    at = ("axes fraction", "data")
    note(ax, "full fine-tuning", (1, 1), (8, 0), FULL, xycoords=at, va="center_baseline")
    note(ax, "the frozen products", (1, floor / 2), (8, 0), FROZEN, xycoords=at, va="center_baseline")
    ax.set_ylabel("FLOPs, a full step = 1")
    return figure
