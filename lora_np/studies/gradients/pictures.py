"""Pictures of gradients: one block, the gradients of LoRA beside the full gradient, errors of formulas, FLOPs of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch
from matplotlib.ticker import LogFormatterSciNotation, NullLocator

from ..harness import colours
from ..harness.colours import FAINT_INK, FROZEN, FULL, GREY_WASH, INK, LORA, LORA_DARK, LORA_LIGHT, OTHERS, PAPER
from ..harness.style import EDGE, HALO, axes_at, blank, log_axis, name_axis, new_figure, note, picture, rank_axis


@picture()
def gradient_shadows(dW: np.ndarray, dA: np.ndarray, dB: np.ndarray, name: str = "one layer") -> Figure:
    """Draw dW of full fine-tuning beside the gradients dA and dB that LoRA computes instead.

    Parameters
    ----------
    dW : ndarray, shape (d, k)
        The gradient of the weight in full fine-tuning.
    dA : ndarray, shape (r, k)
        The gradient of A.
    dB : ndarray, shape (d, r)
        The gradient of B.
    name : str
        The name of the layer, for the subtitle.

    Returns
    -------
    matplotlib.figure.Figure
        The matrix dW is coral; dA below dW and dB beside dW are cyan. Each number is one cell; a larger absolute value
        is darker. Each matrix has its own colour scale.

    Raises
    ------
    ValueError
        If the shapes of dW, dA and dB do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> dW, A, B = np.eye(6, 9), np.ones((2, 9)), np.ones((6, 2))
    >>> figure = gradient_shadows(dW, B.T @ dW, dW @ A.T)
    >>> figure.texts[0].get_text()
    'LoRA computes 30 gradient numbers, full fine-tuning 54'
    """
    (d, k), r = dW.shape, dA.shape[0]
    if dA.shape != (r, k) or dB.shape != (d, r):
        raise ValueError(
            f"dW has shape {dW.shape}, so dA must be (r, {k}) and dB ({d}, r); got {dA.shape} and {dB.shape}"
        )
    inch = min(5.4 / (k + r), 3.1 / (d + r))  # one entry, in inches
    wide, high, narrow, gap, bottom = k * inch, d * inch, r * inch, 0.62, 0.3
    left = max(1.35, (9 - wide - gap - narrow) / 2)
    tall = bottom + narrow + gap + high + 1.1
    title = f"LoRA computes {r * (d + k):,} gradient numbers, full fine-tuning {d * k:,}"
    subtitle = f"{name}, r = {r}; each cell is one number; darker means a larger absolute value"
    figure = new_figure(9, tall, title, subtitle)
    top = bottom + narrow + gap
    _matrix(axes_at(figure, left, top, wide, high), dW, FULL, colours.for_text(FULL, 9))
    _matrix(axes_at(figure, left, bottom, wide, narrow), dA, LORA, LORA_DARK)
    _matrix(axes_at(figure, left + wide + gap, top, narrow, high), dB, LORA, LORA_DARK)

    sheet = axes_at(figure, 0, 0, 9, tall, xlim=(0, 9), ylim=(0, tall))
    sheet.set_axis_off()
    cyan, coral = colours.for_text(LORA), colours.for_text(FULL)
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


def _matrix(ax: Axes, values: np.ndarray, colour: str, dark: str) -> None:
    limit = np.percentile(abs(values), 99) or 1  # without it, a few large entries of dW make all others white
    shades = colours.shades(PAPER, colour, dark)
    ax.imshow(abs(values), cmap=shades, vmin=0, vmax=limit, aspect="auto", interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set(visible=True, color=colour)


# ------------------------------------------------------------------------------------------------ a block, as boxes

STREAM, BRANCH = 0.42, 1.62  # heights of the residual stream and of the branch above it, in inches
Spot = tuple[float, float]


@picture()
def block_diagram() -> Figure:
    """Draw one block of a Llama model: attention above the MLP, and a LoRA adapter in every linear layer.

    Returns
    -------
    matplotlib.figure.Figure
        Grey boxes with a cyan strip are linear layers with an adapter; white boxes are layers without an adapter.

    Examples
    --------
    >>> block_diagram().get_size_inches().tolist()
    [9.0, 6.4]
    """
    title = "One block of the model: attention and the MLP each add to the residual stream"
    figure = new_figure(9, 6.4, title, "attention reads the earlier tokens; the MLP reads each token alone")
    ax = blank(axes_at(figure, 0, 0, 9, 6.4, xlim=(0, 9), ylim=(0, 6.4)))

    row = _sublayer(ax, 3.05, "x", "x + attention(norm(x))", "y", end=7.65)
    heights = _stack(ax, 3.1, row, "q_proj", "k_proj", "v_proj")
    _layer(ax, (4.55, row + 0.3), "rotary", high=1.0)
    _layer(ax, (5.85, row), "softmax(q kᵀ) v", wide=1.2, high=1.6)
    _layer(ax, (7.2, row), "o_proj", lora=True)
    for letter, height in zip("qkv", heights, strict=True):
        ax.text(3.82, height + 0.07, f"${letter}$", ha="center", fontsize=12)
        stops = [3.55, 5.25] if letter == "v" else [3.55, 4.1, 5.0, 5.25]  # the rotary embedding does not change v
        for start, stop in zip(stops[::2], stops[1::2], strict=True):
            _arrow(ax, (start, height), (stop, height))
    _arrow(ax, (6.45, row), (6.75, row))

    row = _sublayer(ax, 0.55, "y", "y + MLP(norm(y))", "z", end=7.25)
    heights = _stack(ax, 3.3, row, "gate_proj", "up_proj")
    _layer(ax, (5.2, row), "SwiGLU", high=1.1)
    _layer(ax, (6.8, row), "down_proj", lora=True)
    for letter, height in zip("gu", heights, strict=True):
        _arrow(ax, (3.75, height), (4.75, height))
        ax.text(4.2, height + 0.07, f"${letter}$", ha="center", fontsize=12)
    _arrow(ax, (5.65, row), (6.35, row))

    _layer(ax, (0.62, 0.32), "", lora=True, wide=0.4, high=0.22)
    ax.text(0.92, 0.32, "linear layer: W frozen, A and B trained", va="center", fontsize=9.5)
    _layer(ax, (4.72, 0.32), "", wide=0.4, high=0.22)
    ax.text(5.02, 0.32, "layer without an adapter", va="center", fontsize=9.5)
    return figure


def _stack(ax: Axes, middle: float, row: float, *names: str) -> list[float]:
    """Draw linear layers above one another, centred at `row`, with arrows from RMSNorm; return the y of each layer."""
    heights = [row + 0.6 * ((len(names) - 1) / 2 - i) for i in range(len(names))]
    for name, height in zip(names, heights, strict=True):
        _layer(ax, (middle, height), name, lora=True)
        _arrow(ax, (2.05, row), (2.3, row), (2.3, height), (middle - 0.45, height))
    return heights


def _sublayer(ax: Axes, low: float, name: str, formula: str, result: str, end: float, plus: float = 8.0) -> float:
    """Draw the residual stream of one sublayer, and the two ends of its branch. Return the height of the branch.

    The stream goes from `name` through the ⊕ at `plus` to `result`. The branch starts with RMSNorm and ends with an arrow from the
    last layer, at `end`, to the ⊕.
    """
    height, row = low + STREAM, low + BRANCH
    ax.text(0.3, height, f"${name}$", ha="center", va="center", fontsize=17)
    _arrow(ax, (0.5, height), (plus - 0.17, height))
    ax.add_patch(Circle((0.8, height), 0.05, fc=INK, ec="none", zorder=3))
    ax.add_patch(Circle((plus, height), 0.17, fc=PAPER, ec=INK, lw=1.6, zorder=3))
    ax.text(plus, height, "+", ha="center", va="center_baseline", fontsize=15, zorder=4)
    _arrow(ax, (plus + 0.17, height), (8.5, height))
    ax.text(8.7, height, f"${result}$", ha="center", va="center", fontsize=17)
    ax.text((0.8 + plus) / 2, height + 0.09, formula, ha="center", color=FAINT_INK, fontsize=9.5)
    _layer(ax, (1.6, row), "RMSNorm")
    _arrow(ax, (0.8, height), (0.8, row), (1.15, row))
    _arrow(ax, (end, row), (plus, row), (plus, height + 0.17))
    return row


def _layer(ax: Axes, middle: Spot, name: str, lora: bool = False, wide: float = 0.9, high: float = 0.42) -> None:
    """Draw a box with the layer's name; a layer with an adapter is grey and has a cyan strip below it."""
    (x, y), shape = middle, "round,pad=0,rounding_size=0.05"
    look = {"fc": GREY_WASH, "ec": FROZEN} if lora else {"fc": PAPER, "ec": INK}
    ax.add_patch(FancyBboxPatch((x - wide / 2, y - high / 2), wide, high, boxstyle=shape, lw=1.4, zorder=2, **look))
    if lora:
        strip = (x - wide / 2, y - high / 2 - 0.09)
        ax.add_patch(FancyBboxPatch(strip, wide, 0.06, boxstyle="square,pad=0", fc=LORA, ec="none", zorder=2))
    ax.text(x, y, name, ha="center", va="center", fontsize=9.5, zorder=3)


