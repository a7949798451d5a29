"""The course's notebooks: their source is notebooks/*.py (jupytext percent format), their outputs live in the .ipynb beside it."""

from __future__ import annotations

import base64
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..optional import extra
from ..progress import QUIET
from ..studies.harness.png import with_palette


def execute(source: Path, output: Path) -> float:
    """Run the notebook `source` (.py) from top to bottom in a fresh kernel and write it with its outputs to `output` (.ipynb).

    It runs in the folder of `source`, one BLAS thread, without timing metadata or widget state, so that two runs on one
    machine differ only where the notebook prints times. Returns the seconds. Raises RuntimeError with the failing cell.
    """
    with extra("course", "running a notebook"):
        import jupytext
        import nbformat
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError

    began = time.perf_counter()
    notebook = jupytext.read(source)
    where = {"metadata": {"path": str(source.parent)}}
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False, resources=where)
    inline = {QUIET: "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    try:
        client.execute(env=os.environ | inline)
    except CellExecutionError as error:
        raise RuntimeError(f"{source} stopped: {error}") from None
    for i, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{i}"
    make_pictures_smaller(notebook)
    notebook.metadata.pop("widgets", None)
    output.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, output)
    return time.perf_counter() - began


def make_pictures_smaller(notebook: Mapping[str, Any]) -> None:
    """Replace each PNG in the outputs by one with a palette, in place."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = base64.b64encode(with_palette(base64.b64decode(data["image/png"]))).decode()


def execute_all(folder: Path, output: Path, at_once: int = 1) -> None:
    """Execute every notebook of `folder` into `output`, a line each on stderr.

    `at_once` > 1 is for those whose printed times nobody keeps: they are measured side by side.
    """
    with extra("studies", "running notebooks side by side"):
        from joblib import Parallel, delayed

    sources = sorted(folder.glob("[0-9]*.py"))
    if not sources:
        print(f"  no notebooks in {folder}: run this in a clone of the repository", file=sys.stderr)
    jobs = (delayed(execute)(source, output / source.with_suffix(".ipynb").name) for source in sources)
    for source, seconds in zip(sources, Parallel(at_once, return_as="generator")(jobs), strict=True):
        print(f"  {source.stem}: {seconds:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "notebooks")
    execute_all(folder, folder)
