"""From a notebook, a .py file or the cells that were run: the program behind one function, and nothing that it does not need.

A student's notebook also draws, trains and tries things. Of all its statements only those run here that bind a name which the
function needs, directly or through others: so a check is quick, and a broken cell elsewhere does no harm.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


def cells_of(path: str | Path) -> list[str]:
    """The code cells of a notebook (.ipynb), of a jupytext file with `# %%` lines, or a plain .py as one cell.

    Raises ValueError for a file that is neither, naming it.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".ipynb":
            return percent_cells(text)
        return [_joined(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError, AttributeError):  # not UTF-8, no JSON, or JSON that is no notebook
        raise ValueError(f"{path.name} is no readable {'notebook' if path.suffix == '.ipynb' else 'text'}") from None


def program(cells: Sequence[str], function: str) -> str:
    """The statements that `function` needs, in their order, as one text.

    Raises KeyError where no cell defines it, SyntaxError where the cell that should cannot be read.
    """
    statements: list[Statement] = []
    broken: list[tuple[str, SyntaxError]] = []
    for cell in map(_without_magics, cells):
        try:
            statements += _statements(cell)
        except (SyntaxError, ValueError, RecursionError) as error:  # ValueError: a null byte
            broken.append((cell, error if isinstance(error, SyntaxError) else SyntaxError(str(error))))
    if not any(statement.defines == function for statement in statements):
        for cell, error in broken:
            if f"def {function}" in cell:
                raise error
        raise KeyError(f"there is no function {function}")
    needed, wanted = set(), {function}
    while wanted:
        needed |= wanted
        reads = [statement.reads for statement in statements if statement.binds & wanted]
        wanted = set().union(*reads) - needed
    return "\n".join(s.text for s in statements if s.binds & needed or "*" in s.binds) + "\n"


@dataclass(frozen=True)
class Statement:
    """A statement at the top of a cell: the names it gives a value to ("*": nobody knows), and those it reads."""

    text: str
    defines: str | None
    binds: frozenset[str]
    reads: frozenset[str]


def _statements(cell: str) -> Iterator[Statement]:
    lines = cell.splitlines()
    for node in ast.parse(cell).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        names = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
        reads = frozenset(name.id for name in names if isinstance(name.ctx, ast.Load))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defines, binds = node.name, {node.name}
        else:
            defines, binds = None, {name.id for name in names if not isinstance(name.ctx, ast.Load)}
            for inner in ast.walk(node):
                if isinstance(inner, ast.alias):
                    binds.add(inner.asname or inner.name.split(".")[0])
                elif isinstance(inner, ast.FunctionDef | ast.ClassDef):
                    binds.add(inner.name)  # inside an if or a try
        yield Statement("\n".join(lines[first - 1 : node.end_lineno]), defines, frozenset(binds), reads)


def _without_magics(cell: str) -> str:
    """IPython's own lines (%matplotlib, !pip, ?help) are no Python; a cell that begins with %% is not a program at all."""
    if cell.lstrip().startswith("%%"):
        return ""
    return "\n".join("" if line.lstrip()[:1] in ("%", "!", "?") else line for line in cell.splitlines())


def percent_cells(text: str) -> list[str]:
    """The code cells of a jupytext file's text: `# %%` begins a cell, `# %% [markdown]` one of words."""
    cells: list[list[str]] = [[]]
    is_code = True
    for line in text.splitlines():
        if line.startswith("# %%"):
            is_code = "[markdown]" not in line
            cells.append([])
        elif is_code:
            cells[-1].append(line)
    return ["\n".join(cell) for cell in cells if cell]


def _joined(source: str | Iterable[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
