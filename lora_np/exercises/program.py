"""Extract the program of one function from cells of code.

Other cells of a student's notebook draw pictures or train models. These cells are left out. The program contains only
the statements that set the global names that the function reads, directly or through other functions. Therefore the
program runs fast, and errors in other cells do not matter.
"""

from __future__ import annotations

import ast
import re
import symtable
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

RUN_AS_PYTHON = re.compile(r"%%(time|capture|prun)\b")  # cell magics that run the cell's Python and keep its names
MAGIC = re.compile(  # %matplotlib inline, !ls, ?np.mean, files = !ls, np.mean?
    r"^\s*[%!?]|^\s*[\w., ]+=\s*[%!]|^\s*[\w.*]+\?\??\s*$"
)
TIMED = re.compile(r"^(\s*(?:[\w., ]+=\s*)?)%time\s+(.*)")  # %time y = f(x), y = %time f(x)
TOO_DEEP = "it is nested too deeply"
MOST_MAGICS = 100  # of a cell; each is found by reading the cell once more
PROMPT = re.compile(r"^(?:>>>|\.\.\.)(?: |$)|^In \[\d+\]: ?|^ *\.\.\.+: ?")  # in front of a line copied from a session


def program(cells: Sequence[str], function: str) -> str:
    """Return the statements that `function` needs as one text, in the order of the cells.

    Raises KeyError if no cell defines the function, and SyntaxError if no cell that defines it can be read.
    """
    statements: list[Statement] = []
    broken: list[tuple[str, SyntaxError]] = []
    for cell in cells:
        try:
            statements += read_cell(cell)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # ValueError: a null byte
            broken.append((cell, error if isinstance(error, SyntaxError) else SyntaxError(str(error) or TOO_DEEP)))
    if not any(function in statement.binds for statement in statements):
        for cell, reason in broken:
            if f"def {function}" in cell or begins_definition(cell, function):
                raise reason
        raise KeyError(f"no cell defines the function {function}")
    touching: dict[str, list[int]] = defaultdict(list)
    for i, statement in enumerate(statements):
        for name in statement.binds | statement.changes:
            touching[name].append(i)
    wanted, kept, seen = {function}, set(touching["*"]), {function}
    followed: set[int] = set()
    while wanted:
        for i in set(value_of(name := wanted.pop(), statements, touching[name])) - followed:
            followed.add(i)
            wanted |= statements[i].reads - seen
            seen |= wanted
    kept |= followed
    return "\n".join(statements[i].text for i in sorted(kept)) + "\n"


@dataclass(frozen=True)
class Statement:
    """A statement at the top level of a cell.

    Parameters
    ----------
    text : str
        The source of the statement.
    binds : frozenset of str
        Names that the statement assigns; "*" for `from … import *`.
    changes : frozenset of str
        Names of objects that the statement changes without assigning the name, as in `settings["r"] = 8` or
        `layers.append(x)`.
    reads : frozenset of str
        Global names that are read by the statement or by a function inside it.
    """

    text: str
    binds: frozenset[str]
    changes: frozenset[str]
    reads: frozenset[str]


def value_of(name: str, statements: Sequence[Statement], touching: Sequence[int]) -> list[int]:
    """Return the indices of the statements that determine the last value of `name`.

    `touching`: the indices of the statements that assign or change `name`.
    The value is determined by the last statement that assigns the name without reading the name, and by all later
    statements that change the value.
    """
    imported = {i for i in touching if statements[i].text.startswith(("import ", "from "))}
    if imported and touching[-1] in imported:
        return [touching[-1]]
    fresh = [i for i in touching if name in statements[i].binds and name not in statements[i].reads]
    defined = [
        i for i in touching if name in statements[i].binds and _is_definition(statements[i])
    ]  # a recursive function reads its own name
    first = max([*fresh, *defined], default=0)
    changed = [i for i in touching if i >= first]
    return [i for i in changed if i not in imported or i == first]


def read_cell(cell: str) -> Iterator[Statement]:
    """Yield the statements of a cell. Raises SyntaxError if the cell is not Python."""
    cell = python_of(cell)
    lines = cell.split("\n")
    for node in ast.parse(cell).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        yield read_statement(node, "\n".join(lines[first - 1 : node.end_lineno]))


