"""The style of all pictures: type sizes, layout in inches, labels on lines, and saving."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator

from ...files import write_atomically
from .colours import FAINT_INK, HAIRLINE, INK, PAPER, for_text
from .inline import show_sharp_pictures
from .png import darkened, with_palette
from .table import Table

HALO = [withStroke(linewidth=3, foreground=PAPER)]  # path_effects for a label that must cross lines
BOLD: dict[str, Any] = {"fontweight": "bold", "path_effects": HALO}  # the look of a name that must cross lines
DASHED, DOTTED = (0, (4, 3)), (0, (1, 1.2))  # linestyles
EDGE = ("axes fraction", "data")  # xycoords of a note on a horizontal line: 0 is its left end, 1 its right end

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib ships it: the same picture on every machine
    "mathtext.fontset": "stix",
    **dict.fromkeys(("font.size", "axes.labelsize"), 10.5),
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), 9.5),
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), FAINT_INK),
    **dict.fromkeys(("axes.facecolor", "figure.facecolor", "savefig.facecolor"), PAPER),
    **dict.fromkeys(("axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.grid", "axes.axisbelow"), True),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.8),
    "axes.grid.axis": "y",
    "grid.color": HAIRLINE,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.dpi": 110,
    "savefig.dpi": 200,
}


def picture(columns: str = "", settings: str = "") -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Decorate a function that draws a picture, so that the function uses `STYLE` instead of the user's matplotlib
    settings.

    `columns` and `settings` name the columns and the settings that the picture needs in its table, separated by spaces.
    If columns or settings are missing, a ValueError lists the missing names. The figure is drawn once while `STYLE` is
    active, because matplotlib makes tick labels only when it draws.
    """

    def decorate(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @wraps(draw)
        def styled(*args: Any, **kwargs: Any) -> Figure:
            if columns:
                _check(draw.__name__, args[0] if args else kwargs["table"], columns.split(), settings.split())
            plt.draw_if_interactive()  # loads the backend: in the context it would lose "interactive", and Jupyter show nothing
            show_sharp_pictures()
            with plt.style.context(["default", STYLE]):
                figure = draw(*args, **kwargs)
                figure.draw_without_rendering()
            return figure

        return styled

    return decorate


def _check(name: str, table: Table, columns: list[str], settings: list[str]) -> None:
    """Raise ValueError if the table lacks a column or a setting that the picture `name` needs."""
    present = {column for row in table.rows for column in row}
    missing = [f"column {c!r}" for c in columns if c not in present]
    missing += [f"setting {s!r}" for s in settings if s not in table.settings]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}, which the table {table.study!r} ({len(table.rows)} rows) does not have; "
            f"make the table again with: {table.command}"
        )


def save(figure: Figure, folder: str | os.PathLike[str], name: str, dark: bool = False) -> Path:
    """Write a figure as `folder/name.png`, with 200 dots per inch and 256 colours.

    The same figure always gives the same bytes. The file is written to a temporary name and then renamed.

    Parameters
    ----------
    figure : Figure
        The figure to write.
    folder : str or path
        The folder; it is made if it does not exist.
    name : str
        The name of the file without ".png".
    dark : bool
        If True, the picture is recoloured for a dark page.

    Returns
    -------
    Path
        The path of the file.

    Examples
    --------
    >>> import tempfile
    >>> from lora_np.plots import bypass_diagram
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(bypass_diagram(), folder, "bypass").name
    'bypass.png'
    """
    folder, buffer = Path(folder), io.BytesIO()
    with plt.style.context(["default", STYLE]):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    path, png = folder / f"{name}.png", with_palette(buffer.getvalue())
    write_atomically(path, partial(Path.write_bytes, data=darkened(png) if dark else png))
    return path


# ---------------------------------------------------------------------------------------------- layout, in inches


def new_figure(width: float, height: float, title: str = "", subtitle: str = "") -> Figure:
    """Make a figure of `width` × `height` inches with a title (the finding) and a subtitle (marks and data) at the top left."""
    figure = plt.figure(figsize=(width, height))
    figure.text(0.22 / width, 1 - 0.2 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.22 / width, 1 - 0.5 / height, subtitle, color=FAINT_INK, va="top", linespacing=1.35)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any) -> Axes:
    """Add axes whose position and size are given in inches from the lower left corner of the figure."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def blank(ax: Axes) -> Axes:
    """Remove ticks, frame and grid from the axes, and make one unit equally long in both directions."""
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def log_axis(axis: Any, places: Sequence[float], label: str = "", base: float = 10) -> None:
    """Make an axis (`ax.xaxis` or `ax.yaxis`) logarithmic, with one labelled tick at each of `places`."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log", base=base)
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda x, _: f"{x:g}")
    if label:
        axis.set_label_text(label)


