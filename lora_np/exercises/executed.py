"""Compare the function in a notebook's memory with the newest cell that defines the function.

If a cell stops with an error, the definitions below the error do not run. IPython then keeps the previous function. The
name of a function does not show which definition the function comes from, so the compiled code of the function is
compared with the code of each definition.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import CodeType
from typing import Any

from .program import begins_definition, python_of, read_statement, syntax_error


def newest_error(cells: Sequence[str], name: str) -> SyntaxError | None:
    """Return the syntax error of the newest cell that defines `name`, or None if Python can read the cell."""
    for cell in reversed(cells):
        error = syntax_error(cell)
        if error is not None and begins_definition(cell, name):
            return error
        if error is None and any(name in read_statement(node, "").binds for node in ast.parse(python_of(cell)).body):
            break
    return None


def is_older(function: Callable[..., Any], name: str, cells: Sequence[str]) -> bool:
    """Return whether the function comes from a definition of `name` that is older than the newest definition.

    The result is False if the origin of the function is unknown.
    """
    try:
        code = _key(inspect.unwrap(function).__code__)
    except (AttributeError, ValueError):  # `__wrapped__` is set by hand
        return False
    transformed = function.__globals__.get("In")  # the cells with each magic replaced by a call of get_ipython()
    if not isinstance(transformed, list) or len(transformed) != len(cells):
        transformed = cells
    pieces = [piece for pair in zip(cells, transformed, strict=True) for piece in _pieces(*pair, name)]
    newest = next((i for i in reversed(range(len(pieces))) if pieces[i].binds), None)
    if newest is None or pieces[newest].unclear or code in pieces[newest].codes:
        return False
    others = [piece for i, piece in enumerate(pieces) if i != newest]
    if pieces[newest].is_wrapped:  # the wrapper's code can be in any cell
        if any(function.__globals__.get(read) is function for read in pieces[newest].reads):  # `name = mine`
            return False
        return any(code in piece.defined for piece in others if piece.binds)
    return any(code in piece.codes for piece in others)


@dataclass(frozen=True)
class _Piece:
    """A statement at the top level of a cell.

    Parameters
    ----------
    binds : bool
        True if the statement assigns a value to the function's name.
    defined : frozenset
        Keys of the functions that the statement assigns to the function's name.
    codes : frozenset
        Keys of all functions in the statement.
    reads : frozenset of str
        Global names that the statement reads.
    is_wrapped : bool
        True if the name's value can be a function that is not written in the statement, for example after a decorator.
    unclear : bool
        True if the statement can assign an older function to the name, for example by an import.
    """

    binds: bool
    defined: frozenset[Any]
    codes: frozenset[Any]
    reads: frozenset[str]
    is_wrapped: bool
    unclear: bool


def _pieces(cell: str, transformed: str, name: str) -> Iterator[_Piece]:
    """Yield the statements of a cell: `cell` as it was written, `transformed` as IPython ran it."""
    if syntax_error(cell) is not None:
        return
    nodes, ran = ast.parse(python_of(cell)).body, []
    if syntax_error(transformed) is None:
        ran = ast.parse(python_of(transformed)).body
    for i, node in enumerate(nodes):
        modules = [_compiled(node)] + ([_compiled(ran[i])] if len(ran) == len(nodes) else [])
        statement = read_statement(node, "")
        functions = [code for module in modules for code in _inner(module)]
        defined = [code for code in functions if code.co_name in (name, "<lambda>")]
        parts = list(_parts(node))
        is_wrapped = any(
            part.decorator_list
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            else not isinstance(part.value, ast.Lambda)
            for part in parts
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.Assign | ast.AnnAssign)
            and name in read_statement(part, "").binds
        )
        made = bool(defined) or isinstance(node, ast.Assign | ast.AnnAssign)
        recursive = name in statement.reads and is_wrapped and not any(code.co_name == name for code in defined)
        yield _Piece(
            name in statement.binds,
            frozenset(map(_key, defined)),
            frozenset(_key(code) for module in modules for code in _all(module)),
            statement.reads,
            is_wrapped or not defined,
            not made or recursive,
        )


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    """Yield a statement and the statements inside it, but not the statements inside functions and classes."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
        for inner in ast.iter_child_nodes(node):
            yield from _parts(inner)


def _compiled(node: ast.stmt) -> CodeType:
    """Compile one statement as a module, and return its code object."""
    return compile(ast.Module([node], []), "<cell>", "exec", dont_inherit=True, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def _inner(code: CodeType) -> list[CodeType]:
    """Return the functions and classes that are written directly in the code."""
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _all(code: CodeType) -> Iterator[CodeType]:
    """Yield the functions and classes in the code, at any depth."""
    for inner in _inner(code):
        yield inner
        yield from _all(inner)


def _key(code: CodeType) -> tuple[Any, ...]:
    """Return a value that is equal for equal functions, whatever their files and line numbers are."""
    constants = tuple(_key(c) if isinstance(c, CodeType) else (type(c), repr(c)) for c in code.co_consts)
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount
    names = code.co_varnames, code.co_names, code.co_freevars, code.co_cellvars
    return code.co_name, code.co_code, constants, counts, names
