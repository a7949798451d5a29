"""The picture of the intrinsic dimension: the gain in random subspaces of d dimensions, in fine-tuning and from scratch."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FAINT_INK, FULL, INK, LORA, OTHERS, for_text
from ..harness.style import BOLD, EDGE, HALO, axes_at, log_axis, new_figure, note, picture, thousands
from ..harness.table import Table, groups, mean
from ..harness.words import percent, runs_and_time, semicolons

LOOKS = {"tiny": ("fine-tuning", FULL, "o"), "random": ("from scratch", OTHERS[0], "s")}
DOT = {"mec": "white", "mew": 0.6, "zorder": 4}


@picture("phase base d share", settings="D d90 share runs")
def intrinsic_dimension(table: Table, lora: Table | None = None) -> Figure:
    """Draw the share of full training's gain against the number d of trained dimensions, and d90.

    Parameters
    ----------
    table : Table
        The result of the study "intrinsic_dimension".
    lora : Table, optional
        The result of the study "convergence". LoRA of each rank is drawn as a diamond at its number of parameters.

    Returns
    -------
    matplotlib.figure.Figure
        One line per start: fine-tuning and training from scratch. Each small point is one seed; each large mark is d90.
        Triangles without a fill are the control, a dense subspace; each triangle is one seed.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> figure = intrinsic_dimension(Table.load("figures/data/intrinsic_dimension.json"))
    >>> figure.axes[0].get_xlabel()
    'trained numbers d'
    """
    s = table.settings
    D, level, wanted = s["D"], 100 * s["share"], percent(s["share"])
    found = {base: percent(d / D) for base, d in s["d90"].items() if d is not None}
    names = {"tiny": "fine-tuning", "random": "training from scratch"}
    shares = [f"{names[base]} needs {share}" for base, share in found.items()]
    subtitle = (
        f"needed: for {wanted} of the gain; points and lines: seeds and their mean, each d at its best learning rate"
    )
    trained = semicolons(
        "training changes only the d numbers z in θ = θ₀ + P z, where P is random", runs_and_time(table)
    )
    title = (
        f"Of all dimensions, {', and '.join(shares)}" if shares else f"No d that was tried reaches {wanted} of the gain"
    )
    figure = new_figure(9, 4.7, title, f"{subtitle}\n{trained}")
    ax = axes_at(figure, 0.85, 0.7, 7.9, 2.9, xscale="log")
    starts = {base: _curve(ax, table, base) for base in s["d90"]}
    for base, (d, share) in starts.items():
        name, colour, _ = LOOKS[base]
        upper = share == max(start for _, start in starts.values())
        crossed = upper and share < level < share + 20  # the 90 % line would run through a label above the curve
        place: dict[str, Any] = {"shift": (0, 9)} if upper and not crossed else {"shift": (2, -8), "va": "top"}
        note(ax, name, (d, share), colour=colour, **BOLD, **place)
    if lora is not None:
        _lora(ax, s["lora"], lora)
    if dense := table.where(phase="seeds", projection="dense"):
        _, colour, _ = LOOKS[dense[0]["base"]]
        points = [row["d"] for row in dense], [100 * row["share"] for row in dense]
        ax.plot(*points, "^", mfc="none", mec=colour, ms=8, mew=1.3, zorder=5)
        note(ax, "dense P", (points[0][0], min(points[1])), (9, -3), colour)
    ax.axhline(level, color=FAINT_INK, lw=1, ls=(0, (4, 2)))
    note(ax, f"{wanted} of the gain", (0, level), (4, 3), INK, xycoords=EDGE)
    ax.axvline(D, color=FAINT_INK, lw=1, ls=":")
    note(ax, f"D = {D:,}", (D, 0), (-4, 6), INK, ha="right", path_effects=HALO)
    low, high = 0.7 * min(row["d"] for row in table.where(phase="seeds", projection="sparse")), 1.5 * D
    log_axis(ax.xaxis, [10**k for k in range(1, 7) if low < 10**k < high], "trained numbers d")
    thousands(ax.xaxis)
    ax.set(xlim=(low, high), ylim=(0, 109), ylabel="share of full training's gain (%)")
    return figure


def _curve(ax: Axes, table: Table, base: str) -> tuple[float, float]:
    """Draw one start: a line through the means, a point per seed, and d90. Return the first point except the control."""
    _, colour, marker = LOOKS[base]
    rows = table.where(phase="seeds", base=base, projection="sparse")
    means = {d: 100 * mean(seeds, "share") for d, seeds in groups(rows, "d").items()}
    ax.plot(list(means), list(means.values()), color=colour, lw=2.4, zorder=3)
    rows = sorted(rows, key=lambda row: row["d"])
    ax.plot([row["d"] for row in rows], [100 * row["share"] for row in rows], marker, color=colour, ms=5, **DOT)
    if (d90 := table.settings["d90"][base]) is not None:
        level = 100 * table.settings["share"]
        ax.plot([d90, d90], [0, level], color=colour, lw=1, ls=":", zorder=2)
        ax.plot(d90, level, marker, color=colour, ms=10, mec=INK, mew=1.3, zorder=5)
        note(ax, f"d90 = {d90:,}", (d90, 26 if base == "tiny" else 12), (-4, 0), colour, ha="right", **BOLD)
    return next(point for point in means.items() if point[0] != table.settings.get("control"))


def _lora(ax: Axes, parameters: dict[str, int], measured: Table) -> None:
    """Draw LoRA in all linear layers: its share of the gain against its trained parameters, for each rank."""
    runs = groups(measured.where(phase="seeds", method="lora", target_modules="all-linear"), "r")
    points = {r: (count, 100 * mean(runs[int(r)], "recovered")) for r, count in parameters.items() if int(r) in runs}
    if points:
        ax.plot(*zip(*points.values(), strict=True), "D", color=LORA, ms=5.5, **DOT)
    for i, (r, point) in enumerate(points.items()):
        text = r if i else f"LoRA r = {r}"
        ax.annotate(text, point, (4, -5), textcoords="offset points", color=for_text(LORA), fontsize=9, va="top")
