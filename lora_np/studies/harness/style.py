"""One palette with a meaning, one type size, one way to save: what every picture of this package shares.

Frozen weights are grey, LoRA is cyan, full fine-tuning is coral, other methods come from one muted green family. The
colours keep apart in grey print and for red- and green-blind readers (tests/studies/test_plots.py measures it), and every
picture has a paper of its own, so that a dark page shows it as a card and a light page shows no border at all.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, NullLocator

from lora_np.studies.harness.png import with_palette
from lora_np.studies.harness.table import Table

RUN = ("method", "quant_type", "r", "target_modules", "lr", "seed")  # what tells one training run from another
FROZEN = "#9ca4ad"
LORA = "#00809c"
FULL = "#f4694f"
OTHERS = ("#1f4028", "#52795a", "#9cc0a3")
PAPER = "#ffffff"
INK = "#20262e"
FAINT_INK = "#5b6570"
HAIRLINE = "#e3e6ea"

HALO = [withStroke(linewidth=3, foreground=PAPER)]  # path_effects for a label that must cross lines
EDGE = ("axes fraction", "data")  # xycoords of a note on a horizontal line: 0 is its left end, 1 its right end
LORA_LIGHT, LORA_DARK = "#45bdd6", "#003f52"  # the ends of the shades by rank: a higher rank is darker

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib ships it: the same picture on every machine
    "font.size": 10.5,
    "mathtext.fontset": "stix",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": FAINT_INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.facecolor": PAPER,
    "grid.color": HAIRLINE,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT_INK,
    "ytick.color": FAINT_INK,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": PAPER,
    "figure.dpi": 110,
    "savefig.facecolor": PAPER,
    "savefig.dpi": 200,
}


def picture(columns: str = "", settings: str = "") -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Decorate a picture function: it draws under `STYLE`, whatever the reader's own matplotlib settings are.

    `columns` and `settings` are the names (with spaces between) that the picture reads from its table; a table without
    them is a ValueError that says so. The figure is laid out once before the style ends, because matplotlib makes tick
    labels only when it draws.
    """

    def decorate(draw: Callable[..., Figure]) -> Callable[..., Figure]:
        @wraps(draw)
        def styled(*args: Any, **kwargs: Any) -> Figure:
            if columns:
                _check(draw.__name__, args[0] if args else kwargs["table"], columns.split(), settings.split())
            plt.draw_if_interactive()  # loads the backend: in the context it would lose "interactive", and Jupyter show nothing
            with plt.style.context(["default", STYLE]):
                figure = draw(*args, **kwargs)
                figure.draw_without_rendering()
            return figure

        return styled

    return decorate


def _check(name: str, table: Table, columns: list[str], settings: list[str]) -> None:
    """Raise ValueError where the table lacks rows, a column or a setting that the picture `name` draws."""
    present = {column for row in table.rows for column in row}
    missing = [f"column {c!r}" for c in columns if c not in present]
    missing += [f"setting {s!r}" for s in settings if s not in table.settings]
    if missing:
        raise ValueError(
            f"{name} needs {', '.join(missing)}, which the table {table.study!r} "
            f"({len(table.rows)} rows) does not have; "
            f"make the table again with: {table.command}"
        )


def save(figure: Figure, folder: str | os.PathLike[str], name: str) -> Path:
    """Write `folder/name.png`, 200 dots an inch and 256 colours. The same figure always gives the same bytes.

    The file is written under a temporary name and renamed. Returns its path.
    """
    folder, buffer = Path(folder), io.BytesIO()
    folder.mkdir(parents=True, exist_ok=True)
    with plt.style.context(["default", STYLE]):
        figure.savefig(buffer, format="png", metadata={"Software": None})
    path, unfinished = folder / f"{name}.png", folder / f".{name}.png.tmp"
    unfinished.write_bytes(with_palette(buffer.getvalue()))
    os.replace(unfinished, path)
    return path


# ---------------------------------------------------------------------------------------------- layout, in inches


def new_figure(width: float, height: float, title: str = "", subtitle: str = "") -> Figure:
    """A figure of `width` × `height` inches with its message at the top left: what to see, then how it was measured."""
    figure = plt.figure(figsize=(width, height))
    figure.text(0.22 / width, 1 - 0.2 / height, title, fontsize=13, fontweight="bold", va="top")
    figure.text(0.22 / width, 1 - 0.5 / height, subtitle, color=FAINT_INK, va="top", linespacing=1.35)
    return figure


def axes_at(figure: Figure, left: float, bottom: float, width: float, height: float, **options: Any) -> Axes:
    """Axes placed in inches from the figure's lower left corner."""
    across, up = figure.get_size_inches()
    return figure.add_axes((left / across, bottom / up, width / across, height / up), **options)


def blank(ax: Axes) -> Axes:
    """Leave only what is drawn: no ticks, frame or grid, and one unit as long across as up."""
    ax.set_aspect("equal")
    ax.set_axis_off()
    return ax


