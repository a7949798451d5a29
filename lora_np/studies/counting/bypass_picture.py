"""The diagram of LoRA: the frozen matrix, and the trained bypass beside it."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, HPacker, TextArea
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path

from ..harness.colours import CYAN_WASH, FAINT_INK, FROZEN, GREY_WASH, INK, LORA, PAPER, for_text
from ..harness.style import axes_at, blank, new_figure, picture

CYAN_TEXT, GREY_TEXT = for_text(LORA), for_text(FROZEN, 5.5)
CENTRED = {"ha": "center", "va": "center"}
SMALL = CENTRED | {"fontsize": 9.5}
WIDE, NARROW = 1.5, 0.4  # heights of an edge with in or out features, and of an edge with r features, in inches
UPPER, MIDDLE, LOWER = 3.5, 2.62, 1.74  # heights of W's path, of x and y, and of the bypass


@picture()
def bypass_diagram() -> Figure:
    """Draw LoRA's bypass: x runs through the frozen W and through the trained A and B, and both results are added.

    Returns
    -------
    matplotlib.figure.Figure
        Frozen parts are grey, and trained parts are cyan. The diagram shows shapes and needs no table.

    Examples
    --------
    >>> [round(float(inches), 1) for inches in bypass_diagram().get_size_inches()]
    [9.0, 5.1]
    """
    subtitle = "W is frozen; B is zero at the start, so y is then the output of the frozen layer"
    figure = new_figure(9, 5.1, "LoRA trains a narrow bypass around W", subtitle)
    ax = blank(axes_at(figure, 0, 0, 9, 5.1, xlim=(0, 9), ylim=(0, 5.1)))

    _vector(ax, 0.72, "$x$", "in features")
    ax.plot([0.86, 1.38], [MIDDLE, MIDDLE], color=INK, lw=2.2, solid_capstyle="butt")
    _flow(ax, FROZEN, (1.38, MIDDLE), (1.38, UPPER), (2.14, UPPER))
    _flow(ax, LORA, (1.38, MIDDLE), (1.38, LOWER), (2.14, LOWER))
    ax.add_patch(Circle((1.38, MIDDLE), 0.055, fc=INK, ec="none", zorder=3))

    _frozen_matrix(ax, 2.2, 5.8)
    _flow(ax, FROZEN, (5.84, UPPER), (7.2, UPPER), (7.2, MIDDLE + 0.24))

    _trapezoid(ax, 2.2, 3.45, WIDE, NARROW, "$A$", "r × in")
    _flow(ax, LORA, (3.5, LOWER), (4.5, LOWER))
    ax.text(3.97, LOWER + 0.12, "r features", ha="center", fontsize=9.5, color=CYAN_TEXT)
    ax.text(4, LOWER - 0.46, "trained", fontweight="bold", color=CYAN_TEXT, **CENTRED)
    ax.text(4, LOWER - 0.7, "r · (in + out) parameters", color=CYAN_TEXT, **SMALL)
    _trapezoid(ax, 4.55, 5.8, NARROW, WIDE, "$B$", "out × r")
    _flow(ax, LORA, (5.85, LOWER), (6.22, LOWER))
    _node(ax, 6.46, LOWER, r"$\frac{\alpha}{r}$", LORA, 17)
    _flow(ax, LORA, (6.7, LOWER), (7.2, LOWER), (7.2, MIDDLE - 0.24))

    _node(ax, 7.2, MIDDLE, "+", INK, 18)
    _flow(ax, INK, (7.43, MIDDLE), (8.06, MIDDLE))
    _vector(ax, 8.26, "$y$", "out features")
    _formula(ax, 4.5, 0.42)
    return figure


def _vector(ax: Axes, x: float, name: str, size: str) -> None:
    """Draw a vector as a vertical bar, with the name above the bar and the vector's length below."""
    ax.add_patch(_rounded(x - 0.1, MIDDLE - WIDE / 2, 0.2, WIDE, fc=INK, ec="none"))
    ax.text(x, MIDDLE + WIDE / 2 + 0.1, name, ha="center", fontsize=20)
    ax.text(x, MIDDLE - WIDE / 2 - 0.1, size, ha="center", va="top", fontsize=9.5, color=FAINT_INK)


