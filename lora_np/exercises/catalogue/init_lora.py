"""The initial values of A and B: A uniform in ±1/√in (Kaiming with a = √5), B zero.

Right answers may draw random numbers in any order and by any method, so the numbers are not compared. Instead,
descriptions of A and B in words are compared: "uniform", "between ±1/√in", "zero", "equal results from the same rng".
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake
from ._observing import pair

FAN, SLOPE, BOUND = "fan_in = in_features", "a = np.sqrt(5)", "bound = np.sqrt(6 / ((1 + a**2) * fan_in))"
DRAW_A, SHAPE_A = "rng.uniform(-bound, bound, (r, in_features))", "(r, in_features)"
ZERO_B, SHAPE_B = "np.zeros((out_features, r))", "(out_features, r)"
NO_BOUND = f"{FAN}\n    {SLOPE}\n    {BOUND}\n    A = rng.uniform(-bound, bound, "  # what another A replaces


def cases(seed: int | None = None) -> list[Case]:
    def case(label: str, out: int, in_: int, r: int) -> Case:
        return Case(label, {"out_features": out, "in_features": in_, "r": r, "rng": np.random.default_rng(seed or 5)})

    if seed is not None:
        return [case("random sizes", *np.random.default_rng(seed).integers([100, 100, 60], [200, 200, 90]).tolist())]
    return [
        case("more features in than out", 120, 240, 64),
        case("more features out than in", 480, 160, 96),
    ]


def describe(function: Callable[..., Any], out: int, in_: int, r: int, rng: np.random.Generator) -> dict[str, Any]:
    """Describe in words the matrices A and B that `function` creates."""
    again, another = copy.deepcopy(rng), np.random.default_rng(rng.integers(1 << 32))
    A, B = pair(function(out, in_, r, copy.deepcopy(again)), "A and B")
    same = all(map(np.array_equal, (A, B), pair(function(out, in_, r, again), "A and B")))
    other = not all(map(np.array_equal, (A, B), pair(function(out, in_, r, another), "A and B")))
    of_A = kind(A)
    is_random = any(len(np.unique(factor)) > 1 for factor in (A, B))
    return {
        "shape of A": A.shape,
        "shape of B": B.shape,
        "A": of_A,
        "A lies": interval(A, {"in": in_, "out": out, "r": r}) if of_A == "uniform" else "anywhere",
        "B": "zero" if not np.any(B) else "constant" if len(np.unique(B)) == 1 else "random",
        "equal results from the same rng": same,
        "different results from another rng": other or not is_random,
    }


def kind(A: np.ndarray) -> str:
    """Return the kind of distribution of the numbers of A in words, for example "uniform" or "evenly spaced"."""
    different, numbers = len(np.unique(A)), np.sort(A, axis=None)
    if different == 1:
        return "constant" if np.any(A) else "zero"
    gaps = np.diff(numbers)
    if 0 < np.std(gaps) < 0.9 * np.mean(gaps) or np.allclose(
        gaps, gaps[0]
    ):  # for independent numbers it equals the mean
        return "evenly spaced"
    if A.ndim == 2 and (alike(A) or alike(A.T)):
        return "a row or column occurs more than once"
    if different < 0.9 * A.size:
        return "random, with repetitions"
    expected = np.linspace(
        numbers[0], numbers[-1], A.size
    )  # for a uniform distribution, up to about 1/√size of the range
    if np.abs(numbers - expected).max() < 2.5 / np.sqrt(A.size) * np.ptp(A):
        return "uniform"
    tails = np.mean(((A - A.mean()) / A.std()) ** 4)  # 3 for a normal distribution
    return "normal" if abs(tails - 3) < 0.4 else "random, neither uniform nor normal"


def alike(rows: np.ndarray) -> bool:
    """Return whether any two rows are correlated. The correlation of independent rows is about 0 ± 1/√length."""
    rows = rows[:500]  # more rows than a right answer has would need too much memory
    if not np.all(np.std(rows, axis=1)):
        return True
    return bool(np.abs(np.triu(np.corrcoef(rows), 1)).max() > min(0.99, 7 / np.sqrt(rows.shape[1])))


def interval(A: np.ndarray, sizes: dict[str, int]) -> str:
    """Return a text that states the bounds of the distribution of A.

    The true bound is at most 0.1 % larger than the largest number of A.
    """
    most = np.abs(A).max()
    bounds = {"1": 1.0, "½": 0.5}
    for name, size in sizes.items():
        bounds |= {
            f"1/√{name}": 1 / np.sqrt(size),
            f"√(6/{name})": np.sqrt(6 / size),
            f"√(3/{name})": np.sqrt(3 / size),
            f"√(6/((1 + √5)·{name}))": np.sqrt(6 / ((1 + np.sqrt(5)) * size)),
            f"√(6/((1 + 5²)·{name}))": np.sqrt(6 / (26 * size)),
            f"1/{name}": 1 / size,
            f"6/{name}": 6 / size,
            f"6/((1 + √5)·{name})": 6 / ((1 + np.sqrt(5)) * size),
            f"6/((1 + 5²)·{name})": 6 / (26 * size),
        }
    bounds |= {f"½·{name}": bound / 2 for name, bound in bounds.items() if name not in ("1", "½")}
    name = min(bounds, key=lambda name: abs(bounds[name] / most - 1))
    if not -1e-6 < bounds[name] / most - 1 < 1e-3:  # float32 may round it up
        name = f"about {most:.2g}"
    return f"between 0 and {name}" if A.min() >= 0 else f"between ±{name}" if A.min() < -0.99 * most else "to one side"


EXERCISE = Exercise(
    function="init_lora",
    title="Where A and B start",
    minutes=10,
    needs="notebook 02",
    cases=cases,
    observe=describe,
    tells=False,
    mistakes=(
        Mistake(
            "the bound b is computed from r instead of the number of input features",
            "One hidden feature is a sum: the product of one row of A and one token x. Does the number of terms in this "
            "sum depend on r?",
            {FAN: "fan_in = r"},
        ),
        Mistake(
            "the bound b is computed from the number of output features instead of the number of input features",
            "One hidden feature is a sum: the product of one row of A and one token x. Does the number of terms in this "
            "sum depend on the number of output features?",
            {FAN: "fan_in = out_features"},
        ),
        Mistake(
            "the slope a is left out of the bound b",
            "For 100 input features the bound b should be 0.1. Test it: print your bound. Which letter of the "
            "formula does your code not use?",
            {SLOPE: "a = 0"},
        ),
        Mistake(
            "the slope a is not squared in the bound b",
            "Test it: print your value of 1 + a² for a = √5. Is your value 6?",
            {BOUND: "bound = np.sqrt(6 / ((1 + a) * fan_in))"},
        ),
        Mistake(
            "the slope a is squared twice in the bound b",
            "The formula for b contains a², the square of a. Test it: print your value of 1 + a² for a = √5. "
            "Is your value 6?",
            {SLOPE: "a = 5"},
        ),
        Mistake(
            "the square root is missing in the bound b",
            "If the number of input features grows by a factor of 4, the bound b should be half as large. By "
            "what factor does your bound change?",
            {BOUND: "bound = 6 / ((1 + a**2) * fan_in)"},
        ),
        Mistake(
            "the bound b is used as the standard deviation of A",
            "Test it: print A.std() and abs(A).max() for a large A. Which of the two numbers should be close to b?",
            {BOUND: "bound = np.sqrt(3 / fan_in)"},
        ),
        Mistake(
            "the numbers of A are drawn from an interval that is half as wide as the interval from −b to b",
            "Test it: print A.min() and A.max() of a large A. Are these two numbers close to −b and b?",
            {DRAW_A: "rng.uniform(-bound / 2, bound / 2, (r, in_features))"},
        ),
        Mistake(
            "the bound b is not used for the numbers of A",
            "Test it: print abs(A).max() for 10 and for 1000 input features. The second number should be "
            "smaller. Is your second number smaller?",
            {NO_BOUND: "A = rng.uniform(-1, 1, "},
        ),
        Mistake(
            "the numbers of A are drawn between 0 and b instead of between −b and b",
            "Test it: print A.min() of a large A. Is this minimum close to −b?",
            {DRAW_A: "rng.uniform(0, bound, (r, in_features))"},
        ),
        Mistake(
            "the numbers of A are drawn from a normal distribution instead of a uniform distribution",
            "Test it: draw a histogram of a large A. The uniform distribution has no numbers below −b or above "
            "b. Does your A have such numbers?",
            {NO_BOUND: "A = rng.normal(0, 1 / r, "},
        ),
        Mistake(
            "the numbers of A are evenly spaced instead of random",
            "Test it: sort the numbers of A and print their np.diff. The differences of independent random "
            "numbers are not equal. Are your differences equal?",
            {DRAW_A: "rng.permutation(np.linspace(-bound, bound, r * in_features)).reshape(r, in_features)"},
            {DRAW_A: "np.linspace(-bound, bound, r * in_features).reshape(r, in_features)"},
        ),
        Mistake(
            "the rows of A are not independent of each other",
            "Two equal rows of A compute the same hidden feature. Test it: divide each row of A by the first row. "
            "Are all quotients in one row equal?",
            {DRAW_A: "np.tile(rng.uniform(-bound, bound, (1, in_features)), (r, 1))"},
            {DRAW_A: "np.repeat(rng.uniform(-bound, bound, (r // 2, in_features)), 2, axis=0)"},
        ),
        Mistake(
            "A starts at zero and B is random, but A must be random and B must start at zero",
            "According to the equation, which of the factors A and B starts at zero? Which factor starts at "
            "zero in your function?",
            {NO_BOUND: "A = np.zeros(", ZERO_B: "rng.uniform(-1, 1, (out_features, r))"},
        ),
        Mistake(
            "A and B are both random, but B must start at zero",
            "Test it: compute B @ A at the start. This product must be zero, so that the adapted model equals "
            "the base model. Is your product zero?",
            {ZERO_B: "rng.standard_normal((out_features, r))"},
        ),
        Mistake(
            "A and B are both zero, but A must be random",
            "If B is zero, dA is zero. If A is zero, dB is zero. Which of your two factors changes in the "
            "first training step?",
            {NO_BOUND: "A = np.zeros("},
        ),
        Mistake(
            "B starts with a number that is not zero",
            "At the start the adapted model must equal the base model. Test it: compute B @ A at the start. "
            "Is this product zero?",
            {ZERO_B: "np.ones((out_features, r))"},
        ),
        Mistake(
            "all numbers of A are equal",
            "Test it: compute x Aᵀ for some x. Are the r hidden features different from each other?",
            {NO_BOUND: "A = 0.1 * np.ones("},
        ),
        Mistake(
            "A has the transposed shape (in, r) instead of (r, in)",
            "The forward pass computes x Aᵀ. Test it: compute x Aᵀ with your A and an x of shape (2, in).",
            {SHAPE_A: "(in_features, r)"},
        ),
        Mistake(
            "B has the transposed shape (r, out) instead of (out, r)",
            "The forward pass computes (x Aᵀ) Bᵀ, and x Aᵀ has the shape (n, r). Test it: compute this "
            "product with your B for r and out that are not equal.",
            {SHAPE_B: "(r, out_features)"},
        ),
        Mistake(
            "the numbers of input and output features are swapped in the shapes of A and B",
            "Test it: print A.shape and B.shape for 5 input and 3 output features. Does the docstring have the same "
            "shapes?",
            {SHAPE_A: "(r, out_features)", SHAPE_B: "(in_features, r)"},
            {FAN: "fan_in = out_features", SHAPE_A: "(r, out_features)", SHAPE_B: "(in_features, r)"},
        ),
        Mistake(
            "the function returns B, A instead of A, B",
            "Test it: run A, B = init_lora(…) and print the two shapes. Does the docstring have the same shapes?",
            {"return A, B": "return B, A"},
        ),
        Mistake(
            "the random generator rng of the caller is not used",
            "Test it: call your function twice with np.random.default_rng(0) and once with "
            "np.random.default_rng(1). Only the first two results should be equal. Which of your results are "
            "equal?",
            {"rng.uniform": "np.random.uniform"},
            {"rng.uniform": "np.random.default_rng(0).uniform"},
        ),
    ),
)
