"""Why a low rank can be enough: a learned ΔW as B·A, its singular values, and what is lost when only the top r stay."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from ..harness.colours import FAINT_INK, FROZEN, FULL, INK, LORA, for_text, signed_colours
from ..harness.style import BOLD, EDGE, HALO, axes_at, new_figure, note, picture, rank_axis
from ..harness.table import Table
from ..harness.words import percent

CYAN, CORAL = for_text(LORA), for_text(FULL)
MLP = ("gate_proj", "up_proj", "down_proj")
KINDS = {"attention": False, "the MLP": True}  # kind of layers → whether they are those of the MLP


@picture("name r matrix B A")
def decomposition_2d(table: Table) -> Figure:
    """A learned ΔW (coral) beside the best product B·A of its rank (cyan), every number a cell, all to one scale.

    B stands left of the product and A lies above it, so that each cell of the product is its row of B times its column
    of A. Row 0 is drawn; matrix is d lists of k numbers, B d of r, A r of k.
    """
    row = table.rows[0]
    matrix, b, a = (np.asarray(row[key], float) for key in ("matrix", "B", "A"))
    (d, k), r = matrix.shape, b.shape[1]
    error = float(np.linalg.norm(matrix - b @ a) / np.linalg.norm(matrix))
    cell = min(5.8 / (2 * k + r), 3.4 / (d + r))  # inches a number
    wide, high, thin, gap = cell * k, cell * d, cell * r, 0.14
    base, left = 0.6, 0.7 + (5.8 - 2 * wide - thin) / 2
    right = left + wide + 1.15 + thin + gap
    tall = base + high + gap + thin + 1.25
    title = f"The best product of rank {r} keeps {percent(1 - error**2)} of this change's energy"
    numbers = f"{d * k:,} numbers, and its cut B·A, {r * (d + k):,} (relative error {percent(error)})"
    figure = new_figure(9, tall, title, f"{row['name']}: the ΔW that full fine-tuning learned, {numbers}")
    top = float(np.quantile(np.abs(matrix), 0.995)) or 1.0
    ax = _heat(figure, (left, base, wide, high), matrix, FULL, top)
    ax.set(xlabel=f"k = {k} columns", ylabel=f"d = {d} rows")
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
    """Signed numbers as cells in `box` (inches): ink where −top, paper where 0, `colour` where +top."""
    ax = axes_at(figure, *box, xticks=[], yticks=[])
    ax.imshow(values, cmap=signed_colours(colour), vmin=-top, vmax=top, aspect="auto", interpolation="nearest")
    ax.spines[:].set_visible(True)
    return ax


def _two_ramps(ax: Axes, top: float) -> None:
    """The colour scale that ΔW and B·A share, each in its own colour."""
    ramp = np.linspace(-1, 1, 201)[:, None]
    for colour, extent in ((FULL, (0, 0.5, -1, 1)), (LORA, (0.5, 1, -1, 1))):
        ax.imshow(ramp, cmap=signed_colours(colour), extent=extent, aspect="auto", origin="lower")
    ax.set(xlim=(0, 1), xticks=[])
    ax.set_title("change\nin weight", fontsize=9.5, fontweight="normal", loc="left")
    ax.yaxis.tick_right()
    ax.set_yticks([-1, 0, 1], [f"−{top:.2g}", "0", f"+{top:.2g}"])
    ax.spines[:].set_visible(True)


# ---------------------------------------------------------------------------------------------- the scene to be turned

MOST_COLUMNS = 32  # along one side; a larger matrix shows one column for a block of numbers


@picture("r")
def scene_3d(table: Table, elevation: float = 36, azimuth: float = -76) -> Figure:
    """A scene to be turned: every cell of W a coral column (full fine-tuning) against the thin cyan slices of B and A.

    Left, all d·k numbers change. Right, W is a flat grey floor and only the r·(d + k) numbers of B (at its left edge)
    and A (along its back) stand. Under `%matplotlib widget` (ipympl) the mouse turns it.
    Row 0 is drawn. It holds {d, k, r}, B and A are LoRA's, and all columns are equally high; or it is that of
    `decomposition_2d`, {matrix, B, A, r}, B and A are the factors of the cut ΔW, and a column is as high as the size of its
    number.
    """
    row = table.rows[0]
    cut = "matrix" in row
    (d, k), r = np.shape(row["matrix"]) if cut else (row["d"], row["k"]), row["r"]
    block = math.ceil(max(d, k) / MOST_COLUMNS)
    subtitle = f"W is {d} × {k}; a column stands for " + (f"{block} × {block} numbers" if block > 1 else "one number")
    if cut:
        title = f"Full fine-tuning moved {d * k:,} numbers; the best B·A of rank {r} has {r * (d + k):,}"
        subtitle += ", as high as their mean size; ΔW, B and A each to a scale of its own"
        whole, trained = "all of ΔW", "the cut ΔW as a product:"
    else:
        title = f"Full fine-tuning moves all {d * k:,} numbers; LoRA at r = {r} moves {r * (d + k):,}"
        whole, trained = "all of W trained", "LoRA: W frozen, trained"
    figure = new_figure(9, 4.9, title, subtitle)
    ax = axes_at(figure, 0, 0, 4, 4, projection="3d")
    deep, wide, thin = d / block, k / block, r / block
    rows, columns, slices = math.ceil(deep), math.ceil(wide), max(1, round(thin))
    gap, lift = 0.06 * wide, 0.17 * max(deep, wide)
    floor = 1.32 * wide + gap + thin  # x where the frozen W begins
    boxes = [
        _columns((0, 0), (wide, deep), _heights(row.get("matrix"), rows, columns), FULL),
        _columns((floor, 0), (wide, deep), np.zeros((rows, columns)), FROZEN),
        _columns((floor - gap - thin, 0), (thin, deep), _heights(row.get("B"), rows, slices), LORA),
        _columns((floor, deep + gap), (wide, thin), _heights(row.get("A"), slices, columns), LORA),
    ]
    faces, colours = (np.concatenate(parts) for parts in zip(*boxes, strict=True))
    # All in one collection, because matplotlib sorts by depth only within one; in an SVG it is one image.
    look = {"facecolors": colours, "edgecolors": colours, "linewidths": 0.2, "rasterized": True}
    scene = Poly3DCollection(faces * (1, 1, lift), **look)
    scene.set_clip_on(False)
    ax.add_collection3d(scene)
    front, under = -0.1 * deep, {"ha": "center", "va": "top", "path_effects": HALO}
    ax.text(wide / 2, front, 0, f"full fine-tuning:\n{whole}", color=CORAL, **under)
    ax.text(floor + wide / 2, front, 0, f"{trained}\nB ({d} × {r}) and A ({r} × {k})", color=CYAN, **under)
    ax.text(floor - gap - thin / 2, 0.3 * front, 0, "B", color=CYAN, fontsize=12, **under)
    ax.text(floor + wide / 2, deep + gap + thin, 1.8 * lift, "A", color=CYAN, fontsize=12, **under)
    reach = (floor + wide, deep + gap + thin, lift)
    ax.set(xlim=(0, reach[0]), ylim=(0, reach[1]), zlim=(0, reach[2]))
    ax.set_box_aspect(reach)
    ax.set_proj_type("ortho")
    ax.view_init(elevation, azimuth)
    ax.set_axis_off()
    ax.get_tightbbox = lambda *_, **__: figure.bbox  # a notebook trims to this: the square axes reach beyond the figure
    corners = [(x, y, z) for x in (0, reach[0]) for y in (0, reach[1]) for z in (0, lift)]
    _fill(ax, np.array(corners), (0.35, 0.62, 8.3, 3.3))
    return figure


def _fill(ax: Any, points: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """Place the (square) axes so that `points`, as this view shows them, just fill `box` (inches)."""
    ax.apply_aspect()
    flat = np.column_stack(proj3d.proj_transform(*points.T, ax.get_proj())[:2])
    shares = ax.transAxes.inverted().transform(ax.transData.transform(flat))
    low, high = shares.min(axis=0), shares.max(axis=0)
    side = min(np.array(box[2:]) / (high - low))
    corner = np.array(box[:2]) + np.array(box[2:]) / 2 - side * (low + high) / 2
    across, up = ax.figure.get_size_inches()
    ax.set_position((corner[0] / across, corner[1] / up, side / across, side / up))


def _heights(values: Any, rows: int, columns: int) -> np.ndarray:
    """The mean size of the numbers under each column, as a share of the highest; all 1 where no numbers are given."""
    if values is None:
        return np.ones((rows, columns))
    sizes = np.abs(np.asarray(values, float))
    means = [[part.mean() for part in np.array_split(band, columns, axis=1)] for band in np.array_split(sizes, rows)]
    return np.array(means) / (np.max(means) or 1.0)


def _columns(
    corner: tuple[float, float], size: tuple[float, float], heights: np.ndarray, colour: str
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes on a rows × columns grid (row 0 at the back): their faces (n, 4 corners, xyz) and the faces' colours."""
    rows, columns = heights.shape
    i, j = np.indices(heights.shape).reshape(2, -1)
    step_x, step_y = size[0] / columns, size[1] / rows
    air = 0.07 * min(step_x, step_y)
    x0, y0 = corner[0] + j * step_x + air, corner[1] + (rows - 1 - i) * step_y + air
    x1, y1, low, high = x0 + step_x - 2 * air, y0 + step_y - 2 * air, np.zeros(i.size), heights.ravel()

    def face(*corners: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        return np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)

    faces = {1.0: [face((x0, y0, high), (x1, y0, high), (x1, y1, high), (x0, y1, high))]}
    if heights.any():
        faces[0.82] = [face((x, y0, low), (x, y1, low), (x, y1, high), (x, y0, high)) for x in (x0, x1)]
        faces[0.66] = [face((x0, y, low), (x1, y, low), (x1, y, high), (x0, y, high)) for y in (y0, y1)]
    light = np.concatenate([np.full(len(group), shade) for shade, groups in faces.items() for group in groups])
    return np.concatenate([f for groups in faces.values() for f in groups]), light[:, None] * np.array(to_rgb(colour))


