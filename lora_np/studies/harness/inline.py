"""Pictures in Jupyter: two pixels per CSS pixel, so that they are sharp on every screen, and a palette, so that they are small."""

from __future__ import annotations

import base64
import sys

import matplotlib
from matplotlib.figure import Figure

from ...optional import extra
from .png import sharp_and_small


def show_sharp_pictures() -> None:
    """Make Jupyter show figures as sharp PNGs with a palette. Outside Jupyter this does nothing.

    The committed notebooks are executed with the same function: running a notebook again gives the same bytes.
    """
    if "inline" not in matplotlib.get_backend() or "IPython" not in sys.modules:
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Figure, _png)


def _png(figure: Figure) -> tuple[str, dict[str, int]] | None:
    """Return a figure as base64 and its size in CSS pixels, as IPython's formatter for PNG does; None if it is empty."""
    with extra("course", "a picture in Jupyter"):
        from IPython.core.pylabtools import retina_figure

    drawn = retina_figure(figure, base64=False, bbox_inches="tight")
    if drawn is None:
        return None
    png, size = drawn
    return base64.b64encode(sharp_and_small(png)).decode(), size
