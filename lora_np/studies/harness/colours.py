"""The palette: frozen weights are grey, LoRA is cyan, full fine-tuning is coral, other methods are shades of green.

The colours can also be told apart in grey print and by colour-blind readers. tests/studies/test_plots.py checks this.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

FROZEN, GREY_WASH = "#9ca4ad", "#eceef1"  # a wash is a very light shade, for areas
LORA, CYAN_WASH = "#00809c", "#d5eff5"
LORA_LIGHT, LORA_DARK = "#45bdd6", "#003f52"  # the ends of the shades by rank: a higher rank is darker
FULL = "#f4694f"
OTHERS = ("#1f4028", "#52795a", "#9cc0a3")
PAPER, INK, FAINT_INK, HAIRLINE = "#ffffff", "#20262e", "#5b6570", "#e3e6ea"
METHOD_COLOURS = {"full": FULL, "lora": LORA}


def rank_shades(ranks: Sequence[int]) -> dict[int, str]:
    """Return a shade of cyan for each rank, darker for a higher rank; a single rank gets LoRA's own cyan."""
    ordered = sorted(set(ranks))
    if len(ordered) < 2:
        return dict.fromkeys(ordered, LORA)
    shade = shades(LORA_LIGHT, LORA, LORA_DARK)
    return {rank: to_hex(shade(i / (len(ordered) - 1))) for i, rank in enumerate(ordered)}


def shades(*colours: str) -> LinearSegmentedColormap:
    """Return a continuous colour map that passes through `colours` in the given order."""
    return LinearSegmentedColormap.from_list(" to ".join(colours), list(colours))


def signed_colours(colour: str) -> LinearSegmentedColormap:
    """Return a colour map for signed numbers: −1 is nearly black, 0 is white, +1 is `colour`."""
    return shades(INK, PAPER, colour)


def contrast(colour: str, against: str = PAPER) -> float:
    """Return the WCAG 2 contrast ratio of two colours, from 1 (equal luminance) to 21 (black on white)."""
    light, dark = sorted((_luminance(colour), _luminance(against)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def for_text(colour: str, wanted: float = 4.5) -> str:
    """Darken a colour until its contrast with white is at least `wanted`, so that small letters are readable."""
    rgb = np.array(to_rgb(colour))
    darker = (to_hex(rgb * (1 - darkness)) for darkness in np.linspace(0, 1, 101))
    return next((shade for shade in darker if contrast(shade) >= wanted), INK)
