"""A clone stays small: one format per picture, PNG with a palette, and folders under a few megabytes."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest

from lora_np.studies.harness.png import with_palette

ROOT = Path(__file__).parents[2]
MEGABYTES = {"figures": 6, "notebooks": 6, "lora_np": 8}
PICTURES = sorted((ROOT / "figures").glob("*.png"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def files(folder: str) -> list[Path]:
    """The files of a folder, without what running Python, Jupyter or a quick study leaves there."""
    made = {"__pycache__", ".ipynb_checkpoints", "quick"}
    return [path for path in (ROOT / folder).rglob("*") if path.is_file() and not made & set(path.parts)]


@pytest.mark.parametrize("folder", MEGABYTES)
def test_a_folder_stays_under_its_limit(folder):
    size = sum(path.stat().st_size for path in files(folder))
    assert size < MEGABYTES[folder] * 1e6, f"{folder}/ takes {size / 1e6:.1f} MB; expected under {MEGABYTES[folder]} MB"


def test_a_picture_has_one_format():
    others = sorted(path.name for path in files("figures") if path.suffix not in (".png", ".json"))
    assert not others, f"{others}: a picture is a .png, and plots.save writes it"


def has_palette(png: bytes) -> bool:
    """Whether byte 25, the colour type of the header, says that pixels are indices into a palette."""
    return png[:8] == b"\x89PNG\r\n\x1a\n" and png[25] == 3


def test_every_committed_picture_has_a_palette():
    others = [path.name for path in PICTURES if not has_palette(path.read_bytes())]
    assert len(PICTURES) > 30 and not others, f"{others} were not written by plots.save"


def pictures(notebook: Path) -> list[bytes]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
    return [base64.b64decode(each["image/png"]) for each in data if "image/png" in each]


def test_every_picture_of_a_notebook_has_a_palette():
    found = {path.name: pictures(path) for path in NOTEBOOKS}
    others = [name for name, pngs in found.items() if not all(map(has_palette, pngs))]
    assert any(found.values()) and not others, f"{others}: run `make notebooks`, which makes the pictures smaller"


@pytest.fixture
def picture() -> bytes:
    """A grey ramp of 256 shades, two flat colours and a transparent corner."""
    Image = pytest.importorskip("PIL.Image")
    x = np.full((256, 512, 4), 255, np.uint8)
    x[:, :256, :3] = np.arange(256)[:, None]
    x[:128, 256:] = (0, 128, 156, 255)
    x[128:, 256:] = (244, 105, 79, 255)
    x[:8, -8:, 3] = 0
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG", dpi=(200, 200))
    return buffer.getvalue()


def test_a_palette_keeps_flat_colours_size_and_resolution(picture):
    Image = pytest.importorskip("PIL.Image")
    before, after = (Image.open(io.BytesIO(png)) for png in (picture, with_palette(picture)))
    assert has_palette(with_palette(picture)) and after.size == before.size and after.info["dpi"] == before.info["dpi"]
    then, now = (np.asarray(image.convert("RGB")).astype(int) for image in (before, after))
    assert np.abs(now - then)[:, :256].max() <= 4, (
        "a ramp of grey has 256 shades, two of which are merged for the colours"
    )
    assert np.abs(now - then)[10:, 256:].max() <= 1, "the flat colours are the palette's own"
    assert (now[:8, -8:] == 255).all(), "what was transparent is white"


def test_a_palette_is_made_once_and_always_the_same(picture):
    once = with_palette(picture)
    assert with_palette(once) == once and with_palette(picture) == once
