"""Pictures of the compared methods: gain against trained parameters, and learning against forgetting."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..harness.colours import FROZEN, INK, LORA, PAPER
from ..harness.paired import forgotten_when, paired_differences
from ..harness.style import axes_at, log_axis, new_figure, note, picture, spread, thousands
from ..harness.table import Table, groups
from ..harness.words import percent, runs_and_time, semicolons
from .diagrams import COLOURS

Runs = dict[str, list[dict[str, Any]]]  # method → its runs at its best rate, in the order of the table
MARKERS = {  # one per method, because related methods share a colour
    **{"full": "o", "lora": "o", "qlora": "s", "rslora": "D", "dora": "^", "pissa": "v", "lora-fa": "P", "lora+": "X"},
    **{"vera": "*", "prefix": "o", "prefix-mlp": "s", "houlsby": "o", "pfeiffer": "s"},
}


def _look(method: str) -> dict[str, Any]:
    return {"color": COLOURS.get(method, FROZEN), "marker": MARKERS.get(method, "o"), "mec": PAPER, "mew": 0.6}


@picture("method seed trainable recovered", settings="labels")
def quality_against_parameters(table: Table, ranks: Table | None = None) -> Figure:
    """Draw the share of full fine-tuning's held-out gain against the number of trained parameters, one point per method.

    Parameters
    ----------
    table : Table
        A table of the study comparison or comparison_smollm2 with the columns `method`, `seed`, `trainable` and
        `recovered`. Its `settings` contain `labels`, and optionally `runs`. Rows with the phase
        "sweep" are left out.
    ranks : Table, optional
        LoRA at several ranks, drawn as a line, with the columns `r`, `seed`, `trainable` and `recovered`. The setting
        `r` is the rank of the method "lora" in `table`.

    Returns
    -------
    Figure
        The bars are the range of the seeds. Overlapping points are moved apart horizontally.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> quality_against_parameters(Table.load("figures/data/comparison.json")).axes[0].get_ylabel()
    "share of full fine-tuning's gain (%)"
    """
    runs, labels = _by_method(table), table.settings["labels"]
    counts = {method: rows[0]["trainable"] for method, rows in runs.items()}
    figure = new_figure(9, 5.3, _title(runs, labels), _subtitle(table, runs))
    ax = axes_at(figure, 0.85, 0.7, 6.0, 3.65)
    ax.set_xscale("log")
    ax.set_xlim(min(counts.values()) / 1.6, max(counts.values()) * 1.6)
    across, points = _apart(ax, counts), {}
    for method, rows in runs.items():
        shares = 100 * np.array([row["recovered"] for row in rows])
        points[method] = across[method], shares.mean()
        reach = [[shares.mean() - shares.min()], [shares.max() - shares.mean()]]
        look = {"ms": 11 if method in ("lora", "vera") else 8, "zorder": 3.5 if method == "lora" else 3}
        ax.errorbar(*points[method], reach, capsize=3, lw=1.4, **look, **_look(method))
    ax.axhline(100, color=COLOURS["full"], lw=1.4, zorder=1.5)
    if ranks is not None:
        _rank_line(ax, ranks)
    low, high = ax.get_ylim()
    ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
    left, right = ax.get_xlim()
    log_axis(ax.xaxis, [n for power in 10.0 ** np.arange(2, 12) for n in (power, 3 * power) if left <= n <= right])
    thousands(ax.xaxis)
    label = "trained parameters"
    if any(not np.isclose(across[m], n, rtol=1e-3) for m, n in counts.items()):
        label += " (overlapping points are moved apart; the ticks are the true numbers)"
        true = sorted(set(counts.values()))
        ax.plot(true, [0.012] * len(true), "|", ms=9, mew=1.6, color=INK, transform=ax.get_xaxis_transform(), zorder=3)
    ax.set(xlabel=label, ylabel="share of full fine-tuning's gain (%)")
    few = {m: " (one seed)" for m, rows in runs.items() if len(rows) == 1 < _most_seeds(runs)}
    _label_points(ax, points, {m: f"{labels.get(m, m)}  {y:.0f} %{few.get(m, '')}" for m, (_, y) in points.items()})
    return figure


def _apart(ax: Axes, counts: dict[str, int], gap: float = 10) -> dict[str, float]:
    """Return the x of each method's marker: the number of parameters, moved so that markers are `gap` points apart."""
    names = sorted(counts, key=lambda m: counts[m])
    if "lora" in names:
        names.remove("lora")
        equals = [i for i, m in enumerate(names) if counts[m] == counts["lora"]]
        place = equals[len(equals) // 2] if equals else sum(counts[m] < counts["lora"] for m in names)
        names.insert(place, "lora")
    scale = 72 / ax.figure.dpi
    at = np.array([ax.transData.transform((counts[m], 1))[0] for m in names]) * scale
    moved = spread(at, gap) / scale
    return {m: float(ax.transData.inverted().transform((x, 0))[0]) for m, x in zip(names, moved, strict=True)}


def _rank_line(ax: Axes, ranks: Table) -> None:
    """Draw LoRA's mean over the seeds at each rank, with the rank beside the point."""
    points = {}
    for r, rows in groups(ranks.rows, "r").items():
        points[r] = rows[0]["trainable"], 100 * float(np.mean([row["recovered"] for row in rows]))
    ax.plot(*zip(*points.values(), strict=True), color=LORA, lw=1.6, marker=".", ms=7, zorder=2)
    for r, point in points.items():
        if r != ranks.settings.get("r"):  # this rank has LoRA's own point
            name = f"r = {r}" if r == min(points) else f"{r}"
            note(ax, name, point, (-4, 2 if r == max(points) else 5), LORA, ha="right", fontsize=9)


def _label_points(ax: Axes, points: dict[str, tuple[float, float]], labels: dict[str, str]) -> None:
    """Write the labels in a column at the right, and join each label to its point by a dotted line."""
    scale = 72 / ax.figure.dpi
    at = {method: ax.transData.transform(point) * scale for method, point in points.items()}
    (_, floor), (right, ceiling) = ax.get_window_extent().get_points() * scale
    heights = spread(np.array([y for _, y in at.values()]), gap=12.5, low=floor, high=ceiling + 6)
    line = {"arrowstyle": "-", "lw": 0.7, "ls": ":", "shrinkA": 1, "shrinkB": 5, "relpos": (0, 0.5)}
    for (method, (x, y)), height in zip(at.items(), heights, strict=True):
        colour, shift = COLOURS.get(method, FROZEN), (right + 14 - x, height - y)
        look = {"fontsize": 9.5, "va": "center_baseline", "arrowprops": line | {"color": colour}}
        note(ax, labels[method], points[method], shift, colour, **look)


PANELS = {  # full fine-tuning and LoRA are in each panel
    "prefixes, adapters": ("prefix", "prefix-mlp", "houlsby", "pfeiffer"),
    "settings of LoRA": ("qlora", "rslora", "lora-fa", "lora+"),
    "other form or start": ("dora", "pissa", "vera"),
}
DASHES: dict[str, Any] = {  # of methods with one colour in one panel
    **dict.fromkeys(("prefix-mlp", "pfeiffer", "rslora", "pissa"), (0, (4, 1.5))),
    **dict.fromkeys(("lora-fa", "vera"), (0, (1, 1.2))),
    "lora+": (0, (5, 1.2, 1, 1.2)),
}


@picture("method seed steps heldout prose", settings="base_loss base_prose labels")
def methods_learned_and_forgotten(table: Table) -> Figure:
    """Draw training as a path from (0, 0).

    The x axis shows how much code is learned, and the y axis shows how much prose is forgotten, both in nats per byte.

    Parameters
    ----------
    table : Table
        A table of the study comparison with the columns `method`, `seed`, `steps`, `heldout` and `prose`. The table has
        the settings `base_loss`, `base_prose` and `labels`. Rows with the phase "sweep" are left out.

    Returns
    -------
    Figure
        Lines are means over the seeds; the last point has the range of the seeds. Full fine-tuning and LoRA are in each panel.

    Examples
    --------
    >>> from lora_np.studies.harness.table import Table
    >>> methods_learned_and_forgotten(Table.load("figures/data/comparison.json")).axes[0].get_xlabel()
    'code learned (nats per byte)'
    """
    runs = _by_method(table)
    paths = {method: _path(table, rows) for method, rows in runs.items()}
    both: list[str] = [m for m in ("full", "lora") if m in runs]
    panels = {title: [m for m in methods if m in runs] for title, methods in PANELS.items()}
    panels = {title: [*both, *others] for title, others in panels.items() if others} or {"": both}
    subtitle = f"lines: training from the base at (0, 0) to the mark at the end\n{_subtitle(table, runs)}"
    figure = new_figure(9, 5.2, _forgetting(paths), subtitle)
    corners = np.concatenate([path.reshape(-1, 2) for path in paths.values()])
    low, high = corners.min(axis=0), corners.max(axis=0)
    limits = np.stack([low - 0.06 * (high - low), high + 0.06 * (high - low)], axis=1)
    for i, (title, shown) in enumerate(panels.items()):
        left = 0.75 if i == 0 else 3.95 + 2.55 * (i - 1)
        ax = axes_at(
            figure, left, 0.7, 1.68, 3.1, xlim=limits[0], ylim=limits[1], xlabel="code learned (nats per byte)"
        )
        ax.axhline(0, color=FROZEN, lw=2, zorder=1.5)
        ends = {}
        for method in reversed(shown):  # full fine-tuning and LoRA last
            path, look = paths[method], _look(method)
            mean, last = path.mean(axis=0), path[:, -1]
            wide, dashes = 2.4 if method in both else 1.6, DASHES.get(method, "-")
            ax.plot(*mean.T, color=look["color"], ls=dashes, lw=wide, zorder=2.5)
            reach = np.array([mean[-1] - last.min(axis=0), last.max(axis=0) - mean[-1]]).T
            ax.errorbar(*mean[-1], reach[1][:, None], reach[0][:, None], capsize=2, lw=1.2, zorder=3, ms=7, **look)
            if i == 0 or method != "full":  # full fine-tuning is labelled once
                ends[method] = tuple(mean[-1])
        _label_points(ax, ends, {m: table.settings["labels"].get(m, m) for m in ends})
        ax.set_title(title, pad=10)
        ax.set_ylabel("" if i else "prose forgotten (nats per byte)")
        ax.tick_params(labelleft=i == 0)
    return figure


def _forgetting(paths: dict[str, np.ndarray]) -> str:
    """Return the title: how much LoRA and full fine-tuning have forgotten when both have learned equally much."""
    if not {"full", "lora"} <= paths.keys():
        return "How much each method learns of the new text and forgets of the old text"
    (learned, forgotten), (reached, lost) = paths["full"].mean(axis=0).T, paths["lora"].mean(axis=0)[-1]
    alike = forgotten_when(learned, forgotten, reached)
    if alike is None:
        ours, full = f"{reached:.3f} and forgets {lost:.3f}", f"{learned[-1]:.3f} and forgets {forgotten[-1]:.3f}"
        return f"LoRA learns {ours}; full fine-tuning learns {full}"
    return f"After equal learning, LoRA has forgotten {lost:.3f} nats per byte, full fine-tuning {alike:.3f}"


def _path(table: Table, rows: list[dict[str, Any]]) -> np.ndarray:
    """Return how much the loss on code fell and the loss on prose rose: an array of shape (seeds, evaluations, 2)."""
    learned = table.settings["base_loss"] - np.array([row["heldout"] for row in rows])
    return np.stack([learned, np.array([row["prose"] for row in rows]) - table.settings["base_prose"]], axis=-1)


def _by_method(table: Table) -> Runs:
    runs: Runs = {}
    for row in table.rows:
        if row.get("phase") != "sweep":
            runs.setdefault(row["method"], []).append(row)
    return runs


def _most_seeds(runs: Runs) -> int:
    return max(map(len, runs.values()))


def _title(runs: Runs, labels: dict[str, str]) -> str:
    """Return the title: the methods that are not clearly worse than the best method, and the gain that they recover.

    Methods with fewer seeds than the others are not counted.
    """
    runs = {m: rows for m, rows in runs.items() if len(rows) == _most_seeds(runs)}
    shares = {m: [row["recovered"] for row in rows] for m, rows in runs.items() if m != "full"}
    means = {m: float(np.mean(each)) for m, each in shares.items()}
    first = max(means, key=means.__getitem__)
    best, last = means[first], min(means.values())
    if len(means) == 1:
        return f"{labels.get(first, first)} recovers {percent(best)} of full fine-tuning's gain"
    apart = {m: paired_differences(runs[m], runs[first], "recovered") for m in means}
    level = [m for m, differences in apart.items() if min(differences) <= 0 <= max(differences)]
    if len(level) == 1:
        return f"{len(means)} methods recover between {percent(last)} and {percent(best)} of full fine-tuning's gain"
    lowest, names = percent(min(means[m] for m in level)), [labels.get(m, m) for m in level]
    reach = percent(best) if lowest == percent(best) else f"{lowest.removesuffix(' %')} to {percent(best)}"
    few = f"{', '.join(names[:-1])} and {names[-1]}"
    who = few if len(names) < 4 else f"{len(names)} of {len(means)} methods"
    return f"{who} recover {reach} of full fine-tuning's gain"


def _subtitle(table: Table, runs: Runs) -> str:
    """Return the subtitle: the learning rates, the number of seeds, the number of runs and their time."""
    seeds = _most_seeds(runs)
    rates = f"mean and range of {seeds} seeds; each method at its best learning rate" if seeds > 1 else "one seed"
    return semicolons(rates, runs_and_time(table))
