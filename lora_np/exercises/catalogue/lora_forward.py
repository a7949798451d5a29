"""The forward pass: y = x Wᵀ + (α/r)·(x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

SCALING, FROZEN, BYPASS = "alpha / r", "frozen = x @ W.T", "hidden @ B.T"


def observe(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the function's result. If the result is a tuple that begins with y, return y and a note that the tuple has
    more entries."""
    value = function(*arguments)
    if isinstance(value, tuple | list) and len(value) > 1 and isinstance(value[0], np.ndarray):
        return {"y": value[0], "and more": True}
    return value


def cases(seed: int = 2) -> list[Case]:
    rng = np.random.default_rng(seed)

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
            "the factor alpha/r is missing in the bypass",
            "Test it: double alpha and call your function again. The output should change. Does your output change?",
            {SCALING: "1.0"},
        ),
        Mistake(
            "the bypass is multiplied by alpha/r twice",
            "If alpha doubles, the bypass should double. How often does your code multiply by alpha?",
            {SCALING: "(alpha / r) ** 2"},
        ),
        Mistake(
            "the scaling is alpha times r instead of alpha/r",
            "Test it: print your scaling for r = 2 and for r = 8. Does your scaling get smaller when r grows?",
            {SCALING: "alpha * r"},
        ),
        Mistake(
            "the scaling is alpha instead of alpha/r",
            "A bypass of rank 8 is a sum of 8 terms, and a bypass of rank 2 is a sum of 2 terms. Which part of the "
            "equation compensates for the larger number of terms?",
            {SCALING: "alpha"},
        ),
        Mistake(
            "the scaling is r/alpha instead of alpha/r",
            "If alpha doubles, the bypass should double. By what factor does your bypass change?",
            {SCALING: "r / alpha"},
        ),
        Mistake(
            "the scaling divides alpha by the square root of r instead of r",
            "Your scaling is the scaling of rsLoRA (exercise 4). Which denominator does the equation of this "
            "exercise have?",
            {SCALING: "alpha / r**0.5"},
        ),
        Mistake(
            "the scaling alpha/r is rounded down to a whole number",
            "The mistake makes no difference if r divides alpha. Test it: print your scaling for alpha = 16 and r = 3.",
            {SCALING: "alpha // r"},
        ),
        Mistake(
            "the rank r is read from the wrong axis of A or B",
            "Test it: print your r, A.shape and B.shape. Which length do A and B have in common?",
            {"r = A.shape[0]": "r = A.shape[1]"},
            {"r = A.shape[0]": "r = B.shape[0]"},
        ),
        Mistake(
            "the bypass is subtracted from x Wᵀ instead of added",
            "Test it: set W to zero, so that only the bypass is left. Does your bypass have the same sign as "
            "in the equation?",
            {"frozen + scaling": "frozen - scaling"},
        ),
        Mistake(
            "the function returns more than the array y",
            "Test it: print type(lora_forward(x, W, A, B, alpha)). The exercise asks for one array, y.",
            {"return frozen + scaling * bypass": "return frozen + scaling * bypass, hidden"},
        ),
        Mistake(
            "the frozen path x Wᵀ is multiplied by the scaling too",
            "Test it: set B to zero. The correct output is then x Wᵀ. Does your output equal x Wᵀ?",
            {"frozen + scaling * bypass": "scaling * (frozen + bypass)"},
        ),
        Mistake(
            "the frozen path x Wᵀ is missing in the output",
            "Test it: set B to zero. The correct output is then x Wᵀ. What does your function return?",
            {"frozen + scaling * bypass": "scaling * bypass"},
        ),
        Mistake(
            "A and B are swapped in the bypass",
            "Write the shape of each array beside each product. Which factor maps `in` features to r features, and which "
            "factor maps r features to `out` features?",
            {"hidden = x @ A.T": "hidden = x @ B", BYPASS: "hidden @ A"},
        ),
        Mistake(
            "the weight matrix W is not transposed",
            "For a square W your code runs without an error, but the numbers are wrong. Write down the shapes "
            "of x and W. Which two axes have the length `in`?",
            {FROZEN: "frozen = x @ W"},
        ),
        Mistake(
            "the factor B is not transposed",
            "For a square B (r = out) your code runs without an error, but the numbers are wrong. Write down "
            "the shapes of x Aᵀ and B. Which two axes have the length r?",
            {BYPASS: "hidden @ B"},
        ),
        Mistake(
            "the factor A is not transposed",
            "For a square A (r = in) your code runs without an error, but the numbers are wrong. Write down "
            "the shapes of x and A. Which two axes have the length `in`?",
            {"hidden = x @ A.T": "hidden = x @ A"},
        ),
        Mistake(
            "none of the matrices W, A and B is transposed",
            "For square matrices your code runs without an error, but the numbers are wrong. In the equation, "
            "W, A and B are transposed. Does your code transpose all three matrices?",
            {FROZEN: "frozen = x @ W", "hidden = x @ A.T": "hidden = x @ A", BYPASS: "hidden @ B"},
        ),
    ),
)
