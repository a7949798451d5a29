"""Explain NumPy's errors about shapes in plain words, with the shapes of the arrays in the failing expression."""

from __future__ import annotations

import re
from collections.abc import Mapping

TRANSPOSE = " Is a transpose (.T) missing?"
NUMPY = (  # NumPy's message, its explanation, and a question that follows the shapes
    (
        r"matmul: Input operand 1 has a mismatch .*\(size (?P<rows>\d+) is different from (?P<columns>\d+)\)",
        "`@` needs as many columns on its left as rows on its right, got {columns} and {rows}",
        TRANSPOSE,
    ),
    (
        r"shapes (?P<left>\([\d, ]*\)) and (?P<right>\([\d, ]*\)) not aligned: (?P<columns>\d+) .*!= (?P<rows>\d+) ",
        "a product needs as many columns on its left as rows on its right, got the shapes {left} and {right}",
        TRANSPOSE,
    ),
    (
        r"matmul: Input operand [01] does not have enough dimensions \(has 0",
        "`@` multiplies two arrays, but here one of them is a single number; multiply by a number with *",
        "",
    ),
    (
        r"operands could not be broadcast together with shapes (?P<left>\([\d,]*\)) (?P<right>\([\d,]*\))",
        "+, −, * and / need two arrays of the same shape, or axes of length 1, got the shapes {left} and {right}",
        "",
    ),
    (
        r"non-broadcastable output operand with shape (?P<left>\([\d,]*\)) .*broadcast shape (?P<right>\([\d,]*\))",
        "an array of shape {left} cannot hold a result of shape {right}",
        "",
    ),
)


def explained(message: str, expression: str, shapes: Mapping[str, str]) -> tuple[str, str] | None:
    """Explain an error about shapes in plain words, with the shapes in the expression; return None for other errors.

    Parameters
    ----------
    message : str
        NumPy's message.
    expression : str
        The part of the student's program that raised the error.
    shapes : mapping of str to str
        The shape of each array, from `execute.array_shapes`.
    """
    for pattern, words, question in NUMPY:
        if found := re.match(pattern, message):
            here = [f"{name} is {shape}" for name, shape in shapes.items() if occurs(name, expression)]
            listed = f" Shapes: {', '.join(here)}." if here else ""
            return words.format(**{key: spaced(text) for key, text in found.groupdict().items()}), listed + question
    return None


def occurs(name: str, expression: str) -> bool:
    """Return whether the expression uses the array `name`, for example x or layer["A"]."""
    return re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", expression.replace("'", '"')) is not None


def spaced(shape: str) -> str:
    """Return a shape as Python prints it: "(3, 4)" for "(3,4)"."""
    return re.sub(r",(?=\d)", ", ", shape)