@picture("layer module singular_values")
def singular_values(table: Table, marked_rank: int = 8) -> Figure:
    """The singular values of every ΔW that full fine-tuning learned, and how much of its energy the top r hold.

    A panel for attention and one for the MLP, whose matrices differ in shape and in rank. Thin coral lines are single
    matrices, the thick one is their median; ink dots are random matrices of the same shape and norm, where they were drawn
    (`random_singular_values`). Energy is Σσ², the squared Frobenius norm.
    """
    found = {kind: [row for row in table.rows if (row["module"] in MLP) == of] for kind, of in KINDS.items()}
    kinds = {kind: rows for kind, rows in found.items() if rows}
    marked_rank = min(marked_rank, *(len(row["singular_values"]) for row in table.rows))
    held = {kind: _held([row["singular_values"] for row in rows], marked_rank) for kind, rows in kinds.items()}
    (first, share), *others = held.items()
    title = f"The top {marked_rank} directions hold {percent(share)} of ΔW's energy in {first}"
    title += "".join(f", {percent(share)} in {kind}" for kind, share in others)
    drawn = [row for row in table.rows if row.get("random_singular_values") is not None]
    subtitle = f"{len(table.rows)} matrices of full fine-tuning (thick: their median)"
    figure = new_figure(9, 6.75, title, subtitle + "; dotted: random ones of the same shape and norm" * bool(drawn))
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
        rank_axis(upper, ticks, "index i, largest first")
        rank_axis(lower, ticks, "rank r that is kept")
        upper.set(ylabel="σᵢ (share of ‖ΔW‖)", ylim=(0, None), title=kind.removeprefix("the "))
        lower.set(ylabel="energy in the top r (%)", ylim=(0, 103))
        _mark_energy(lower, marked_rank, learned, chance)
    return figure


