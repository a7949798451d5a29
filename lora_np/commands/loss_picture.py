"""The losses of a run as a picture. This file needs matplotlib, so the file is imported only to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..studies.harness.colours import INK, LORA, LORA_LIGHT, PAPER
from ..studies.harness.style import axes_at, label_lines, new_figure, picture, plt, save


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the losses in the rows of a History as a .png file."""
    figure = _figure(rows)
    save(figure, path.parent, path.stem)
    plt.close(figure)


@picture()
def _figure(rows: Sequence[Mapping[str, float]]) -> Any:
    steps, losses = (np.array([row[name] for row in rows if "loss" in row]) for name in ("step", "loss"))
    heldout = [(row["step"], row["heldout"]) for row in rows if "heldout" in row]
    window = max(1, len(losses) // 20)
    kernel = np.ones(window)
    mean = np.convolve(losses, kernel)[: len(losses)] / np.convolve(np.ones(len(losses)), kernel)[: len(losses)]
    marks = (
        f"thick line: mean of the last {window} steps; thin line: each step" if window > 1 else "line: training steps"
    )
    shown = heldout or list(zip(steps, losses, strict=True))
    what = "Held-out loss" if heldout else "Training loss"
    title = f"{what}: {shown[0][1]:.3f} → {shown[-1][1]:.3f} nats per token"
    figure = new_figure(7.5, 4.2, title, f"{marks}{'; dots: held-out records' if heldout else ''}")
    ax = axes_at(figure, 0.75, 0.6, 5.5, 2.75)
    if window > 1:
        ax.plot(steps, losses, color=LORA_LIGHT, lw=0.6)
    ax.plot(steps, mean, color=LORA)
    if heldout:
        ax.plot(*zip(*heldout, strict=True), color=INK, marker="o", mec=PAPER, ms=7, lw=1.2)
    ax.set(
        xlabel="training step", ylabel="loss (nats per token)", xlim=ax.get_xlim(), ylim=ax.get_ylim()
    )  # the labels need these limits
    ax.xaxis.get_major_locator().set_params(integer=True)
    ends = [(steps[-1], mean[-1]), *heldout[-1:]]
    label_lines(ax, ends, ["training", "held out"][: len(ends)], [LORA, INK][: len(ends)])
    return figure