def python_of(cell: str) -> str:
    """Return a cell as Python code: without the indentation of the first line, prompts and IPython's magics.

    The line `%time y = f(x)` becomes `y = f(x)`; other magics become `pass`. For a cell with a magic like %%bash, the
    result is empty. Raises SyntaxError if the result is not Python.
    """
    cell = _unprompted(cell)
    while cell.lstrip().startswith("%%"):
        first, _, rest = cell.lstrip().partition("\n")
        cell = "\n" + _unprompted(rest) if RUN_AS_PYTHON.match(first) else ""
    lines = cell.split("\n")
    for _ in range(MOST_MAGICS):
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:  # only the line of the error can be a magic: other lines may be parts of a string
            i = (error.lineno or 0) - 1
            if not 0 <= i < len(lines) or not MAGIC.search(lines[i]):
                raise
            lines[i : i + 1] = [_without_magic(lines[i])]
        else:
            return "\n".join(lines)
    raise SyntaxError(f"the cell has more than {MOST_MAGICS} lines with magics")


def begins_definition(cell: str, function: str) -> bool:
    """Return whether an unindented line of a cell begins a definition of `function`; the cell need not be Python."""
    pattern = rf"^(async\s+)?def\s+{function}\b|^{function}\s*(:[^=\n]*)?=[^=]"
    return re.search(pattern, _unprompted(cell), re.MULTILINE) is not None


def syntax_error(cell: str) -> SyntaxError | None:
    """Return the syntax error of a cell, or None if Python can read the cell."""
    try:
        list(read_cell(cell))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return error if isinstance(error, SyntaxError) else SyntaxError(str(error) or TOO_DEEP)
    return None


def read_statement(node: ast.stmt, text: str) -> Statement:
    """Return the statement of a syntax tree, with the names that it assigns, changes and reads."""
    table = symtable.symtable(ast.unparse(node), "cell", "exec")
    top = table.get_symbols()
    binds = {s.get_name() for s in top if s.is_assigned() or s.is_imported()}
    if any(isinstance(inner, ast.alias) and inner.name == "*" for inner in ast.walk(node)):
        binds.add("*")
    return Statement(text, frozenset(binds), frozenset(_changed(node)), frozenset(_global_reads(table)))


def _unprompted(cell: str) -> str:
    """Return a cell without prompts like `>>> ` and without the indentation of its first line, as IPython reads it."""
    lines = cell.replace("\r\n", "\n").split("\n")
    first = next((line for line in lines if line.strip()), "")
    indentation = first[: len(first) - len(first.lstrip())]
    lines = [line.removeprefix(indentation) for line in lines]
    if first.lstrip().startswith((">>>", "In [")):
        lines = [PROMPT.sub("", line) for line in lines]
    return "\n".join(lines)


def _without_magic(line: str) -> str:
    """Return the Python code that a magic like %time runs; return `pass` for other magics."""
    if timed := TIMED.match(line):
        return timed[1] + timed[2]
    return line[: len(line) - len(line.lstrip())] + "pass"


def _is_definition(statement: Statement) -> bool:
    """Return whether the statement defines a function or a class."""
    return statement.text.lstrip().startswith(("def ", "async def ", "class ", "@"))


def _global_reads(table: symtable.SymbolTable) -> Iterator[str]:
    """Yield the global names that the code reads.

    At the top level every name is global. In a function, a name is global if it is not local.
    """
    for symbol in table.get_symbols():
        if (symbol.is_referenced() or symbol.is_declared_global()) and (
            table.get_type() == "module" or symbol.is_global()
        ):
            yield symbol.get_name()
    for inner in table.get_children():
        yield from _global_reads(inner)


def _changed(node: ast.stmt) -> Iterator[str]:
    """Yield the names of the objects that a statement changes without assigning their names."""
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        targets = [target for target in targets if isinstance(target, ast.Attribute | ast.Subscript)]
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        targets = [node.value.func]
    for target in targets:
        while isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
        if isinstance(target, ast.Name):
            yield target.id
