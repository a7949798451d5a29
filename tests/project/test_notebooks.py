"""The committed notebooks are their sources, executed; opening them changes nothing; copies and the teachers' key are complete."""

from __future__ import annotations

import ast
import base64
import json
import re
import shutil
from pathlib import Path

import pytest

from lora_np.__main__ import main
from lora_np.exercises import course
from lora_np.report.notebooks import jupyter_metadata
from lora_np.studies.harness.png import SHARP_BYTES

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


# ---------------------------------------------------------------------------------------- opening them changes nothing


NOTEBOOKS = sorted(FOLDER.rglob("[0-9]*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_line_of_code_and_output_fits_the_window(path):
    """A laptop's window shows 95 characters. Outputs that are shown as HTML or Markdown wrap by themselves."""
    lines = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            lines += "".join(cell["source"]).splitlines()
            for output in cell["outputs"]:
                data = output.get("data", {})
                wraps = data.keys() & {"text/html", "text/markdown", "image/png"}
                lines += "".join(output.get("text", [] if wraps else data.get("text/plain", []))).splitlines()
    long = [line for line in lines if len(line) > 95]
    assert not long, "longer than 95 characters:\n" + "\n".join(long)


def without_version(text: str) -> str:
    """Return the text without the Python version, which JupyterLab replaces by its own."""
    return re.sub(r'("pygments_lexer": "ipython3",\n +"version": )"[\d.]+"', r"\1…", text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(FOLDER).with_suffix("")))
def test_opening_and_saving_in_jupyterlab_gives_the_same_bytes(path, tmp_path):
    """Load and save through Jupyter's contents manager with jupytext, and set the metadata that JupyterLab sets."""
    pytest.importorskip("jupyter_server")
    contents = pytest.importorskip("jupytext").TextFileContentsManager
    kernel = pytest.importorskip("ipykernel.ipkernel").IPythonKernel
    specification = pytest.importorskip("ipykernel.kernelspec").get_kernel_dict()
    shutil.copy(FOLDER.parent / "pyproject.toml", tmp_path)  # jupytext reads its configuration there
    (tmp_path / "notebooks").mkdir()
    for suffix in (".ipynb", ".py"):
        if path.with_suffix(suffix).exists():
            shutil.copy(path.with_suffix(suffix), tmp_path / "notebooks")
    before = {file.name: file.read_text(encoding="utf-8") for file in (tmp_path / "notebooks").iterdir()}
    manager = contents(root_dir=str(tmp_path))
    model = manager.get(f"notebooks/{path.name}", content=True)
    names = {"display_name": specification["display_name"], "language": specification["language"], "name": "python3"}
    model["content"]["metadata"] |= {"kernelspec": names, "language_info": dict(kernel.language_info)}
    manager.save(model, f"notebooks/{path.name}")
    after = {f.name: f.read_text(encoding="utf-8") for f in (tmp_path / "notebooks").iterdir() if f.is_file()}
    assert before.keys() == after.keys()
    for name in before:
        assert without_version(before[name]) == without_version(after[name]), "run `make notebooks`"


@each
def test_no_notebook_is_paired_on_saving(source):
    """Jupytext would write the other file again, with the header of its own version."""
    assert "formats:" not in source.read_text(encoding="utf-8").partition("# %%")[0], "remove this line of the header"


def test_the_metadata_is_that_of_the_installed_kernel():
    kernel = pytest.importorskip("ipykernel.ipkernel").IPythonKernel
    assert jupyter_metadata()["language_info"] == kernel.language_info


@each
def test_every_picture_is_sharp_on_every_screen(source):
    for cell in code_cells(source):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                png, size = base64.b64decode(output["data"]["image/png"]), output["metadata"].get("image/png", {})
                pixels = int.from_bytes(png[16:20], "big")  # the width in a PNG's header
                sharp = size and (abs(pixels - 2 * size["width"]) <= 1 or len(png) > SHARP_BYTES / 2)
                assert sharp, "two pixels per CSS pixel, but for a photograph: run `make notebooks`"


# ------------------------------------------------------------------------------------------------- a copy to work in


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anywhere") / "my-course"
    course.write_course(folder)
    return folder


def test_a_copy_has_every_notebook_without_outputs_and_without_its_source(copy):
    names = [path.name for path in sorted(copy.glob("*.ipynb"))]
    assert names == [source.with_suffix(".ipynb").name for source in SOURCES]
    assert not list(copy.glob("*.py")) and len(list((copy / "exercises").glob("[0-9]*.ipynb"))) == 12
    for name in names:
        cells = json.loads((copy / name).read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_a_copy_reads_its_own_files(copy):
    """No path leads out of the copy, and every table that a notebook names is in it."""
    named = 0
    for path in copy.glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            text = "".join(cell["source"])
            assert "../" not in text, f"{path.name}: a path that leads out of the copy\n{text}"
            if cell["cell_type"] == "code":
                code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("%", "!")))
                texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
            else:
                texts = re.findall(r"\]\(([^)#]+)\)", text)
                assert all((copy / link).exists() for link in texts if not link.startswith("http")), texts
            for name in texts:
                if isinstance(name, str) and name.startswith("figures/data/") and name.endswith(".json"):
                    assert (copy / name).is_file(), name
                    named += 1
    assert named > 10


