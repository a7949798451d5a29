"""How many numbers must train: what a random subspace of d dimensions gains, of fine-tuning and of learning from nothing."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lora_np.studies.harness.style import (
    EDGE,
    FAINT_INK,
    FULL,
    HALO,
    INK,
    LORA,
    OTHERS,
    axes_at,
    for_text,
    new_figure,
    note,
    percent,
    picture,
    runs_and_time,
    semicolons,
)
from lora_np.studies.harness.table import Table

LOOKS = {"tiny": ("fine-tuning", FULL, "o"), "random": ("from scratch", OTHERS[0], "s")}


@picture("phase base d share", settings="D d90 share runs")
def intrinsic_dimension(table: Table, lora: Table | None = None) -> Figure:
    """The share of full training's gain against d, one line a start, every seed a point; d90 where a line crosses 90 %.

    Table: rows {phase: "seeds", base, projection, d, share}, settings D, d90 (base → d90 or None), share, runs and lora (rank →
    parameters). With the table of "convergence", LoRA of each rank stands beside them: its parameters, its share.
    """
    s = table.settings
    said = [f"{LOOKS[base][0]} {percent(d / s['D'])}" for base, d in s["d90"].items() if d is not None]
    wanted = percent(s["share"])
    figure = new_figure(
        9,
        4.7,
        f"For {wanted} of the gain: {', '.join(said)} of the numbers" if said else f"Nothing tried reaches {wanted}",
        "only d numbers z train, θ = θ₀ + P z with P random; every d at its own best rate, points are seeds\n"
        + semicolons(f"{s['steps']} steps a run", runs_and_time(table)),
    )
    ax = axes_at(figure, 0.85, 0.7, 7.9, 2.9)
    ax.set_xscale("log")
    starts = {base: _curve(ax, table, base) for base in s["d90"]}
    for base, (d, share) in starts.items():
        name, colour, _ = LOOKS[base]
        upper = share == max(start for _, start in starts.values())
        crossed = (
            upper and share < 100 * s["share"] < share + 20
        )  # the line to be reached would run through a label above
        where = {"shift": (0, 9)} if upper and not crossed else {"shift": (9, -5), "va": "top"}
        note(ax, name, (d, share), colour=colour, fontweight="bold", path_effects=HALO, **where)
    if lora is not None:
        _lora(ax, s["lora"], lora)
    ax.axhline(100 * s["share"], color=FAINT_INK, lw=1, ls=(0, (4, 2)))
    note(
        ax,
        f"{percent(s['share'])} of the gain",
        (0, 100 * s["share"]),
        (4, 3),
        INK,
        xycoords=EDGE,
    )
    least = min(row["d"] for row in table.where(phase="seeds", projection="sparse"))
    ax.axvline(s["D"], color=FAINT_INK, lw=1, ls=":")
    note(ax, f"D = {s['D']:,}", (s["D"], 0), (-4, 6), INK, ha="right", path_effects=HALO)
    ax.set(xlim=(0.8 * least, 1.5 * s["D"]), ylim=(0, 109), ylabel="share of full training's gain (%)")
    ax.xaxis.set_major_locator(FixedLocator([10**k for k in range(1, 7) if 0.8 * least < 10**k < 1.5 * s["D"]]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda d, _: f"{d:,.0f}")
    ax.set_xlabel("numbers that train, d")
    return figure


def _curve(ax: Axes, table: Table, base: str) -> tuple[float, float]:
    """One start's line through the means, its seeds as points, and its d90. Returns the line's first point."""
    _, colour, marker = LOOKS[base]
    by_d: dict[int, list[float]] = {}
    for row in table.where(phase="seeds", base=base):
        if row["projection"] == "sparse":
            by_d.setdefault(row["d"], []).append(100 * row["share"])
    dimensions = sorted(by_d)
    means = [statistics.mean(by_d[d]) for d in dimensions]
    ax.plot(dimensions, means, color=colour, lw=2.4, zorder=3)
    points = [(d, share) for d in dimensions for share in by_d[d]]
    ax.plot(*zip(*points, strict=True), marker, color=colour, ms=5, mec="white", mew=0.6, zorder=4)
    if (d90 := table.settings["d90"][base]) is not None:
        level = 100 * table.settings["share"]
        ax.plot([d90, d90], [0, level], color=colour, lw=1, ls=":", zorder=2)
        ax.plot(d90, level, marker, color=colour, ms=10, mec=INK, mew=1.3, zorder=5)
        height = 26 if base == "tiny" else 12
        note(ax, f"d90 = {d90:,}", (d90, height), (-4, 0), colour, ha="right", fontweight="bold", path_effects=HALO)
    return dimensions[0], means[0]


def _lora(ax: Axes, parameters: dict[str, int], measured: Table) -> None:
    """LoRA in all linear layers, by rank: how much it trains and what it gains."""
    points = {}
    for r, count in parameters.items():
        rows = measured.where(phase="seeds", method="lora", r=int(r), target_modules="all-linear")
        if rows:
            points[r] = count, 100 * statistics.mean(row["recovered"] for row in rows)
    if not points:
        return
    ax.plot(*zip(*points.values(), strict=True), "D", color=LORA, ms=5.5, mec="white", mew=0.6, zorder=4)
    for i, (r, point) in enumerate(points.items()):
        text = f"LoRA r = {r}" if i == 0 else r
        ax.annotate(text, point, (4, -5), textcoords="offset points", color=for_text(LORA), fontsize=9, va="top")