def rank_axis(ax: Axes, ranks: Sequence[int], label: str = "rank r") -> None:
    """A base-2 logarithmic x axis with one tick at each rank that was measured."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_locator(FixedLocator(list(ranks)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda rank, _: f"{rank:g}")
    ax.set_xlabel(label)


# --------------------------------------------------------------------------------------------- colours and numbers


def rank_shades(ranks: Sequence[int]) -> dict[int, str]:
    """Cyan for each rank: the lowest the lightest, the highest the darkest; one rank alone is plain LoRA cyan."""
    ordered = sorted(set(ranks))
    if len(ordered) < 2:
        return dict.fromkeys(ordered, LORA)
    shades = LinearSegmentedColormap.from_list("ranks", [LORA_LIGHT, LORA, LORA_DARK])
    return {rank: to_hex(shades(i / (len(ordered) - 1))) for i, rank in enumerate(ordered)}


def signed_colours(colour: str) -> LinearSegmentedColormap:
    """A map for signed numbers: −1 is ink, 0 is paper, +1 is `colour`, so that a matrix keeps its owner's colour."""
    return LinearSegmentedColormap.from_list(f"signed {colour}", [INK, PAPER, colour])


def contrast(colour: str, against: str = PAPER) -> float:
    """WCAG 2 contrast ratio of two colours, from 1 (the same luminance) to 21 (black on white)."""
    light, dark = sorted((_luminance(colour), _luminance(against)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def for_text(colour: str, wanted: float = 4.5) -> str:
    """The same hue, darkened until small letters in it can be read on paper (contrast of `wanted` or more)."""
    rgb = np.array(to_rgb(colour))
    for darkness in np.linspace(0, 1, 101):
        darker = to_hex(rgb * (1 - darkness))
        if contrast(darker) >= wanted:
            return darker
    return INK


def percent(share: float) -> str:
    """A share as a reader says it: 0.0078125 → '0.78 %', 0.954 → '95 %', 1 → '100 %'."""
    value = 100 * share
    digits = 0 if value == 0 else min(3, max(0, 1 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f} %".replace("-", "−")


def semicolons(*parts: str) -> str:
    """The parts of a picture's second line that are not empty, a semicolon between two."""
    return "; ".join(part for part in parts if part)


def runs_and_time(table: Table, rows: Sequence[dict[str, Any]] | None = None) -> str:
    """What a table took: "90 runs, 37 minutes", which would be those of one core or machine; "" where it does not say.

    The runs are settings["runs"], or else the different ones among its rows (or among `rows`, where others are not its own).
    """
    if not table.seconds:
        return ""
    different = {tuple(str(row.get(key)) for key in RUN) for row in (table.rows if rows is None else rows)}
    count = table.settings.get("runs", len(different))
    time = f"{table.seconds / 60:,.0f} minutes" if table.seconds >= 90 else f"{table.seconds:.0f} s"
    return f"{count} run{'s' if count > 1 else ''}, {time}"


def short_count(number: float) -> str:
    """A count in three digits: 6,738,415,616 → '6.74 B', 294,912 → '295 k'."""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            value = number / size
            return f"{value:.{2 - int(math.log10(value))}f}{unit}"
    return f"{number:g}"


# ------------------------------------------------------------------------------------------------- labels on lines


def note(ax: Axes, text: str, at: tuple[float, float], shift: tuple[float, float], colour: str, **look: Any) -> None:
    """Write `text` beside the point `at`, moved by `shift` typographic points, in a readable shade of `colour`."""
    look = {"color": for_text(colour), "textcoords": "offset points", "annotation_clip": False} | look
    ax.annotate(text, at, shift, **look)


def label_lines(
    ax: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    colours: Sequence[str],
    fontsize: float = 9.5,
    reach: float = 16,
    align: float | None = None,
) -> None:
    """Write each label to the right of its line's last point, moved up or down just enough that none overlaps.

    A hairline of length `reach` (typographic points) joins a label to its line. All labels start at the same x, `align`
    (by default the last x of all lines). Call it after the axes have their place and limits.
    """
    to_typographic = 72 / ax.figure.dpi
    starts = np.array([ax.transData.transform(point) for point in points]) * to_typographic
    floor, ceiling = ax.get_window_extent().get_points()[:, 1] * to_typographic
    wanted = starts[:, 1] - 1e-6 * starts[:, 0]  # at one height, the line that ends first gets the upper label
    heights = spread(wanted, gap=1.32 * fontsize, low=floor - 4, high=ceiling + 4)
    right = starts[:, 0].max() if align is None else ax.transData.transform((align, 0))[0] * to_typographic
    for start, height, label, colour, point in zip(starts, heights, labels, colours, points, strict=True):
        across, up = right - start[0] + reach, height - start[1]
        ax.annotate(
            label,
            point,
            xytext=(across, up),
            textcoords="offset points",
            color=for_text(colour),
            fontsize=fontsize,
            va="center_baseline",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.8,
                "ls": ":",
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def spread(wanted: np.ndarray, gap: float, low: float = -np.inf, high: float = np.inf) -> np.ndarray:
    """Positions at least `gap` apart, in the order of `wanted` and as near to it as least squares allows.

    With zᵢ = wantedᵢ − i·gap (sorted) the condition becomes "z never falls", which pooling adjacent violators solves.
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
