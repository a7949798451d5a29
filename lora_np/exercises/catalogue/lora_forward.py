"""The forward pass: y = x Wᵀ + (α/r)·(x Aᵀ) Bᵀ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

SCALING, FROZEN, BYPASS = "alpha / r", "frozen = x @ W.T", "hidden @ B.T"


def observe(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns. Of y with something beside it, that it is not y alone, whatever the rest is."""
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
            "Double alpha and call your function again: the output should change, and yours does not.",
            {SCALING: "1.0"},
        ),
        Mistake(
            "the scaling is applied twice",
            "If alpha doubles, the bypass should double. How often does alpha enter your output?",
            {SCALING: "(alpha / r) ** 2"},
        ),
        Mistake(
            "the scaling grows with the rank (alpha times r)",
            "The scaling exists so that a higher rank does not make the bypass louder. Does yours grow or shrink with r?",
            {SCALING: "alpha * r"},
        ),
        Mistake(
            "alpha alone, without the rank",
            "Your bypass has the same scaling for every rank. What is it that the rank does to the sum over r terms?",
            {SCALING: "alpha"},
        ),
        Mistake(
            "the scaling stands on its head",
            "With alpha = r the bypass has the scaling 1. Make alpha larger: the bypass should get louder. Does yours?",
            {SCALING: "r / alpha"},
        ),
        Mistake(
            "the scaling divides by the root of the rank",
            "That is rsLoRA's scaling, and a later exercise. Read the denominator in this equation again.",
            {SCALING: "alpha / r**0.5"},
        ),
        Mistake(
            "the scaling is rounded down",
            "It is right whenever r divides alpha. Print your scaling for alpha = 16 and r = 3.",
            {SCALING: "alpha // r"},
        ),
        Mistake(
            "the rank is read off the wrong side",
            "Print your r beside the shapes of A and B. Which length do the two have in common?",
            {"r = A.shape[0]": "r = A.shape[1]"},
            {"r = A.shape[0]": "r = B.shape[0]"},
        ),
        Mistake(
            "the bypass is subtracted",
            "Let W be 0. What is left of the equation, and which sign has it? And in yours?",
            {"frozen + scaling": "frozen - scaling"},
        ),
        Mistake(
            "more than y is returned",
            "A backward pass may want more; this function's caller goes on with what it gets as an array. Try .shape on it.",
            {"return frozen + scaling * bypass": "return frozen + scaling * bypass, hidden"},
        ),
        Mistake(
            "the frozen path is scaled too",
            "With B = 0 the adapted layer must compute exactly what the base computes. Try B = 0.",
            {"frozen + scaling * bypass": "scaling * (frozen + bypass)"},
        ),
        Mistake(
            "the frozen path is missing",
            "Which part of the equation knows what the model has learned before? Look for it in your sum.",
            {"frozen + scaling * bypass": "scaling * bypass"},
        ),
        Mistake(
            "A and B are swapped",
            "Write the shapes beside each product: which factor takes in features down to r, and which takes r up to out?",
            {"hidden = x @ A.T": "hidden = x @ B", BYPASS: "hidden @ A"},
        ),
        Mistake(
            "W is not transposed",
            "It works for a square W, and with wrong numbers. Write the shapes of x and W side by side: which sides must meet?",
            {FROZEN: "frozen = x @ W"},
        ),
        Mistake(
            "B is not transposed",
            "It works where r equals out, and with wrong numbers. Write the shape of x Aᵀ and that of B side by side.",
            {BYPASS: "hidden @ B"},
        ),
        Mistake(
            "A is not transposed",
            "It works where r equals in, and with wrong numbers. Write the shapes of x and A side by side.",
            {"hidden = x @ A.T": "hidden = x @ A"},
        ),
    ),
)