def _frozen_matrix(ax: Axes, left: float, right: float) -> None:
    ax.add_patch(_rounded(left, UPPER - WIDE / 2, right - left, WIDE, fc=GREY_WASH, ec=FROZEN, lw=1.6))
    middle = (left + right) / 2
    ax.text(left + 0.45, UPPER + 0.1, "$W$", fontsize=24, **CENTRED)
    ax.text(left + 0.45, UPPER - 0.24, "out × in", color=GREY_TEXT, **SMALL)
    ax.text(middle, UPPER + 0.13, "frozen", fontweight="bold", color=GREY_TEXT, **CENTRED)
    ax.text(middle, UPPER - 0.13, "out · in parameters", color=GREY_TEXT, **SMALL)


def _trapezoid(ax: Axes, left: float, right: float, left_edge: float, right_edge: float, name: str, size: str) -> None:
    """Draw A or B as a trapezoid.

    Its left edge is as tall as the input vector, and its right edge is as tall as the output vector.
    """
    before, after = left_edge / 2, right_edge / 2
    corners = [(left, LOWER - before), (left, LOWER + before), (right, LOWER + after), (right, LOWER - after)]
    ax.add_patch(Polygon(corners, closed=True, fc=CYAN_WASH, ec=LORA, lw=1.8, joinstyle="round"))
    heavy = left + (0.34 if left_edge > right_edge else 0.66) * (right - left)
    ax.text(heavy, LOWER + 0.1, name, fontsize=24, color=CYAN_TEXT, **CENTRED)
    ax.text(heavy, LOWER - 0.2, size, color=CYAN_TEXT, **SMALL)


def _node(ax: Axes, x: float, y: float, sign: str, colour: str, fontsize: float) -> None:
    ax.add_patch(Circle((x, y), 0.22, fc=PAPER, ec=colour, lw=1.8, zorder=3))
    ax.text(x, y, sign, ha="center", va="center_baseline", fontsize=fontsize, color=for_text(colour), zorder=4)


def _flow(ax: Axes, colour: str, *stops: tuple[float, float], bend: float = 0.16) -> None:
    """Draw an arrow through the points `stops`; corners are rounded with radius `bend`."""
    vertices, codes = [stops[0]], [Path.MOVETO]
    for before, corner, after in zip(stops, stops[1:], stops[2:], strict=False):
        vertices += [_towards(corner, before, bend), corner, _towards(corner, after, bend)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, stops[-1]], [*codes, Path.LINETO])
    head, ends = "-|>,head_length=5,head_width=2.6", {"capstyle": "butt", "joinstyle": "miter"}
    ax.add_patch(FancyArrowPatch(path=path, arrowstyle=head, color=colour, lw=2.2, fill=False, **ends))


def _towards(start: tuple[float, float], end: tuple[float, float], distance: float) -> tuple[float, float]:
    length = ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    return tuple(s + distance / length * (e - s) for s, e in zip(start, end, strict=True))


def _rounded(x: float, y: float, width: float, height: float, **look: object) -> FancyBboxPatch:
    return FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.07", **look)


def _formula(ax: Axes, x: float, y: float) -> None:
    """Write y = x Wᵀ + (α/r)(x Aᵀ) Bᵀ; each term has the colour of its path."""
    bypass = r"$\frac{\alpha}{r}\,(x\,A^{\!\top})\,B^{\!\top}$"
    terms = {r"$y \;=\;$": INK, r"$x\,W^{\!\top}$": GREY_TEXT, r"$\;+\;$": INK, bypass: CYAN_TEXT}
    areas = [TextArea(text, textprops={"color": colour, "fontsize": 19}) for text, colour in terms.items()]
    ax.add_artist(AnnotationBbox(HPacker(children=areas, pad=0, sep=0, align="baseline"), (x, y), frameon=False))
