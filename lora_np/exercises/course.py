"""Copy the committed notebooks for students, and collect the hidden answers of the notebooks in the teachers' key."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..files import write_atomically, write_text
from ..report.notebooks import jupyter_metadata
from .editions import student_edition

KEY = "TEACHERS_KEY.md"
WEB = "https://github.com/lora-np/lora_np/blob/main"
DETAILS = re.compile(r"\n*^[ \t]*<details>\s*<summary>(.*?)</summary>(.*?)</details>[ \t]*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r'(\]\(|src="|href=")\.\./([^)"\s]+)')  # a link or picture outside the folder of the notebooks
ITEM = re.compile(r"^(?:\d+\.|[-*]|\*\*\d+)\s", re.MULTILINE)  # the first line of a question in a list


def course_folder() -> Path:
    """Return the folder `notebooks` of the course: beside the package, or in the current folder.

    Raises
    ------
    FileNotFoundError
        If neither folder exists, for example if the package is installed without a clone of the repository.
    """
    for folder in (Path(__file__).parents[2] / "notebooks", Path("notebooks")):
        if any(folder.glob("00_*.ipynb")):
            return folder
    raise FileNotFoundError(
        "the course's notebooks are not in the installed package; run this command in a clone of the repository"
    )


@dataclass(frozen=True)
class Copy:
    """The files that `write_course` wrote, and the existing files that `write_course` did not change.

    Parameters
    ----------
    written : list of Path
        Files that were written.
    kept : list of Path
        Existing files that differ from the course's files. `write_course` did not change these files.
    """

    written: list[Path]
    kept: list[Path]


def write_course(folder: str | os.PathLike[str], answers: bool = True) -> Copy:
    """Write a copy of the course's notebooks and exercises without outputs.

    The copy contains all files that the notebooks read or show, so `folder` may be anywhere. An existing file is never
    changed.

    Parameters
    ----------
    folder : path
        The folder for the copy. A missing folder is created.
    answers : bool
        If False, the hidden answers to questions and tasks are left out.

    Returns
    -------
    Copy
        The files that were written, and the existing files that differ from the course's files.

    Raises
    ------
    FileNotFoundError
        If the course's notebooks are not found, for example outside a clone of the repository.
    ValueError
        If `folder` is a folder of the course itself.
    """
    source, folder = course_folder(), Path(folder)
    if folder.resolve().is_relative_to(source.resolve()) or folder.resolve() == source.resolve().parent:
        raise ValueError(f"{str(folder)!r} is a folder of the course itself; give another folder for the copy")
    files: dict[str, bytes] = {}  # path in the copy → content
    for path in sorted(source.glob("[0-9]*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
        pictures = {name for cell in cells for _, name in LINK.findall("".join(cell["source"])) if _is_picture(name)}
        files |= {name: (source.parent / name).read_bytes() for name in sorted(pictures)}
        notebook["cells"] = [_for_student(cell, answers) for cell in cells]
        files[path.name] = _json(notebook).encode()
    for path in sorted((source.parent / "figures" / "data").glob("*.json")):
        files[f"figures/data/{path.name}"] = path.read_bytes()
    written, kept = [], []
    for name, content in files.items():
        path = folder / name
        if not path.exists():
            write_atomically(path, partial(Path.write_bytes, data=content))
            written.append(path)
        elif path.read_bytes() != content:
            kept.append(path)
    return Copy(written + student_edition(folder / "exercises"), kept)


def _for_student(cell: dict[str, Any], answers: bool) -> dict[str, Any]:
    """Return a cell for the copy: without output, and with paths relative to the folder of the copy."""
    text = "".join(cell["source"])
    if cell["cell_type"] == "code":
        cell = cell | {"outputs": [], "execution_count": None}
        text = re.sub(r"\.\./figures\b", "figures", text)
    else:
        text = LINK.sub(_link, text if answers else without_answers(text))
    return cell | {"source": text.splitlines(keepends=True)}


def _link(found: re.Match[str]) -> str:
    """Return a link for the copy: to a picture in the copy, or to a page on the web."""
    return f"{found[1]}{found[2] if _is_picture(found[2]) else f'{WEB}/{found[2]}'}"


def _is_picture(name: str) -> bool:
    """Return True if the name of a file ends like the name of a picture, for example in ".png"."""
    return name.lower().endswith((".png", ".svg", ".jpg"))


def _json(notebook: dict[str, Any]) -> str:
    """Return a notebook as JSON in the layout of nbformat and JupyterLab, with the metadata of the Python kernel."""
    notebook = notebook | {"metadata": jupyter_metadata()}
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def without_answers(text: str) -> str:
    """Return a Markdown text without hidden answers; hidden hints are not removed."""
    return DETAILS.sub(lambda found: "" if found[1].strip() == "Answer" else found[0], text)


# ------------------------------------------------------------------------------------------------------ the teachers' key


def answers_of(cells: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield the heading, the question and the answer of each hidden answer in a notebook's Markdown cells."""
    heading = ""
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        text, position, question = "".join(cell["source"]), 0, ""
        for found in DETAILS.finditer(text):
            before = text[position : found.start()].strip()
            headings = list(re.finditer(r"^#+ +(.*)$", before, re.MULTILINE))
            if headings:
                heading, before = headings[-1][1], before[headings[-1].end() :].strip()
            if before:  # an answer after a hint belongs to the question before the hint
                items = [item.start() for item in ITEM.finditer(before)]
                question = before[items[-1] :] if items else before.rpartition("\n\n")[2]
            position = found.end()
            if found[1].strip() == "Answer":
                yield heading, question, textwrap.dedent(found[2]).strip()
        rest = re.findall(r"^#+ +(.*)$", text[position:], re.MULTILINE)
        heading = rest[-1] if rest else heading


def teachers_key() -> str:
    """Return the teachers' key: a Markdown page with every hidden answer of the course, in the order of the notebooks.

    Raises
    ------
    FileNotFoundError
        If the course's notebooks are not found, for example outside a clone of the repository.
    """
    page = [
        "# Teachers' key",
        "Every question of the course with its answer, in the order of the notebooks. `python -m lora_np notebooks key` writes "
        "this page; edit the answers in the notebooks. The exercises have a page of their own, "
        "[exercises/TEACHERS.md](exercises/TEACHERS.md), and notebooks with their solutions.",
    ]
    for path in sorted(course_folder().glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).partition("\n")[0].lstrip("# ")
        above = ""
        for i, (heading, question, answer) in enumerate(answers_of(cells)):
            if i == 0:
                page.append(f"## [{path.stem.partition('_')[0]} {title}]({path.name})")
            if heading != above:
                page.append(f"### {heading}")
                above = heading
            page += [textwrap.indent(question, "> ", lambda line: True), f"**Answer.** {answer}"]
    return "\n\n".join(page) + "\n"


def write_key(path: str | os.PathLike[str] | None = None) -> Path:
    """Write the teachers' key to `path`, by default into the folder of the course, and return the path."""
    path = course_folder() / KEY if path is None else Path(path)
    write_text(path, teachers_key())
    return path
