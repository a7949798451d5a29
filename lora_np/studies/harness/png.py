"""PNG files with a palette of 256 colours, and their versions for dark pages.

For a picture with flat colours, a palette saves two thirds of the bytes.
"""

from __future__ import annotations

import io

import numpy as np

from ...optional import extra

COLOURS = 256  # the most that a PNG's palette holds
SHARP_BYTES = (
    400_000  # in a notebook, a larger picture, as of a photograph, has half the pixels per side and 128 colours
)


def with_palette(png: bytes, colours: int = COLOURS) -> bytes:
    """Return a picture with a palette of at most `colours` colours. A picture that already has a palette is not changed.

    The palette is chosen by median cut, and each pixel gets the nearest colour. There is no dithering, because its dots
    blur letters. Transparent pixels become white. The same input always gives the same output.
    """
    with extra("course", "a picture"):
        from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        if image.mode == "P":
            return png
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
        dpi = image.info.get("dpi")
    buffer = io.BytesIO()
    palette = opaque.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(buffer, "PNG", optimize=True, **({"dpi": dpi} if dpi else {}))
    return buffer.getvalue()


def darkened(png: bytes) -> bytes:
    """Recolour a PNG for a dark page: white becomes nearly black, and black becomes nearly white.

    The PNG must have a palette. The lightness of each colour of the palette is reversed in OKLab (Ottosson 2020).
    Strong colours keep their hue, and stay light enough to be visible on the dark page.
    """
    with extra("course", "a picture"):
        from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        colours = np.array(image.getpalette(), float).reshape(-1, 3) / 255
        image.putpalette((255 * _reversed_lightness(colours)).round().astype(np.uint8).tobytes())
        buffer = io.BytesIO()
        image.save(buffer, "PNG", optimize=True, dpi=image.info.get("dpi", (72, 72)))
    return buffer.getvalue()


TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
PAGE, LETTERS, STRONG = (
    0.19,
    0.97,
    0.68,
)  # lightness on the dark page: of white, of black, and the least of a strong colour


def _reversed_lightness(rgb: np.ndarray) -> np.ndarray:
    """Return sRGB colours from 0 to 1, shape (n, 3), with their lightness reversed."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness, a, b = (np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T).T
    strength = np.minimum(1, np.hypot(a, b) / 0.12)
    reverse = np.minimum(0.97, LETTERS + (PAGE - LETTERS) * lightness)
    lightness = reverse + strength * (np.maximum(lightness, STRONG) - reverse)
    linear = np.linalg.solve(TO_LMS, (np.linalg.solve(TO_LAB, np.stack([lightness, a, b]))) ** 3).T.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def sharp_and_small(png: bytes) -> bytes:
    """Give a notebook's picture a palette; if its file exceeds `SHARP_BYTES`, also halve its width, height and colours.

    A picture that already has a palette is returned unchanged.
    """
    small = with_palette(png)
    if small == png or len(small) <= SHARP_BYTES:
        return small
    with extra("course", "a picture"):
        from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        half = (image.width // 2, image.height // 2)
        image.convert("RGBA").resize(half, Image.Resampling.LANCZOS).save(buffer, "PNG")
    return with_palette(buffer.getvalue(), COLOURS // 2)
