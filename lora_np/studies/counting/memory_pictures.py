"""The picture of the memory of a training step: its parts, and the GPUs that have enough memory."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle
from matplotlib.text import Annotation

from ..harness.colours import FAINT_INK, FROZEN, FULL, INK, LORA, OTHERS, PAPER, for_text
from ..harness.style import HALO, axes_at, name_axis, new_figure, picture, thousands
from ..harness.table import Table

METHODS = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}
PARTS = {
    "gradients": "gradients",
    "optimizer": "AdamW's m and v",
    "master": "master copy",
}  # parts that exist only for trained parameters
GB, BAR, HEAD = 1e9, 0.74, 0.95  # bytes; the share of a row that its bar fills; the rows that a method's name takes
LEFT, WIDE, BOTTOM, BETWEEN = 1.1, 7.6, 0.62, 1.15  # inches
LOOK: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "va": "center_baseline", "path_effects": HALO}
INSIDE: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 8.5}  # a name in a bar
KEY = [  # the key of the lower panel, from below: text, fill, edge
    ("more activations without checkpointing", PAPER, OTHERS[1]),
    ("activations and temporaries", OTHERS[1], OTHERS[1]),
    ("the adapter, its gradients, m, v, master copy", LORA, LORA),
]
Groups = dict[str, list[dict[str, Any]]]  # method → its rows, the smallest model first


@picture("model method checkpointing weights total", "cards precision batch seq r")
def memory_bill(table: Table) -> Figure:
    """Draw the memory of a training step: one bar per method and model, divided into its parts.

    Parameters
    ----------
    table : Table
        The result of `lora_np.studies.counting.memory.memory_bill`, for at least two models with billions of
        parameters.

    Returns
    -------
    matplotlib.figure.Figure
        The upper panel shows all bars on one scale; the lower panel shows the bars of LoRA and QLoRA on a larger scale.
        Coral parts are trained by full fine-tuning; grey parts are frozen. Cyan parts are the adapter with its
        gradients and optimizer state; green parts are activations and temporaries. White parts with a green edge are
        the extra activations without checkpointing. Vertical lines mark the memory of GPUs.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> len(memory_bill(Table.load("figures/data/memory_bill.json")).axes)
    2
    """
    groups = {m: sorted(table.where(method=m, checkpointing=True), key=lambda row: row["total"]) for m in METHODS}
    groups = {method: rows for method, rows in groups.items() if rows}
    small = {method: rows for method, rows in groups.items() if method != "full"}
    everything, enlarged = (sum(len(rows) + HEAD for rows in of.values()) for of in (groups, small))  # rows of a panel
    above, below = 0.235 * everything, 0.3 * enlarged
    tall = BOTTOM + below + BETWEEN + above + 1.12
    batch, seq, precision, r = (table.settings[key] for key in ("batch", "seq", "precision", "r"))
    step = f"bars: memory of one training step on {batch} × {seq} tokens, with checkpointing; {precision} precision; r = {r}"
    figure = new_figure(9, tall, _message(groups), step)
    whole = axes_at(figure, LEFT, BOTTOM + below + BETWEEN, WIDE, above)
    detail = axes_at(figure, LEFT, BOTTOM, WIDE, below)
    _panel(whole, groups, 1.12 * groups["full"][-1]["total"] / GB)
    unsaved = {(row["method"], row["model"]): row["total"] for row in table.where(checkpointing=False)}
    unsaved = {(method, row["model"]): unsaved[method, row["model"]] for method, rows in small.items() for row in rows}
    _panel(detail, small, 1.2 * max(unsaved.values()) / GB)
    for row in groups["full"]:
        _total(whole, row, row["total"] / GB)
    _parts_of_full(whole, groups["full"][-1])
    _detail(detail, small, unsaved)
    _cards(whole, [max(table.settings["cards"])])
    _cards(detail, table.settings["cards"])
    _enlarged(whole, detail, len(groups["full"]) + HEAD)
    return figure


def _message(groups: Groups) -> str:
    """Return the title: the memory to fine-tune the smallest model fully, and the largest model with an adapter."""
    least, most = groups["full"][0], next(reversed(groups.values()))[-1]
    adapter = f"{METHODS[most['method']]} of a {_size(most)} model needs {_gb(most['total'])} GB"
    return f"Full fine-tuning of a {_size(least)} model needs {_gb(least['total'])} GB; {adapter}"


def _size(row: dict[str, Any]) -> str:
    """Return the size in a model's name: llama-2-7b → 7B."""
    return row["model"].rpartition("-")[2].upper()


def _gb(size: float) -> str:
    return f"{size / GB:,.0f}" if size >= 100 * GB else f"{size / GB:.1f}"


