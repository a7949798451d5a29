"""The palette and what each colour means: frozen weights are grey, LoRA is cyan, full fine-tuning is coral.

Other methods come from one muted green family. The colours keep apart in grey print and for red- and green-blind readers
(tests/studies/test_plots.py measures it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex, to_rgb

FROZEN, GREY_WASH = "#9ca4ad", "#eceef1"  # a wash is its colour, thinned with paper
LORA, CYAN_WASH = "#00809c", "#d5eff5"
LORA_LIGHT, LORA_DARK = "#45bdd6", "#003f52"  # the ends of the shades by rank: a higher rank is darker
FULL = "#f4694f"
OTHERS = ("#1f4028", "#52795a", "#9cc0a3")
PAPER, INK, FAINT_INK, HAIRLINE = "#ffffff", "#20262e", "#5b6570", "#e3e6ea"
METHOD_COLOURS = {"full": FULL, "lora": LORA}


def rank_shades(ranks: Sequence[int]) -> dict[int, str]:
    """Cyan for each rank: the lowest the lightest, the highest the darkest; one rank alone is plain LoRA cyan."""
    ordered = sorted(set(ranks))
    if len(ordered) < 2:
        return dict.fromkeys(ordered, LORA)
    shade = shades(LORA_LIGHT, LORA, LORA_DARK)
    return {rank: to_hex(shade(i / (len(ordered) - 1))) for i, rank in enumerate(ordered)}


def shades(*colours: str) -> LinearSegmentedColormap:
    """A map of numbers to colours: from the first of `colours` over the others to the last."""
    return LinearSegmentedColormap.from_list(" to ".join(colours), list(colours))


def signed_colours(colour: str) -> LinearSegmentedColormap:
    """A map for signed numbers: −1 is ink, 0 is paper, +1 is `colour`, so that a matrix keeps its owner's colour."""
    return shades(INK, PAPER, colour)


def contrast(colour: str, against: str = PAPER) -> float:
    """WCAG 2 contrast ratio of two colours, from 1 (the same luminance) to 21 (black on white)."""
    light, dark = sorted((_luminance(colour), _luminance(against)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def for_text(colour: str, wanted: float = 4.5) -> str:
    """The same hue, darkened until small letters in it can be read on paper (contrast of `wanted` or more)."""
    rgb = np.array(to_rgb(colour))
    darker = (to_hex(rgb * (1 - darkness)) for darkness in np.linspace(0, 1, 101))
    return next((shade for shade in darker if contrast(shade) >= wanted), INK)
