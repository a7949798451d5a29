"""Executes the course's notebooks: notebooks/*.py are the sources (jupytext percent format); the .ipynb files contain
the outputs."""

from __future__ import annotations

import base64
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_text
from ..optional import extra
from ..progress import QUIET
from ..studies.harness.png import sharp_and_small

KERNEL = ["--log-level=ERROR"]  # no warning that the kernel is reached over TCP


def execute(source: Path, output: Path) -> float:
    """Run a notebook from top to bottom in a new kernel and write it with its outputs.

    The kernel runs in the folder of `source` with one BLAS thread. Timing metadata and widget state are left out, so that
    two runs on one machine differ only in the seconds that a notebook prints.

    Parameters
    ----------
    source : Path
        The notebook as a jupytext file (.py).
    output : Path
        The notebook to write (.ipynb).

    Returns
    -------
    float
        Duration in seconds.

    Raises
    ------
    RuntimeError
        If a cell fails. The message shows the cell and its error.
    """
    with extra("course", "running a notebook"):
        import jupytext
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError

    began = time.perf_counter()
    notebook = jupytext.read(source)
    where = {"metadata": {"path": str(source.parent)}}
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources=where,
        extra_arguments=KERNEL,
    )
    inline = {QUIET: "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    try:
        client.execute(env=os.environ | inline)
    except CellExecutionError as error:
        raise RuntimeError(f"{source} stopped: {error}") from None
    make_pictures_smaller(notebook)
    write_text(output, notebook_json(notebook))
    return time.perf_counter() - began


def notebook_json(notebook: Any) -> str:
    """Return a notebook as JSON text; if JupyterLab saves the notebook again, the bytes stay the same.

    JupyterLab writes the kernel's name and language into every notebook that it opens. This function writes the name
    and the language in advance. The cells get the ids cell-0, cell-1, …; other metadata of the notebook (jupytext,
    widgets) is removed.
    """
    with extra("course", "writing a notebook"):
        import nbformat

    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    notebook.metadata = nbformat.from_dict(jupyter_metadata())
    return nbformat.writes(notebook) + "\n"


def jupyter_metadata() -> dict[str, Any]:
    """Return the metadata that JupyterLab gives to a notebook with a Python kernel of this Python version."""
    language = {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py",
        "mimetype": "text/x-python",
        "name": "python",
        "nbconvert_exporter": "python",
        "pygments_lexer": "ipython3",
        "version": platform.python_version(),
    }
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    return {"kernelspec": kernel, "language_info": language}


def make_pictures_smaller(notebook: Mapping[str, Any]) -> None:
    """Replace each PNG in the outputs of a notebook by a smaller PNG with a colour palette, in place."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = base64.b64encode(sharp_and_small(base64.b64decode(data["image/png"]))).decode()


def execute_all(folder: Path, output: Path, at_once: int = 1) -> None:
    """Execute every notebook of a folder and print one line per notebook on stderr.

    Parameters
    ----------
    folder : Path
        The folder with the sources (.py).
    output : Path
        The folder for the executed notebooks (.ipynb).
    at_once : int
        Number of notebooks that run at the same time. If several notebooks run at the same time, the times that they
        print are too long.
    """
    with extra("studies", "running notebooks side by side"):
        from joblib import Parallel, delayed

    sources = sorted(folder.glob("[0-9]*.py"))
    if not sources:
        print(f"  no notebooks in {folder}; run this command in a clone of the repository", file=sys.stderr)
    jobs = (delayed(execute)(source, output / source.with_suffix(".ipynb").name) for source in sources)
    for source, seconds in zip(sources, Parallel(at_once, return_as="generator")(jobs), strict=True):
        print(f"  {source.stem}: {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "notebooks")
    execute_all(folder, folder)
