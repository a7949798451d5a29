"""Pictures of a learned ΔW: its best product B·A, its singular values, and the loss after a cut to rank r."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FROZEN, FULL, INK, LORA, for_text, signed_colours
from ..harness.style import BOLD, EDGE, axes_at, new_figure, note, picture, rank_axis
from ..harness.table import Table
from ..harness.words import percent

CYAN, CORAL = for_text(LORA), for_text(FULL)
MLP = ("gate_proj", "up_proj", "down_proj")
KINDS = {"attention": False, "the MLP": True}  # kind of layers → whether its modules are in MLP


@picture("name r matrix B A")
def decomposition_2d(table: Table) -> Figure:
    """Draw a learned ΔW beside its best product B·A of one rank, one cell per number.

    Parameters
    ----------
    table : Table
        The result of the study "decomposition": one row with the lists `matrix` (out, in), `B` (out, r) and `A` (r,
        in).

    Returns
    -------
    matplotlib.figure.Figure
        ΔW is coral; B, A and B·A are cyan. B is at the left of the product, and A is above the product. Each cell of
        the product is the row of B at the left of the cell, times the column of A above the cell.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = decomposition_2d(Table.load("figures/data/decomposition.json"))
    >>> figure.axes[0].get_title(loc="left")
    'ΔW: 64 × 128'
    """
    row = table.rows[0]
    matrix, b, a = (np.asarray(row[key], float) for key in ("matrix", "B", "A"))
    (d, k), r = matrix.shape, b.shape[1]
    error = float(np.linalg.norm(matrix - b @ a) / np.linalg.norm(matrix))
    cell = min(5.8 / (2 * k + r), 3.4 / (d + r))  # inches per number
    wide, high, thin, gap = cell * k, cell * d, cell * r, 0.14
    base, left = 0.6, 0.7 + (5.8 - 2 * wide - thin) / 2
    right = left + wide + 1.15 + thin + gap
    tall = base + high + gap + thin + 1.25
    title = f"The best product B·A of rank {r} keeps {percent(1 - error**2)} of the energy of this ΔW"
    module, numbers = row["name"].split(".")[-1], f"B and A have {r * (d + k):,} numbers"
    subtitle = f"ΔW of {module} after full fine-tuning has {d * k:,} numbers; {numbers}; each cell is one number"
    figure = new_figure(9, tall, title, subtitle)
    top = float(np.quantile(np.abs(matrix), 0.995)) or 1.0
    ax = _heat(figure, (left, base, wide, high), matrix, FULL, top)
    ax.set(xlabel=f"in = {k}", ylabel=f"out = {d}")
    ax.set_title(f"ΔW: {d} × {k}", color=CORAL)
    _heat(figure, (right, base, wide, high), b @ a, LORA, top).set_xlabel(f"B·A: {d} × {k}", color=CYAN)
    strip = _heat(figure, (right - gap - thin, base, thin, high), b, LORA, np.abs(b).max())
    strip.set_ylabel(f"B: {d} × {r}", color=CYAN)
    strip = _heat(figure, (right, base + high + gap, wide, thin), a, LORA, np.abs(a).max())
    strip.set_title(f"A: {r} × {k}", color=CYAN)
    middle = (left + wide + right - gap - thin) / 2
    figure.text((middle - 0.08) / 9, (base + high / 2) / tall, "→", fontsize=26, ha="center", va="center")
    _two_ramps(axes_at(figure, right + wide + 0.25, base + high / 4, 0.26, high / 2), top)
    return figure


def _heat(figure: Figure, box: tuple[float, float, float, float], values: np.ndarray, colour: str, top: float) -> Axes:
    """Draw signed numbers as cells in `box` (inches): black for −top, white for 0, `colour` for +top."""
    ax = axes_at(figure, *box, xticks=[], yticks=[])
    ax.imshow(values, cmap=signed_colours(colour), vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    ax.spines[:].set_visible(True)
    return ax


def _two_ramps(ax: Axes, top: float) -> None:
    """Draw the colour scale of ΔW and the colour scale of B·A, which have the same limits."""
    ramp = np.linspace(-1, 1, 201)[:, None]
    for colour, extent in ((FULL, (0, 0.5, -1, 1)), (LORA, (0.5, 1, -1, 1))):
        ax.imshow(ramp, cmap=signed_colours(colour), extent=extent, aspect="auto", origin="lower")
    ax.set(xlim=(0, 1), xticks=[])
    ax.set_title("change\nin weight", fontsize=9.5, fontweight="normal", loc="left")
    ax.yaxis.tick_right()
    ax.set_yticks([-1, 0, 1], [f"−{top:.2g}", "0", f"+{top:.2g}"])
    ax.spines[:].set_visible(True)


@picture("layer module singular_values")
def singular_values(table: Table, marked_rank: int = 8) -> Figure:
    """Draw the singular values of each learned ΔW, and the share of its energy in the top r directions.

    Parameters
    ----------
    table : Table
        The result of the study "singular_values".
    marked_rank : int
        The rank r at which the picture states the share of the energy.

    Returns
    -------
    matplotlib.figure.Figure
        Attention is at the left, and the MLP is at the right. Thin lines are single matrices, and the thick line is the
        median of the matrices. The dotted line is the median of random matrices of the same shape and norm. The energy
        is Σσ², the squared Frobenius norm.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = singular_values(Table.load("figures/data/singular_values.json"))
    >>> [ax.get_title(loc="left") for ax in figure.axes[::2]]
    ['attention', 'MLP']
    """
    found = {kind: [row for row in table.rows if (row["module"] in MLP) == of] for kind, of in KINDS.items()}
    kinds = {kind: rows for kind, rows in found.items() if rows}
    marked_rank = min(marked_rank, *(len(row["singular_values"]) for row in table.rows))
    held = {kind: _held([row["singular_values"] for row in rows], marked_rank) for kind, rows in kinds.items()}
    (first, share), *others = held.items()
    title = f"The top {marked_rank} directions hold {percent(share)} of ΔW's energy in {first}"
    title += "".join(f" and {percent(share)} in {kind}" for kind, share in others)
    drawn = [row for row in table.rows if row.get("random_singular_values") is not None]
    subtitle = f"thin lines: {len(table.rows)} fine-tuned matrices; thick lines: medians"
    figure = new_figure(9, 6.75, title, subtitle + "; dotted lines: random matrices of equal norm" * bool(drawn))
    for i, (kind, rows) in enumerate(kinds.items()):
        left = 0.85 + 4.3 * i
        upper, lower = axes_at(figure, left, 3.75, 3.55, 1.95), axes_at(figure, left, 0.65, 3.55, 2.4)
        learned = [np.asarray(row["singular_values"], float) for row in rows]
        chance = [np.asarray(row["random_singular_values"], float) for row in rows if row in drawn]
        most = min(map(len, learned))
        for curves, colour in ((learned, FULL), (chance, INK)):
            if curves:
                _family(upper, [s / np.linalg.norm(s) for s in curves], most, colour)
                _family(lower, [100 * _energy(s) for s in curves], most, colour)
        ticks = [2**i for i in range(int(math.log2(most)) + 1)]
        rank_axis(upper, ticks, "index i (largest value first)")
        rank_axis(lower, ticks, "rank r of the cut")
        upper.set(ylabel="σᵢ (share of ‖ΔW‖)", ylim=(0, None), title=kind.removeprefix("the "))
        lower.set(ylabel="energy in the top r (%)", ylim=(0, 103))
        _mark_energy(lower, marked_rank, learned, chance)
    return figure


def _energy(values: Any) -> np.ndarray:
    """Return the share of Σσ² that the top r singular values hold, for each r."""
    squares = np.square(np.asarray(values, float))
    return np.cumsum(squares) / squares.sum()


def _held(spectra: list[Any], r: int) -> float:
    """Return the share of the energy in the top r directions: the median over matrices."""
    return float(np.median([_energy(values)[r - 1] for values in spectra]))


def _family(ax: Axes, curves: list[np.ndarray], most: int, colour: str) -> None:
    """Draw each curve as a thin line and the median as a thick line.

    For random matrices (INK) draw only the median, dotted.
    """
    index = np.arange(1, most + 1)
    if colour == FULL:
        for curve in curves:
            ax.plot(np.arange(1, len(curve) + 1), curve, color=colour, lw=0.7, alpha=0.45)
    median = np.median([curve[:most] for curve in curves], axis=0)
    ax.plot(index, median, color=colour, lw=2.6, ls="-" if colour == FULL else (0, (0.2, 1.7)), dash_capstyle="round")


def _mark_energy(ax: Axes, r: int, learned: list[np.ndarray], chance: list[np.ndarray]) -> None:
    """Mark both medians at rank r.

    The label of the learned ΔW is above its line; the label of random matrices is below their line.
    """
    above: dict[str, Any] = {"shift": (-10, 8), "ha": "right"}
    below: dict[str, Any] = {"shift": (9, -7), "va": "top"}
    for name, spectra, colour, side in (("learned", learned, FULL, above), ("random", chance, INK, below)):
        if spectra:
            share = _held(spectra, r)
            ax.plot(r, 100 * share, "o", color=colour, ms=7, mec="white")
            note(ax, f"{name}: {percent(share)}", (r, 100 * share), colour=colour, **side, **BOLD)


@picture("r heldout_loss", settings="base_loss full_loss rank_max")
def truncated_loss(table: Table) -> Figure:
    """Draw the held-out loss after every ΔW is cut to its top r singular directions.

    Parameters
    ----------
    table : Table
        The result of the study "truncated_loss". A row with r = 0 is not drawn.

    Returns
    -------
    matplotlib.figure.Figure
        The left axis is the loss in nats per byte, and the right axis is the share of full fine-tuning's gain. The grey
        line is the base; the dashed line is the model with all of ΔW.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = truncated_loss(Table.load("figures/data/truncated_loss.json"))
    >>> figure.axes[0].get_xlabel()
    'rank r of the cut'
    """
    base, full = table.settings["base_loss"], table.settings["full_loss"]
    rows = sorted((row for row in table.rows if row["r"] > 0), key=lambda row: row["r"])
    ranks, losses = [row["r"] for row in rows], [row["heldout_loss"] for row in rows]
    gains = [(base - loss) / (base - full) for loss in losses]
    enough = next((i for i, gain in enumerate(gains) if gain >= 0.95), len(gains) - 1)
    title = f"If every ΔW is cut to rank {ranks[enough]} of {table.settings['rank_max']}, the model keeps "
    title += f"{percent(gains[enough])} of full fine-tuning's gain"
    subtitle = "each point is one fine-tuned model in which every ΔW has only its top r singular directions"
    figure = new_figure(9, 4.4, title, subtitle)
    ax = axes_at(figure, 0.85, 0.7, 7.2, 2.85)
    ax.axhline(base, color=FROZEN, lw=2)
    ax.axhline(full, color=FULL, lw=1.4, ls=(0, (4, 2)))
    ax.plot(ranks, losses, color=FULL, lw=2.6, marker="o", ms=6.5, mec="white")
    ax.plot(ranks[enough], losses[enough], "o", color=FULL, ms=11, mec=INK, mew=1.4)
    rank_axis(ax, ranks, "rank r of the cut")
    span = base - full
    ax.set_ylabel("held-out loss (nats per byte)")
    ax.set_ylim(min(full, *losses) - 0.13 * span, max(base, *losses) + 0.13 * span)
    note(ax, f"frozen base {base:.3f}", (1, base), (-2, 5), FROZEN, xycoords=EDGE, ha="right")
    note(ax, f"all of ΔW {full:.3f}", (0, full), (4, -5), FULL, xycoords=EDGE, va="top")
    at_the_end = {"shift": (6, -10), "va": "top", "ha": "right"}
    beside = at_the_end if enough == len(ranks) - 1 else {"shift": (9, 9)}
    found = f"r = {ranks[enough]}: {percent(gains[enough])}"
    note(ax, found, (ranks[enough], losses[enough]), colour=FULL, fontweight="bold", **beside)
    to_share, to_loss = (lambda loss: 100 * (base - loss) / span), (lambda gain: base - gain * span / 100)
    share = ax.secondary_yaxis("right", functions=(to_share, to_loss))
    share.set_yticks([0, 25, 50, 75, 100])
    share.set_ylabel("share of the gain (%)")
    return figure


@picture("r image share_of_numbers error")
def photograph(table: Table) -> Figure:
    """Draw a photograph cut to its top r singular directions, for several r.

    Parameters
    ----------
    table : Table
        The columns are `r` (None for the original), `image` (grey values, shape (height, width)), `share_of_numbers`
        and `error`.

    Returns
    -------
    matplotlib.figure.Figure
        One panel per rank, and one panel for the original.

    Examples
    --------
    >>> import numpy as np
    >>> from lora_np.studies.low_rank import rank_reduction
    >>> image = np.arange(48.0).reshape(6, 8)
    >>> figure = photograph(rank_reduction.photograph(image, ranks=(1, 2)))
    >>> [ax.get_title(loc="left") for ax in figure.axes]
    ['r = 1', 'r = 2', 'original']
    """
    rows = sorted(table.rows, key=lambda row: math.inf if row["r"] is None else row["r"])
    across = len(rows) if len(rows) <= 4 else min(4, math.ceil(len(rows) / 2))
    down = math.ceil(len(rows) / across)
    images = [np.asarray(row["image"], float) for row in rows]
    height, width = images[0].shape
    gaps = 0.18 * (across - 1)
    high = min(2.4, (9 - 0.44 - gaps) / across * height / width)
    wide, pitch = high * width / height, high + 0.72
    tall = 0.85 + down * pitch + 0.1
    subtitle = f"below each picture: numbers in B and A, as a share of {height} × {width}; relative error"
    figure = new_figure(
        max(6.0, 0.44 + across * wide + gaps), tall, "Each picture keeps the top r directions of a photograph", subtitle
    )
    for place, (row, image) in enumerate(zip(rows, images, strict=True)):
        line, column = divmod(place, across)
        ax = axes_at(figure, 0.22 + column * (wide + 0.18), tall - 0.85 - (line + 1) * pitch + 0.42, wide, high)
        ax.imshow(image, cmap="gray", vmin=images[-1].min(), vmax=images[-1].max(), aspect="auto")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        name, kept, colour = "original", "all numbers", INK
        if row["error"] and row["r"] is not None:
            name, colour = f"r = {row['r']}", CYAN
            kept = f"{percent(row['share_of_numbers'])}, error {percent(row['error'])}"
        ax.set_title(name, color=colour)
        ax.set_xlabel(kept, fontsize=9.5, color=FAINT_INK)
    return figure
