"""PNG files with a palette: a picture with flat colours takes a third of the bytes, and looks the same."""

from __future__ import annotations

import io

from ...optional import extra

COLOURS = 256  # the most that a PNG's palette holds


def with_palette(png: bytes) -> bytes:
    """Return the picture with a palette of 256 colours; a picture that has a palette is returned as it is.

    Each pixel gets the nearest colour of the palette (median cut), without dithering: dots would blur letters. Transparency
    is put on white. The same bytes always give the same bytes.
    """
    with extra("course", "a picture"):
        from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        if image.mode == "P":
            return png
        opaque = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
        dpi = image.info.get("dpi")
    buffer = io.BytesIO()
    palette = opaque.quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette.save(buffer, "PNG", optimize=True, **({"dpi": dpi} if dpi else {}))
    return buffer.getvalue()
