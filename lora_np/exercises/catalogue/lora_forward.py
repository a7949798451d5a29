"""The forward pass: y = x Wᵀ + (α/r)·(x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

SCALING, FROZEN, BYPASS = "alpha / r", "frozen = x @ W.T", "hidden @ B.T"


def observe(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result. If it is a tuple that begins with y, return y and a note that the tuple has more entries."""
    value = function(*arguments)
    if isinstance(value, tuple | list) and len(value) > 1 and isinstance(value[0], np.ndarray):
        return {"y": value[0], "and more": True}
    return value


def cases() -> list[Case]:
    rng = np.random.default_rng(2)

    def case(label: str, *leading: int, in_: int, out: int, r: int, alpha: float) -> Case:
        shapes: dict[str, tuple[int, ...]] = {"x": (*leading, in_), "W": (out, in_), "A": (r, in_), "B": (out, r)}
        arrays: dict[str, Any] = {name: rng.integers(-4, 5, shape) / 2 for name, shape in shapes.items()}
        return Case(label, arrays | {"alpha": alpha})

    return [
        case("everything square, r = 2", 2, in_=2, out=2, r=2, alpha=6.0),
        case("two tokens, three features in, four out", 2, in_=3, out=4, r=2, alpha=6.0),
        case("rank 1", 3, in_=4, out=2, r=1, alpha=3.0),
        case("a batch of sequences", 2, 3, in_=5, out=4, r=3, alpha=16.0),
    ]


EXERCISE = Exercise(
    function="lora_forward",
    title="The forward pass of LoRA",
    minutes=10,
    needs="notebook 02",
    cases=cases,
    observe=observe,
    mistakes=(
        Mistake(
            "the scaling is missing",
            "Double alpha and call your function again: the output should change, but your output stays the same.",
            {SCALING: "1.0"},
        ),
        Mistake(
            "the scaling is applied twice",
            "If alpha doubles, the bypass should double. How often does alpha enter your output?",
            {SCALING: "(alpha / r) ** 2"},
        ),
        Mistake(
            "the scaling grows with the rank (alpha times r)",
            "The scaling should get smaller as r grows. Print your scaling for r = 2 and for r = 8.",
            {SCALING: "alpha * r"},
        ),
        Mistake(
            "alpha alone is the scaling",
            "A bypass of rank 8 adds up four times as many terms as a bypass of rank 2. Which part of the equation "
            "compensates for the larger number of terms?",
            {SCALING: "alpha"},
        ),
        Mistake(
            "the scaling is inverted (r over alpha)",
            "If alpha doubles, the bypass should double. By what factor does your bypass change?",
            {SCALING: "r / alpha"},
        ),
        Mistake(
            "the scaling divides by the square root of the rank",
            "This is the scaling of rsLoRA, which exercise 4 asks for. Compare the denominator in the equation of "
            "this exercise with your denominator.",
            {SCALING: "alpha / r**0.5"},
        ),
        Mistake(
            "the scaling is rounded down",
            "If r divides alpha, this mistake makes no difference. Print your scaling for alpha = 16 and r = 3.",
            {SCALING: "alpha // r"},
        ),
        Mistake(
            "the rank is read from the wrong axis",
            "Print your r, A.shape and B.shape. Which length do A and B have in common?",
            {"r = A.shape[0]": "r = A.shape[1]"},
            {"r = A.shape[0]": "r = B.shape[0]"},
        ),
        Mistake(
            "the bypass is subtracted",
            "Set W to zero. What is the sign of the term that is left in the equation, and in your result?",
            {"frozen + scaling": "frozen - scaling"},
        ),
        Mistake(
            "more than y is returned",
            "The exercise asks for one array, y. Print type(lora_forward(x, W, A, B, alpha)).",
            {"return frozen + scaling * bypass": "return frozen + scaling * bypass, hidden"},
        ),
        Mistake(
            "the frozen path is scaled too",
            "With B = 0 the layer must return x Wᵀ. Set B to zero and compare your output with x Wᵀ.",
            {"frozen + scaling * bypass": "scaling * (frozen + bypass)"},
        ),
        Mistake(
            "the frozen path is missing",
            "With B = 0 the layer must return x Wᵀ. What does your function return?",
            {"frozen + scaling * bypass": "scaling * bypass"},
        ),
        Mistake(
            "A and B are swapped",
            "Write the shapes beside each product. Which factor takes the input from in to r features, and which "
            "factor from r to out?",
            {"hidden = x @ A.T": "hidden = x @ B", BYPASS: "hidden @ A"},
        ),
        Mistake(
            "W is not transposed",
            "For a square W your code runs without an error, but the numbers are wrong. Write the shapes of x and "
            "W side by side. Which two axes have the length in?",
            {FROZEN: "frozen = x @ W"},
        ),
        Mistake(
            "B is not transposed",
            "If r equals out, your code runs without an error, but the numbers are wrong. Write the shapes of x Aᵀ "
            "and B side by side.",
            {BYPASS: "hidden @ B"},
        ),
        Mistake(
            "A is not transposed",
            "If r equals in, your code runs without an error, but the numbers are wrong. Write the shapes of x and "
            "A side by side.",
            {"hidden = x @ A.T": "hidden = x @ A"},
        ),
        Mistake(
            "none of the three matrices is transposed",
            "If all matrices are square, your code runs without an error, but the numbers are wrong. Write the shapes of "
            "x, W, A and B under the equation. Which symbol of the equation is missing in your code?",
            {FROZEN: "frozen = x @ W", "hidden = x @ A.T": "hidden = x @ A", BYPASS: "hidden @ B"},
        ),
    ),
)
