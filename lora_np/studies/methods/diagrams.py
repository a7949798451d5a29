"""Where each method changes a Transformer block: one drawing per method, alone or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from ..harness.colours import FAINT_INK, FROZEN, GREY_WASH, INK, METHOD_COLOURS, OTHERS, PAPER, for_text
from ..harness.style import axes_at, blank, new_figure, picture

COLOURS = {
    **METHOD_COLOURS,
    **dict.fromkeys(("qlora", "rslora", "dora", "pissa", "lora-fa", "lora+", "vera"), OTHERS[1]),
    **dict.fromkeys(("prefix", "prefix-mlp"), OTHERS[0]),
    **dict.fromkeys(("houlsby", "pfeiffer"), OTHERS[2]),
}  # the colour of each method in every picture: LoRA's variants share one, prefixes and adapters have their own

STREAM, BRANCH = 0.3, 1.28  # x of the residual stream, and of the middle of the sublayers
WIDE, HIGH, HEAD = 2.2, 4.5, 0.9  # size of a drawing in its own units, and height of the words above it
CENTRE = {"ha": "center", "va": "center"}
Spot = tuple[float, float]


@dataclass(frozen=True)
class Drawing:
    """The words in the drawing of one method, and the parts of the block that the method changes.

    `linears` is the kind of each linear layer: "trained", "lora", "dora", "vera" or "frozen". If `four_bits` is true,
    the base is quantised. If `prefix` is true, trained keys and values enter the attention. `bottlenecks` is the number
    of sublayers that end in an adapter (1: only the MLP).
    """

    title: str
    formula: str
    trained: str
    linears: str = "frozen"
    four_bits: bool = False
    prefix: bool = False
    bottlenecks: int = 0


BA = r"s\,BA"
DRAWINGS = {
    "full": Drawing("full fine-tuning", r"$W + \Delta W$", "every weight", "trained"),
    "lora": Drawing("LoRA", rf"$W + {BA}$", "A and B", "lora"),
    "qlora": Drawing("QLoRA", rf"$\mathrm{{NF4}}(W) + {BA}$", "A and B; W in 4 bits", "lora", four_bits=True),
    "dora": Drawing("DoRA", rf"$\ell \circ \frac{{W + {BA}}}{{\Vert W + {BA} \Vert}}$", "A, B and lengths ℓ", "dora"),
    "vera": Drawing("VeRA", r"$W + \Lambda_b B\, \Lambda_d A$", "two vectors λ; A, B shared", "vera"),
    "prefix": Drawing("prefix tuning", r"$[P_K, K],\; [P_V, V]$", "keys and values P", prefix=True),
    "houlsby": Drawing(
        "Houlsby adapters", r"$y + W_\uparrow\, \sigma(W_\downarrow y)$", "two bottlenecks per block", bottlenecks=2
    ),
    "pfeiffer": Drawing(
        "Pfeiffer adapters", r"$y + W_\uparrow\, \sigma(W_\downarrow y)$", "one bottleneck per block", bottlenecks=1
    ),
}


@picture()
def method_diagrams(methods: Sequence[str] = tuple(DRAWINGS)) -> Figure:
    """Draw where each method changes a Transformer block: grey parts are frozen, and coloured parts are trained.

    Parameters
    ----------
    methods : sequence of str
        Names of methods: "full", "lora", "qlora", "dora", "vera", "prefix", "houlsby", "pfeiffer". The figure needs no table.

    Returns
    -------
    Figure
        One drawing per method, four in a row.

    Raises
    ------
    ValueError
        If a method has no drawing.

    Examples
    --------
    >>> figure = method_diagrams(["full", "lora"])
    >>> len(figure.axes)
    2
    """
    high, rows = HIGH + HEAD, -(-len(methods) // 4)
    subtitle = "grey parts are frozen; coloured parts are trained; the input x flows upward"
    figure = new_figure(
        9, rows * high + 1.05, "The coloured parts show where each method changes a Transformer block", subtitle
    )
    for i, method in enumerate(methods):
        row, column = divmod(i, 4)
        _draw(figure, method, 0.1 + 2.22 * column, 0.1 + high * (rows - 1 - row))
    return figure


@picture()
def method_diagram(method: str) -> Figure:
    """Draw where one method changes a Transformer block.

    Parameters
    ----------
    method : str
        The name of the method, as in `method_diagrams`. The figure needs no table.

    Returns
    -------
    Figure
        One drawing, 25 % larger than the drawings of `method_diagrams`.

    Raises
    ------
    ValueError
        If the method has no drawing.

    Examples
    --------
    >>> len(method_diagram("dora").axes)
    1
    """
    size = 1.25
    figure = new_figure(size * WIDE, size * (HIGH + HEAD))
    _draw(figure, method, 0, 0, size)
    return figure


def _draw(figure: Figure, method: str, left: float, bottom: float, size: float = 1) -> None:
    """Draw the block with the method's parts, and the method's name and formula above it."""
    if method not in DRAWINGS:
        raise ValueError(f"method {method!r} has no drawing; use one of {', '.join(DRAWINGS)}")
    limits = {"xlim": (0, WIDE), "ylim": (0, HIGH + HEAD)}
    ax = blank(axes_at(figure, left, bottom, size * WIDE, size * (HIGH + HEAD), **limits))
    what, colour = DRAWINGS[method], COLOURS[method]
    ax.text(WIDE / 2, HIGH + 0.66, what.title, fontweight="bold", fontsize=11, color=for_text(colour), **CENTRE)
    ax.text(WIDE / 2, HIGH + 0.36, what.formula, fontsize=13, **CENTRE)
    ax.text(WIDE / 2, HIGH + 0.08, what.trained, fontsize=9.5, color=FAINT_INK, **CENTRE)

    _arrow(ax, (STREAM, 0.02), (STREAM, HIGH - 0.1))
    ax.text(STREAM - 0.17, 0.08, "$x$", fontsize=13, **CENTRE)
    attention = {"q": 0.74, "k": BRANCH, "v": 1.82}
    _sublayer(ax, 0.12, method, attention, "softmax(q kᵀ) v", "o", adapter=what.bottlenecks == 2)
    _sublayer(ax, 2.3, method, {"gate": 0.95, "up": 1.61}, "SwiGLU", "down", adapter=what.bottlenecks >= 1)
    if what.prefix:
        _prefix(ax, 0.12 + 0.95, colour)


def _sublayer(ax: Axes, low: float, method: str, ins: dict[str, float], middle: str, out: str, adapter: bool) -> None:
    """Draw a sublayer: norm, input layers, the part without weights, output layer, and the ⊕ that adds the output."""
    what, colour, places = DRAWINGS[method], COLOURS[method], list(ins.values())
    norm, linear, mix, last, plus = low + 0.17, low + 0.5, low + 0.95, low + 1.29, low + 1.98
    ax.add_patch(Circle((STREAM, low), 0.03, fc=INK, ec="none", zorder=3))
    _arrow(ax, (STREAM, low), (BRANCH, low), (BRANCH, norm - 0.08))
    _box(ax, (BRANCH, norm), "norm", 0.7, 0.15, colour if what.linears == "trained" else None, fontsize=9.5)
    for name, x in ins.items():
        _linear(ax, (x, linear), name, 0.34 if len(ins) == 3 else 0.48, what, colour)
        _arrow(ax, (x, norm + 0.08), (x, linear - 0.13), head=False)
        _arrow(ax, (x, linear + 0.11), (x, mix - 0.11), head=False)
    ax.plot([places[0], places[-1]], [norm + 0.08] * 2, color=INK, lw=0.9, zorder=1)
    _box(ax, (BRANCH, mix), middle, 1.46, 0.2, None, fc=PAPER, fontsize=9.5)
    _arrow(ax, (BRANCH, mix + 0.1), (BRANCH, last - 0.12), head=False)
    _linear(ax, (BRANCH, last), out, 0.5, what, colour)
    if adapter:
        _bottleneck(ax, (BRANCH, last + 0.4), colour)
    _arrow(ax, (BRANCH, last + 0.11), (BRANCH, plus), (STREAM + 0.09, plus))
    ax.add_patch(Circle((STREAM, plus), 0.09, fc=PAPER, ec=INK, lw=1.2, zorder=3))
    ax.text(STREAM, plus, "+", ha="center", va="center_baseline", fontsize=9.5, zorder=4)


def _linear(ax: Axes, middle: Spot, name: str, wide: float, what: Drawing, colour: str) -> None:
    """Draw a linear layer. For LoRA and its variants, also draw the bypass beside the layer."""
    x, y = middle
    _box(ax, middle, name, wide, 0.22, colour if what.linears == "trained" else None, hatch=what.four_bits)
    if what.linears not in ("lora", "dora", "vera"):
        return
    left, vera = x + wide / 2 + 0.02, what.linears == "vera"
    _funnels(ax, (left + 0.05, y), (0, 0.12), (0.015, 0.05), GREY_WASH if vera else colour, FROZEN if vera else colour)
    bars = {  # (left, bottom, width, height) of the trained vectors
        "vera": [(left + 0.02, y - 0.016, 0.06, 0.032), (left - 0.005, y + 0.12, 0.11, 0.032)],  # λ_d and λ_b
        "dora": [(x - wide / 2, y + 0.125, wide + 0.12, 0.035)],
    }
    for *corner, across, up in bars.get(what.linears, []):
        ax.add_patch(Rectangle(corner, across, up, fc=colour, ec="none", zorder=4))


def _bottleneck(ax: Axes, middle: Spot, colour: str) -> None:
    """Draw an adapter in the path of a sublayer: a projection down, a projection up, and a skip connection."""
    x, y = middle
    _funnels(ax, middle, (0.02, 0.15), (0.08, 0.26), colour, for_text(colour))
    ax.plot([x, x + 0.4, x + 0.4, x], [y - 0.2, y - 0.2, y + 0.2, y + 0.2], color=INK, lw=0.9, zorder=2)


def _funnels(ax: Axes, middle: Spot, reach: Spot, wide: Spot, fill: str, edge: str) -> None:
    """Draw a trapezoid below `middle` and one above.

    At the distance reach[i] from `middle` the width of a trapezoid is 2·wide[i].
    """
    x, y = middle
    for side in (-1, 1):
        (near, far), (waist, mouth) = (y + side * reach[0], y + side * reach[1]), wide
        corners = [(x - mouth, far), (x + mouth, far), (x + waist, near), (x - waist, near)]
        ax.add_patch(Polygon(corners, closed=True, fc=fill, ec=edge, lw=0.8, zorder=3))


def _prefix(ax: Axes, y: float, colour: str) -> None:
    """Draw trained keys and values that enter the softmax at height y, beside the keys and values of the tokens."""
    for x in (BRANCH, 1.82):
        for i in range(3):
            ax.add_patch(Rectangle((x + 0.05 + 0.085 * i, y - 0.3), 0.085, 0.1, fc=colour, ec=PAPER, lw=0.6, zorder=3))
        ax.plot([x + 0.1775] * 2, [y - 0.2, y - 0.1], color=colour, lw=1.2, zorder=1)


def _box(
    ax: Axes, middle: Spot, name: str, wide: float, high: float, colour: str | None, hatch: bool = False, **look: Any
) -> None:
    """Draw a layer: grey if it is frozen, coloured if it is trained, hatched if it is stored in four bits.

    For a layer without weights, pass the colour `fc`.
    """
    (x, y), shape = middle, "round,pad=0,rounding_size=0.03"
    fill, corner = look.pop("fc", colour or GREY_WASH), (x - wide / 2, y - high / 2)
    ax.add_patch(FancyBboxPatch(corner, wide, high, boxstyle=shape, lw=1, zorder=2, fc=fill, ec=colour or FROZEN))
    if hatch:
        for i in range(1, 8):
            ax.plot([x - wide / 2 + i * wide / 8] * 2, [y - high / 2, y + high / 2], color=FROZEN, lw=0.7, zorder=2)
        look["bbox"] = {"boxstyle": "square,pad=0.1", "fc": GREY_WASH, "ec": "none"}
    ax.text(x, y, name, zorder=3, **CENTRE, **{"fontsize": 9.5} | look)


def _arrow(ax: Axes, *stops: Spot, head: bool = True) -> None:
    """Draw a line through `stops` with an arrowhead at the last stop."""
    ax.plot(*zip(*stops, strict=True), color=INK, lw=0.9, solid_joinstyle="round", zorder=1)
    if head:
        style = "-|>,head_length=0.3,head_width=0.15"
        look = {"arrowstyle": style, "color": INK, "lw": 0.9, "shrinkA": 0, "shrinkB": 0}
        ax.annotate("", stops[-1], stops[-2], arrowprops=look)
