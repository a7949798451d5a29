"""The committed notebooks are what their sources say, executed from top to bottom, and show every picture they draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]*.py"))


def code_cells(source: Path) -> list[dict]:
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@each
def test_the_notebook_is_its_source_executed(source):
    jupytext = pytest.importorskip("jupytext")
    expected = [cell["source"] for cell in jupytext.read(source).cells if cell["cell_type"] == "code"]
    cells = code_cells(source)
    assert ["".join(cell["source"]) for cell in cells] == expected, "run `make notebooks` after editing the .py"
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "not run from top to bottom"


@each
def test_every_picture_that_is_drawn_is_shown(source):
    for cell in code_cells(source):
        text = "".join(cell["source"])
        if text.rstrip().endswith(";"):
            images = [o for o in cell["outputs"] if "image/png" in o.get("data", {})]
            assert len(images) == 1, f"{source.stem}: {len(images)} pictures under\n{text}"


@each
def test_no_output_is_an_error_a_widget_or_a_path_of_some_machine(source):
    text = source.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert '"output_type": "error"' not in text and '"widgets"' not in text
    assert "/home/" not in text and "/tmp/" not in text and "site-packages" not in text