def rank_axis(ax: Axes, ranks: Sequence[int], label: str = "rank r") -> None:
    """Make the x axis logarithmic to base 2, with one tick at each rank."""
    log_axis(ax.xaxis, ranks, label, base=2)


def thousands(*axes: Any) -> None:
    """Write the numbers of these axes in full, with commas: 12,288."""
    for axis in axes:
        axis.set_major_formatter(lambda number, _: f"{number:,.0f}")


def name_axis(ax: Axes, names: Sequence[str], places: Sequence[float] | None = None, *, labelled: bool = True) -> None:
    """Write one name per row beside the y axis, without tick marks; with `labelled=False`, leave the names out."""
    ax.set_yticks(range(len(names)) if places is None else places, names if labelled else [""] * len(names))
    ax.tick_params(axis="y", length=0)


# ------------------------------------------------------------------------------------------------- labels on lines


def note(ax: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], colour: str, **look: Any) -> None:
    """Write `text` beside the point `at`, shifted by `shift` typographic points, in a readable shade of `colour`."""
    look = {"color": for_text(colour), "textcoords": "offset points", "annotation_clip": False} | look
    ax.annotate(text, at, shift, **look)


def label_lines(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    *,
    fontsize: float = 9.5,
    reach: float = 16,
    align: float | None = None,
) -> None:
    """Write a label to the right of each line's last point; labels are moved up or down so that none overlap.

    A hairline of length `reach` (typographic points) joins each label to its line. All labels start at the same x,
    which is `align` or, by default, the largest x of all lines. Call this function after the position and the limits of
    the axes are set.
    """
    to_typographic = 72 / ax.figure.dpi
    starts = np.array([ax.transData.transform(point) for point in points]) * to_typographic
    floor, ceiling = ax.get_window_extent().get_points()[:, 1] * to_typographic
    wanted = starts[:, 1] - 1e-6 * starts[:, 0]  # at one height, the line that ends first gets the upper label
    heights = spread(wanted, gap=1.32 * fontsize, low=floor - 4, high=ceiling + 4)
    right = starts[:, 0].max() if align is None else ax.transData.transform((align, 0))[0] * to_typographic
    line = {"arrowstyle": "-", "lw": 0.8, "ls": ":", "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for start, height, label, colour, point in zip(starts, heights, labels, colours, points, strict=True):
        shift, joined = (right - start[0] + reach, height - start[1]), line | {"color": colour}
        note(ax, label, point, shift, colour, fontsize=fontsize, va="center_baseline", arrowprops=joined)


def with_range(
    ax: Axes, values: Mapping[Any, np.ndarray], middle: Callable[[np.ndarray], float] = np.mean, **look: Any
) -> tuple[float, float]:
    """Draw the mean (or another `middle`) of each array in `values` against its key, with a bar for the range.

    Return the point of the largest key.
    """
    means = np.array([middle(v) for v in values.values()])
    reach = [[max(0, m - v.min()), max(0, v.max() - m)] for m, v in zip(means, values.values(), strict=True)]
    look = {"lw": 1.9, "ms": 6.5, "capsize": 3, "mec": PAPER, "mew": 1.0} | look
    ax.errorbar(list(values), means, np.transpose(reach), **look)
    return max(values), float(means[-1])


def spread(wanted: np.ndarray, gap: float, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Return positions that are at least `gap` apart and, in least squares, as near as possible to `wanted`.

    For sorted positions pᵢ, the gaps are large enough if zᵢ = pᵢ − i·gap never decreases. The sequence z that is
    nearest to wantedᵢ − i·gap is an isotonic regression. It is computed by pooling adjacent violators.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    pools: list[list[float]] = []
    for z in np.asarray(wanted, float)[order] - steps:
        pools.append([z])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    placed = np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools]) + steps
    placed = placed - max(0.0, placed[-1] - high)
    placed = placed + max(0.0, low - placed[0])
    result = np.empty_like(placed)
    result[order] = placed
    return result
