"""What is written in a picture, and where."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text
from mpl_toolkits.mplot3d import proj3d
from mpl_toolkits.mplot3d.art3d import Text3D


def texts(figure: Figure) -> list[tuple[str, np.ndarray]]:
    """Every visible piece of text with its box in pixels ((x0, y0), (x1, y1)), ticks outside the axes left out."""
    renderer = figure.canvas.get_renderer()
    found = []
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.get_tightbbox(renderer)  # places the labels
    hidden = {
        label
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval()) or not ax.axison
    }
    axis_labels_off = {label for ax in figure.axes if not ax.axison for label in (ax.xaxis.label, ax.yaxis.label)}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text not in hidden | axis_labels_off:
            place = text.get_position()
            if isinstance(text, Text3D):  # the view shows it as a plain text at this place
                text.set_position(proj3d.proj_transform(*text.get_position_3d(), text.axes.get_proj())[:2])
            found.append((text.get_text(), Text.get_window_extent(text, renderer).get_points()))
            text.set_position(place)
    return found
