"""A scene in three dimensions: all numbers that full fine-tuning changes, beside the numbers of B and A."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from ..harness.colours import FROZEN, FULL, LORA, for_text
from ..harness.style import HALO, axes_at, new_figure, picture
from ..harness.table import Table

CYAN, CORAL = for_text(LORA), for_text(FULL)
MOST_COLUMNS = 32  # along one side; in a larger matrix one column represents a block of numbers


@picture("r")
def scene_3d(table: Table, elevation: float = 36, azimuth: float = -76) -> Figure:
    """Draw the numbers that full fine-tuning changes and the numbers of B and A as columns in three dimensions.

    Parameters
    ----------
    table : Table
        The result of the study "decomposition", or a table with one row of `d`, `k` and `r`. If the row has only `d`,
        `k` and `r`, all drawn columns have equal heights. If the row has `matrix`, `B` and `A`, the height of a drawn
        column is the mean size of its numbers.
    elevation, azimuth : float
        The direction of view in degrees: the angle above the ground, and the angle around the vertical axis.

    Returns
    -------
    matplotlib.figure.Figure
        Left: all d·k numbers of ΔW (coral). Right: the frozen W (grey) with B at its left edge and A at its back (cyan). With
        `%matplotlib widget` (package ipympl) the mouse turns the scene.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = scene_3d(Table.load("figures/data/decomposition.json"))
    >>> len(figure.axes)
    1
    """
    row = table.rows[0]
    cut = "matrix" in row
    (d, k), r = np.shape(row["matrix"]) if cut else (row["d"], row["k"]), row["r"]
    block = math.ceil(max(d, k) / MOST_COLUMNS)
    numbers = f"{block} × {block} numbers" if block > 1 else "one number"
    subtitle = f"W is {d} × {k}; each column stands for {numbers}"
    if cut:
        title = f"Full fine-tuning changed {d * k:,} numbers; B and A of rank {r} have only {r * (d + k):,}"
        subtitle = f"height of a column: mean size of {numbers}; ΔW, B and A use separate scales"
        whole, trained = "all of ΔW", "the cut ΔW as a product:"
    else:
        title = f"Full fine-tuning changes all {d * k:,} numbers; LoRA at r = {r} changes {r * (d + k):,}"
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
    # One collection for all boxes, because matplotlib sorts by depth only within a collection; in an SVG it is one image.
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
    ax.get_tightbbox = lambda *_, **__: (
        figure.bbox
    )  # a notebook trims the picture to this box; the square axes are larger than the figure
    corners = [(x, y, z) for x in (0, reach[0]) for y in (0, reach[1]) for z in (0, lift)]
    _fill(ax, np.array(corners), (0.35, 0.62, 8.3, 3.3))
    return figure


def _fill(ax: Any, points: np.ndarray, box: tuple[float, float, float, float]) -> None:
    """Move and scale the square axes so that the projected `points` fill `box` (in inches)."""
    ax.apply_aspect()
    flat = np.column_stack(proj3d.proj_transform(*points.T, ax.get_proj())[:2])
    shares = ax.transAxes.inverted().transform(ax.transData.transform(flat))
    low, high = shares.min(axis=0), shares.max(axis=0)
    side = min(np.array(box[2:]) / (high - low))
    corner = np.array(box[:2]) + np.array(box[2:]) / 2 - side * (low + high) / 2
    across, up = ax.figure.get_size_inches()
    ax.set_position((corner[0] / across, corner[1] / up, side / across, side / up))


def _heights(values: Any, rows: int, columns: int) -> np.ndarray:
    """Return the heights of the drawn columns: the mean size of a column's numbers, divided by the largest mean size.

    If `values` is None, all heights are 1.
    """
    if values is None:
        return np.ones((rows, columns))
    sizes = np.abs(np.asarray(values, float))
    means = [[part.mean() for part in np.array_split(band, columns, axis=1)] for band in np.array_split(sizes, rows)]
    return np.array(means) / (np.max(means) or 1.0)


def _columns(
    corner: tuple[float, float], size: tuple[float, float], heights: np.ndarray, colour: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the faces of boxes on a grid with row 0 at the back, and the colours of the faces.

    The faces have the shape (n, 4, 3): each face has 4 corners with the coordinates x, y and z.
    """
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