@pytest.mark.slow
def test_a_copy_runs_wherever_it_is(copy):
    """This notebook reads several tables; the code runs from the copy's folder and not from the clone."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(copy / "05_convergence.ipynb", as_version=4)
    where = {"metadata": {"path": str(copy)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)


def test_writing_a_copy_again_keeps_a_changed_notebook_and_says_so(tmp_path, capsys):
    folder = tmp_path / "my-course"
    assert main(["notebooks", "write", str(folder)]) == 0
    mine = folder / "01_the_fine_tuning_problem.ipynb"
    mine.write_text("my work", encoding="utf-8")
    (folder / "02_lora_from_one_equation.ipynb").unlink()
    capsys.readouterr()
    assert main(["notebooks", "write", str(folder)]) == 0
    said = capsys.readouterr().out
    assert mine.read_text(encoding="utf-8") == "my work"
    assert said.startswith("1 file written") and f"1 changed file kept: {mine.name}\n" in said


@pytest.mark.parametrize("name", ["", "notebooks", "notebooks/exercises/mine"])
def test_a_copy_is_not_written_over_the_course(name, capsys):
    assert main(["notebooks", "write", str(FOLDER.parent / name)]) == 1
    assert "is a folder of the course itself" in capsys.readouterr().err


def test_a_file_is_no_folder_for_a_copy(tmp_path, capsys):
    (tmp_path / "a").touch()
    assert main(["notebooks", "write", str(tmp_path / "a")]) == 1
    assert "is a file; expected a folder" in capsys.readouterr().err


def test_a_picture_that_a_notebook_shows_comes_with_the_copy_and_other_links_go_to_the_web(tmp_path, monkeypatch):
    text = "![a](../figures/a.png) [b](../docs/b.md#c) [d](01_d.ipynb) [e](../LICENSE)"
    clone = tmp_path / "clone"
    (clone / "notebooks").mkdir(parents=True)
    (clone / "figures").mkdir()
    (clone / "figures" / "a.png").write_bytes(b"png")
    cell = {"cell_type": "markdown", "metadata": {}, "source": [text]}
    code = {"cell_type": "code", "metadata": {}, "source": ['read("../figures")']}
    (clone / "notebooks" / "00_a.ipynb").write_text(
        json.dumps({"cells": [cell, code], "metadata": {}}), encoding="utf-8"
    )
    monkeypatch.setattr(course, "course_folder", lambda: clone / "notebooks")
    course.write_course(tmp_path / "copy")
    cells = json.loads((tmp_path / "copy" / "00_a.ipynb").read_text(encoding="utf-8"))["cells"]
    said, read = (cell["source"][0] for cell in cells)
    assert read == 'read("figures")'
    assert said == f"![a](figures/a.png) [b]({course.WEB}/docs/b.md#c) [d](01_d.ipynb) [e]({course.WEB}/LICENSE)"
    assert (tmp_path / "copy" / "figures" / "a.png").read_bytes() == b"png"


# ------------------------------------------------------------------------------------------------ the teachers' key


CELL = """## Three questions

1. Why is B zero?

   <details><summary>Answer</summary>

   So that training starts at the base.

   </details>

2. And A?

   It has random values.

   <details><summary>Answer</summary>

   B would get no gradient.

   </details>

## Try

**1.** Set r = 1.

<details><summary>Hint</summary>

One line.

</details>

<details><summary>Answer</summary>

The loss is higher.

- It stays so.

</details>

The end.
"""


def test_answers_are_found_with_their_questions():
    cells = [{"cell_type": "markdown", "source": [CELL]}, {"cell_type": "code", "source": ["# ## no heading"]}]
    assert list(course.answers_of(cells)) == [
        ("Three questions", "1. Why is B zero?", "So that training starts at the base."),
        ("Three questions", "2. And A?\n\n   It has random values.", "B would get no gradient."),
        ("Try", "**1.** Set r = 1.", "The loss is higher.\n\n- It stays so."),
    ]


def test_a_copy_for_a_class_has_hints_and_no_answers(tmp_path):
    text = course.without_answers(CELL)
    assert "Why is B zero?" in text and "One line." in text and "The end." in text
    assert "Answer" not in text and "random values" in text and "gradient" not in text and "higher" not in text
    assert main(["notebooks", "write", str(tmp_path / "class"), "--without-answers"]) == 0
    for path in (tmp_path / "class").glob("*.ipynb"):
        assert "<summary>Answer</summary>" not in path.read_text(encoding="utf-8")


def test_the_committed_key_is_up_to_date_and_has_every_answer(tmp_path, capsys):
    key = course.teachers_key()
    assert (FOLDER / course.KEY).read_text(encoding="utf-8") == key, "run `python -m lora_np notebooks key`"
    answers = sum(
        path.read_text(encoding="utf-8").count("<summary>Answer</summary>") for path in FOLDER.glob("*.ipynb")
    )
    assert key.count("**Answer.**") == answers
    assert main(["notebooks", "key", str(tmp_path / "key.md")]) == 0
    assert (tmp_path / "key.md").read_text(encoding="utf-8") == key