def _energy(values: Any) -> np.ndarray:
    """The share of Σσ² in the top r, for each r."""
    squares = np.square(np.asarray(values, float))
    return np.cumsum(squares) / squares.sum()


def _held(spectra: list[Any], r: int) -> float:
    """The share in the top r, the median over matrices."""
    return float(np.median([_energy(values)[r - 1] for values in spectra]))


def _family(ax: Axes, curves: list[np.ndarray], most: int, colour: str) -> None:
    """Every curve thin and their median thick; random ones (ink) are dotted."""
    index = np.arange(1, most + 1)
    if colour == FULL:
        for curve in curves:
            ax.plot(np.arange(1, len(curve) + 1), curve, color=colour, lw=0.7, alpha=0.45)
    median = np.median([curve[:most] for curve in curves], axis=0)
    ax.plot(index, median, color=colour, lw=2.6, ls="-" if colour == FULL else (0, (0.2, 1.7)), dash_capstyle="round")


def _mark_energy(ax: Axes, r: int, learned: list[np.ndarray], chance: list[np.ndarray]) -> None:
    """Name both medians where rank r is kept, the learned above its line and the random below."""
    above: dict[str, Any] = {"shift": (-10, 8), "ha": "right"}
    below: dict[str, Any] = {"shift": (9, -7), "va": "top"}
    for name, spectra, colour, side in (("learned", learned, FULL, above), ("random", chance, INK, below)):
        if spectra:
            share = _held(spectra, r)
            ax.plot(r, 100 * share, "o", color=colour, ms=7, mec="white")
            note(ax, f"{name}: {percent(share)}", (r, 100 * share), colour=colour, **side, **BOLD)