def _panel(ax: Axes, groups: Groups, limit: float) -> None:
    """Draw the bars of each method below the method's name, with the names of the models at the left."""
    place, ticks = 0.0, []
    for method, rows in groups.items():
        head = {"fontweight": "bold", "fontsize": 9.5, "va": "center_baseline", "path_effects": HALO}
        ax.text(0, place + 0.66 * HEAD, METHODS[method], **head)
        place += HEAD
        for row in rows:
            row["place"] = place + 0.5
            _bar(ax, row)
            ticks.append((row["model"], row["place"]))
            place += 1
    name_axis(ax, *zip(*ticks, strict=True))
    ax.set(xlim=(0, limit), ylim=(place, 0))
    ax.set_xlabel("GB (10⁹ bytes)", loc="right")
    thousands(ax.xaxis)
    ax.grid(False)
    ax.spines["left"].set_visible(False)


def _bar(ax: Axes, row: dict[str, Any]) -> None:
    """Draw one bar. Thin white gaps separate the parts that full fine-tuning trains."""
    full = row["method"] == "full"
    trained = [row[part] for part in PARTS]
    pieces = [(row["weights"], FULL if full else FROZEN)]
    pieces += [(size, FULL) for size in trained if size] if full else [(row["adapter"] + sum(trained), LORA)]
    ends = list(accumulate(size / GB for size, _ in pieces))
    pieces.append((row["activations"] + row["temporaries"], OTHERS[1]))
    for (size, colour), start in zip(pieces, [0, *ends], strict=True):
        ax.barh(row["place"], size / GB, BAR, start, color=colour, snap=False)
    if full:
        low, high = row["place"] - BAR / 2, row["place"] + BAR / 2
        ax.vlines(ends[:-1], low, high, color=PAPER, lw=0.9)


def _total(ax: Axes, row: dict[str, Any], after: float) -> Annotation:
    return ax.annotate(f"{_gb(row['total'])} GB", (after, row["place"]), (5, 0), fontweight="bold", **LOOK)


def _parts_of_full(ax: Axes, row: dict[str, Any]) -> None:
    """Write the names of the parts into the largest bar."""
    start = 0.0
    for part, name in {"weights": "weights", **PARTS}.items():
        size = row[part] / GB
        if size:
            ax.text(start + size / 2, row["place"], name, **INSIDE)
        start += size


def _detail(ax: Axes, groups: Groups, unsaved: dict[tuple[str, str], int]) -> None:
    """Write the totals and the cost of activations without checkpointing, and draw the key of the colours."""
    green = for_text(OTHERS[1])
    for method, rows in groups.items():
        for row in rows:
            at, more = row["total"] / GB, (unsaved[method, row["model"]] - row["total"]) / GB
            ax.barh(row["place"], more, BAR, at, fc=PAPER, ec=OTHERS[1], lw=0.9)
            total = _total(ax, row, at + more)
            ax.annotate(f"+ {more:.1f}", (1, 0), (5, 0), xycoords=total, color=green, **LOOK | {"va": "bottom"})
        name = "frozen weights, NF4" if method == "qlora" else "frozen weights"
        ax.text(rows[-1]["weights"] / 2 / GB, rows[-1]["place"], name, **INSIDE)
    times = ax.figure.axes[0].get_xlim()[1] / ax.get_xlim()[1]
    look = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center_baseline"}
    ax.text(1, 0.66 * HEAD, f"the framed part, {times:.1f} times as wide", color=FAINT_INK, fontsize=9, **look)
    limit, apart = ax.get_xlim()[1], min(1, (len(rows) + 0.35) / len(KEY))
    for i, (text, fill, edge) in enumerate(KEY):
        place = rows[-1]["place"] - i * apart
        ax.plot(0.607 * limit, place, "s", ms=9, mfc=fill, mec=edge, mew=0.9)
        ax.text(0.622 * limit, place, text, color=for_text(edge), fontsize=9, va="center_baseline")


def _cards(ax: Axes, cards: list[float]) -> None:
    above = LOOK | {"xycoords": ("data", "axes fraction"), "ha": "center", "va": "bottom"}
    for card in (card for card in cards if card < ax.get_xlim()[1]):
        ax.axvline(card, color=INK, lw=0.9, zorder=0.9)
        ax.annotate(f"{card} GB card", (card, 1), (0, 4), **above)


def _enlarged(whole: Axes, detail: Axes, first: float) -> None:
    """Draw a frame around the part that the lower panel enlarges, and a line from the frame to that panel."""
    limit, last = detail.get_xlim()[1], whole.get_ylim()[0]
    whole.add_patch(Rectangle((0, first), limit, last - first, fc="none", ec=FAINT_INK, lw=0.8, zorder=5))
    joined = {"axesA": whole, "axesB": detail, "color": FAINT_INK, "lw": 0.8}
    whole.figure.add_artist(ConnectionPatch((limit, last), (1, 1), "data", "axes fraction", **joined))
