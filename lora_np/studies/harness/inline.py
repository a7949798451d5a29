"""Make pictures in Jupyter sharp on every screen (two pixels per CSS pixel) and their files small (a palette)."""

from __future__ import annotations

import base64
import sys

import matplotlib
from matplotlib.figure import Figure

from ...optional import extra
from .png import sharp_and_small


def show_sharp_pictures() -> None:
    """Make Jupyter show figures as sharp PNGs with a palette. Outside Jupyter this function does nothing.

    The committed notebooks were run with this function. If a notebook is run again, its pictures have the same bytes.
    """
    if "inline" not in matplotlib.get_backend() or "IPython" not in sys.modules:
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, _png)


def _png(figure: Figure) -> tuple[str, dict[str, int]] | None:
    """Return a figure as a PNG in base64 and the figure's size in CSS pixels, or None if the figure is empty."""
    with extra("course", "a picture in Jupyter"):
        from IPython.core.pylabtools import retina_figure

    drawn = retina_figure(figure, base64=False, bbox_inches="tight")
    if drawn is None:
        return None
    png, size = drawn
    return base64.b64encode(sharp_and_small(png)).decode(), size