@picture("r heldout_loss", settings="base_loss full_loss rank_max")
def truncated_loss(table: Table) -> Figure:
    """Held-out loss when only the top r singular directions of every ΔW survive, between the base and all of ΔW.

    The right axis reads the same points as a share of full fine-tuning's gain. Losses are in nats a byte; a row r = 0 is the
    base itself and is not drawn.
    """
    base, full = table.settings["base_loss"], table.settings["full_loss"]
    rows = sorted((row for row in table.rows if row["r"] > 0), key=lambda row: row["r"])
    ranks, losses = [row["r"] for row in rows], [row["heldout_loss"] for row in rows]
    gains = [(base - loss) / (base - full) for loss in losses]
    enough = next((i for i, gain in enumerate(gains) if gain >= 0.95), len(gains) - 1)
    title = f"Rank {ranks[enough]} of {table.settings['rank_max']} keeps {percent(gains[enough])} of the gain"
    subtitle = "every ΔW of the fine-tuned model is cut to its top r singular directions, and the model is tested again"
    figure = new_figure(9, 4.4, title, subtitle)
    ax = axes_at(figure, 0.85, 0.7, 7.2, 2.85)
    ax.axhline(base, color=FROZEN, lw=2)
    ax.axhline(full, color=FULL, lw=1.4, ls=(0, (4, 2)))
    ax.plot(ranks, losses, color=FULL, lw=2.6, marker="o", ms=6.5, mec="white")
    ax.plot(ranks[enough], losses[enough], "o", color=FULL, ms=11, mec=INK, mew=1.4)
    rank_axis(ax, ranks, "rank r that survives")
    span = base - full
    ax.set_ylabel("held-out loss (nats a byte)")
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
    """A photograph cut to its top r singular directions: what low rank keeps and what it loses, for the eye.

    image is 2-D grey values, error relative; the row with r = None or with the largest r is the original, and the last.
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
    subtitle = f"{height} × {width} grey values; beneath: numbers kept, and relative error"
    figure = new_figure(max(6.0, 0.44 + across * wide + gaps), tall, "The same cut, on a photograph", subtitle)
    for place, (row, image) in enumerate(zip(rows, images, strict=True)):
        line, column = divmod(place, across)
        ax = axes_at(figure, 0.22 + column * (wide + 0.18), tall - 0.85 - (line + 1) * pitch + 0.42, wide, high)
        ax.imshow(image, cmap="gray", vmin=images[-1].min(), vmax=images[-1].max(), aspect="auto")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        name, kept, colour = "original", "all numbers", INK
        if row["error"] and row["r"] is not None:
            name, colour = f"r = {row['r']}", CYAN
            kept = f"{percent(row['share_of_numbers'])} kept, error {percent(row['error'])}"
        ax.set_title(name, color=colour)
        ax.set_xlabel(kept, fontsize=9.5, color=FAINT_INK)
    return figure
