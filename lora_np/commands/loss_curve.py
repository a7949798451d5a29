"""The losses of a run as a curve of text, for a terminal, a pipe or a log file."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT, LABEL = 80, 11, 8  # columns of the whole curve, rows of the curve, columns of a label on the left
STEP, HELDOUT = "•", "O"


def terminal_width() -> int:
    """Return the width of the terminal in columns, at most WIDTH. Without a terminal, return WIDTH."""
    return min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def loss_curve(rows: Sequence[Mapping[str, float]], width: int = WIDTH) -> str:
    """Return a curve of the losses in the rows of a History, or "" if fewer than two steps have a loss.

    If there are more steps than columns, a mark shows the mean of several steps. If a mark of a step and a mark of the
    held-out records have the same place, only the mark of the held-out records is shown.
    """
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    heldout = [(row["step"], row["heldout"]) for row in rows if "heldout" in row]
    if len(losses) < 2:
        return ""
    first, last, columns = rows[0]["step"], losses[-1][0], max(20, width - LABEL - 2)

    def column(step: float) -> int:
        return round((step - first) / (last - first) * (columns - 1))

    steps: dict[int, list[float]] = {}  # column → losses
    for step, loss in losses:
        steps.setdefault(column(step), []).append(loss)
    marks = [(x, sum(found) / len(found), STEP) for x, found in steps.items()]
    marks += [(column(step), loss, HELDOUT) for step, loss in heldout]
    low, high = min(y for _, y, _ in marks), max(y for _, y, _ in marks)
    grid = [[" "] * columns for _ in range(HEIGHT)]
    for x, y, mark in marks:
        grid[round((high - y) / ((high - low) or 1) * (HEIGHT - 1))][x] = mark
    labels = {i: f"{high + i / (HEIGHT - 1) * (low - high):.3f}" for i in (0, HEIGHT // 2, HEIGHT - 1)}
    each = math.ceil(len(losses) / columns)
    legend = f"{STEP} mean of up to {each} steps" if each > 1 else f"{STEP} step"
    lines = [f"loss, nats per token   {legend}" + f"   {HELDOUT} held-out records" * bool(heldout)]
    lines += [f"{labels.get(i, ''):>{LABEL}} │{''.join(row)}".rstrip() for i, row in enumerate(grid)]
    end = f"step {last}"
    return "\n".join([*lines, f"{'':{LABEL}} └{'─' * columns}", f"{'':{LABEL}}  {first:<{columns - len(end)}}{end}"])