def _arrow(ax: Axes, *stops: Spot) -> None:
    """Draw a line through `stops` with an arrow head at the last stop."""
    ax.plot(*zip(*stops, strict=True), color=INK, lw=1.3, solid_joinstyle="round", zorder=1)
    head = {"arrowstyle": "-|>", "color": INK, "lw": 1.3, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", stops[-1], stops[-2], arrowprops=head)


# --------------------------------------------------------------------------------------- which numerical derivative

# method → its look (black: the method that the tests use; green: the other two), the point (h, error) of its label, and the
# alignment of the label
STEPS: dict[str, tuple[dict[str, Any], Spot, str]] = {
    "forward difference": ({"color": OTHERS[2], "ls": (0, (4, 1.5)), "marker": "^"}, (2e-5, 3e-4), "right"),
    "central difference": ({"color": OTHERS[1], "ls": (0, (6, 1.5)), "marker": "s"}, (2e-7, 3e-12), "right"),
    "complex step": ({"color": INK, "ls": "-", "marker": "o"}, (1e-19, 2e-14), "left"),
}


@picture()
def step_sizes(h: Sequence[float] | np.ndarray, errors: Mapping[str, Sequence[float]], subtitle: str = "") -> Figure:
    """Draw the relative error of numerical derivatives against their step h.

    Parameters
    ----------
    h : sequence of float
        The steps.
    errors : mapping of str to sequence of float
        The relative error at each step, for "forward difference", "central difference" or "complex step".
    subtitle : str
        The text below the title.

    Returns
    -------
    matplotlib.figure.Figure
        Two logarithmic axes, one line per method. Errors below 2⁻⁵³, which is half the spacing of float64 numbers at 1,
        are drawn at 2⁻⁵³.

    Examples
    --------
    >>> figure = step_sizes([1e-8, 1e-4], {"complex step": [1e-16, 1e-8]})
    >>> figure.axes[0].get_ylabel()
    'relative error'
    """
    title = "A very small step ruins a difference quotient, but not the complex step"
    figure = new_figure(9, 4.7, title, subtitle)
    ax = axes_at(figure, 0.95, 0.72, 7.7, 3.05)
    h, spacing = np.asarray(h), np.finfo(float).eps
    for method, values in errors.items():
        shown, (look, place, side) = np.maximum(values, spacing / 2), STEPS[method]
        ax.plot(h, shown, ms=3.5, lw=1.4, **look)
        best = int(np.argmin(shown))
        least = f"at best {values[best]:.0e}, at h = {h[best]:.0e}"
        if values[best] <= 2 * spacing:
            least = f"exact to rounding for all h below {h[np.flatnonzero(shown > 4 * spacing)[0]]:.0e}"
        beside = {"colour": look["color"], "ha": side, "path_effects": HALO}
        note(ax, method, place, (0, 1), fontweight="bold", **beside)
        note(ax, least, place, (0, -3), va="top", fontsize=9, **beside)
    ax.axhline(spacing, color=FAINT_INK, lw=1, ls=":")
    note(ax, "spacing of float64", (h.max(), spacing), (-4, 4), FAINT_INK, ha="right", fontsize=9)
    ax.set(xscale="log", yscale="log", xlim=(h.min(), h.max()), ylim=(spacing / 8, 30))
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_locator(NullLocator())
    ax.set(xlabel="step $h$", ylabel="relative error")
    return figure


# ------------------------------------------------------------------------------------------------ errors, side by side

MARKERS = [  # for series that are not in OWN_LOOKS
    {"marker": marker, "color": colour, "ms": size}
    for marker, colour, size in (("o", LORA, 6.5), ("D", LORA_LIGHT, 5.5), ("s", OTHERS[0], 6), ("^", OTHERS[1], 7))
]
OWN_LOOKS = {"derived": {"marker": "o", "color": OTHERS[1], "ms": 8}, "mistake": {"marker": "X", "color": INK, "ms": 9}}
EDGES: dict[str, Any] = {"ls": "", "mec": PAPER, "mew": 0.6}
LOWEST = 1e-18  # an error of 0 is drawn here


@picture()
def relative_errors(
    errors: Mapping[str, Mapping[str, float | Sequence[float]]], tolerance: float, title: str, subtitle: str = ""
) -> Figure:
    """Draw relative errors on a logarithmic axis, one row per formula and one marker per series.

    Parameters
    ----------
    errors : mapping
        For each row, a mapping from the name of a series to its relative error, or to several relative errors. The
        series "derived" and "mistake" have their own markers.
    tolerance : float
        Errors below this value count as rounding errors.
    title : str
        The title.
    subtitle : str
        The subtitle.

    Returns
    -------
    matplotlib.figure.Figure
        The area of rounding errors is grey. An error of 0 is drawn at the left edge.

    Examples
    --------
    >>> figure = relative_errors({"silu": {"derived": 1e-15, "mistake": 0.2}}, 1e-12, "The formula is right")
    >>> figure.axes[0].get_xlabel()
    'relative error'
    """
    series = list({name: None for row in errors.values() for name in row})
    looks = dict(zip(series, MARKERS, strict=False)) | OWN_LOOKS
    apart = {name: 0.24 * (i / max(1, len(series) - 1) - 0.5) for i, name in enumerate(series)}
    apart |= dict.fromkeys(OWN_LOOKS, 0.0)  # these two never overlap
    tall = 1.95 + 0.34 * len(errors)
    figure = new_figure(9, tall, title, subtitle)
    ax = axes_at(figure, 1.75, 0.72, 6.9, 0.34 * len(errors))
    ax.axvspan(LOWEST, tolerance, color=FROZEN, alpha=0.13, lw=0)
    ax.axvline(tolerance, color=FAINT_INK, lw=1, ls=":")
    for place, row in enumerate(errors.values()):
        for name, values in row.items():
            points = np.maximum(np.atleast_1d(values), LOWEST * 1.5)
            ax.plot(points, np.full(len(points), place + apart[name]), **EDGES, **looks[name], clip_on=False)
    has_zero = any(np.min(values) == 0 for row in errors.values() for values in row.values())
    log_axis(ax.xaxis, [10.0**n for n in range(-18, 2, 3)], "relative error" + " (0 is drawn at the edge)" * has_zero)
    ax.xaxis.set_major_formatter(LogFormatterSciNotation())
    name_axis(ax, list(errors))
    ax.set(xlim=(LOWEST, 10), ylim=(len(errors) - 0.4, -0.6))
    ax.grid(axis="x")
    beside: dict[str, Any] = {"colour": FAINT_INK, "xycoords": ("data", "axes fraction"), "fontsize": 9}
    note(ax, f"rounding, below {tolerance:.0e}", (tolerance, 1), (-5, 5), ha="right", **beside)
    note(ax, "wrong", (tolerance, 1), (5, 5), **beside)
    if len(series) > 1:
        handles = [ax.plot([], [], **EDGES, **looks[name])[0] for name in series]
        where = {"loc": "upper right", "bbox_to_anchor": (1, 1 - 0.66 / tall), "borderaxespad": 0.2}
        figure.legend(handles, series, ncols=len(series), frameon=False, handletextpad=0.1, columnspacing=1.2, **where)
    return figure


@picture()
def step_flops(ranks: Sequence[int], ratios: Mapping[int, Sequence[float]], floor: float) -> Figure:
    """Draw the FLOPs of a LoRA step, divided by the FLOPs of a full step, against the rank, for d × d layers.

    Parameters
    ----------
    ranks : sequence of int
        The ranks.
    ratios : mapping of int to sequence of float
        For each width d, the ratio of the FLOPs at each rank.
    floor : float
        The FLOPs of the products with the frozen weight, divided by the FLOPs of a full step.

    Returns
    -------
    matplotlib.figure.Figure
        LoRA is cyan, with one line per width, and full fine-tuning is coral. The grey area is the products with the
        frozen weight.

    Examples
    --------
    >>> figure = step_flops([1, 8], {128: [0.68, 0.79]}, floor=2 / 3)
    >>> figure.axes[0].get_ylabel()
    'FLOPs (full step = 1)'
    """
    title = "A LoRA step needs two thirds of the FLOPs of a full step, plus 2r/d"
    figure = new_figure(
        9, 4.5, title, "FLOPs of the matrix products of one d × d layer, in the forward and the backward pass"
    )
    ax = axes_at(figure, 0.95, 0.72, 6.0, 2.9)
    ax.fill_between(ranks, 0, floor, color=FROZEN, alpha=0.35, lw=0)
    ax.axhline(1, color=FULL, lw=2)
    beside: dict[str, Any] = {"shift": (8, 0), "va": "center_baseline"}
    for (d, values), look in zip(ratios.items(), ("-", (0, (5, 1.5)), (0, (1.5, 1.5))), strict=False):
        ratio = np.asarray(values)
        shown = ratio <= 1.45
        ax.plot(np.asarray(ranks)[shown], ratio[shown], color=LORA, ls=look, marker="o", ms=5, clip_on=False)
        last = np.flatnonzero(shown)[-1]
        note(ax, f"LoRA, d = {d:,}", (ranks[last], ratio[last]), colour=LORA, path_effects=HALO, **beside)
    rank_axis(ax, ranks)
    ax.set(xlim=(ranks[0], ranks[-1]), ylim=(0, 1.5), ylabel="FLOPs (full step = 1)")
    note(ax, "full fine-tuning", (1, 1), colour=FULL, xycoords=EDGE, **beside)
    note(ax, "products with frozen W", (1, floor / 2), colour=FROZEN, xycoords=EDGE, **beside)
    return figure
