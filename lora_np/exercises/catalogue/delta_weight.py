"""The matrix that the adapter adds to the weight: ΔW = s·B A, with s = α/r, or α/√r for rsLoRA."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

R, ROOT, SCALING, PRODUCT = "r = A.shape[0]", "np.sqrt(r) if use_rslora else r", "alpha / divisor", "B @ A"


def cases() -> list[Case]:
    rng = np.random.default_rng(4)

    def case(label: str, out: int, in_: int, r: int, alpha: float, **flag: bool) -> Case:
        arrays: dict[str, Any] = {"A": rng.integers(-4, 5, (r, in_)) / 2, "B": rng.integers(-4, 5, (out, r)) / 2}
        return Case(label, arrays | {"alpha": alpha} | flag)

    return [
        case("everything square, r = 2", 2, 2, 2, 5, use_rslora=False),
        case("everything square, rsLoRA", 2, 2, 2, 5, use_rslora=True),
        case("three features out, four in, use_rslora not given", 3, 4, 2, 3),
        case("five features in, rsLoRA", 4, 5, 3, 6, use_rslora=True),
        case("as many features in as out", 5, 5, 3, 12, use_rslora=False),
        case("rank 6, rsLoRA", 6, 7, 6, 15, use_rslora=True),
    ]


EXERCISE = Exercise(
    function="delta_weight",
    title="ΔW, its scaling, and rsLoRA",
    minutes=10,
    needs="notebook 02",
    cases=cases,
    mistakes=(
        Mistake(
            "ΔW has no scaling",
            "If alpha doubles, ΔW should double. Does your function use alpha anywhere?",
            {SCALING: "1.0"},
        ),
        Mistake(
            "alpha alone is the scaling",
            "Print your scaling for alpha = 8, once with r = 2 and once with r = 8. The formula contains alpha and "
            "r. Which of the two does your scaling not use?",
            {SCALING: "alpha"},
        ),
        Mistake(
            "alpha is left out",
            "Your scaling depends on the rank, but not on alpha. If alpha doubles, ΔW should double.",
            {SCALING: "1 / divisor"},
        ),
        Mistake(
            "alpha is multiplied by the rank",
            "Print your scaling for r = 8 and for r = 64. Should the scaling grow or shrink with the rank?",
            {SCALING: "alpha * divisor"},
            {SCALING: "alpha * r"},
            {SCALING: "alpha / divisor if use_rslora else alpha * r"},
        ),
        Mistake(
            "the quotient is inverted (r over alpha)",
            "If alpha doubles, ΔW should double. By what factor does your ΔW change?",
            {SCALING: "divisor / alpha"},
        ),
        Mistake(
            "the scaling divides by the rank twice",
            "With alpha = r the scaling of plain LoRA is 1. Print your scaling for alpha = r = 2 and for alpha = r "
            "= 8.",
            {SCALING: "alpha / divisor**2"},
            {SCALING: "alpha / divisor / r"},
            {SCALING: "alpha / divisor if use_rslora else alpha / r**2"},
        ),
        Mistake(
            "the scaling enters twice",
            "If alpha doubles, ΔW should double. By what factor does your ΔW grow, and which lines multiply by "
            "the scaling?",
            {SCALING: "(alpha / divisor) ** 2"},
        ),
        Mistake(
            "the division is rounded down",
            "If r divides alpha, this mistake makes no difference. Print your scaling for alpha = 3 and r = 2.",
            {SCALING: "alpha // divisor"},
            {SCALING: "alpha / divisor if use_rslora else alpha // r"},
        ),
        Mistake(
            "rsLoRA is ignored",
            "Call your function with use_rslora=True and with False on factors of rank 4. The two results should differ "
            "by a factor of 2.",
            {ROOT: "r"},
        ),
        Mistake(
            "rsLoRA is always on",
            "Print your scaling for use_rslora=True and for False, with the same r and alpha. Which line reads "
            "use_rslora?",
            {ROOT: "np.sqrt(r)"},
        ),
        Mistake(
            "use_rslora has the opposite effect",
            "Print your scaling for use_rslora=True and for False, and compare the two numbers with the two formulas.",
            {ROOT: "r if use_rslora else np.sqrt(r)"},
        ),
        Mistake(
            "the root is taken of alpha too",
            "With rsLoRA ΔW is still proportional to alpha. If alpha doubles, your ΔW grows by less than a factor of 2. "
            "Which quantities are under your root?",
            {SCALING: "np.sqrt(alpha / r) if use_rslora else alpha / r"},
        ),
        Mistake(
            "the root is taken of alpha instead of the rank",
            "Only the rank is under the root in rsLoRA's formula. Which quantity is under your root?",
            {SCALING: "np.sqrt(alpha) / r if use_rslora else alpha / r"},
        ),
        Mistake(
            "the square of the rank is used instead of its root",
            "For r > 1 the scaling of rsLoRA is larger than the scaling of LoRA. Is your scaling for rsLoRA larger?",
            {ROOT: "r**2 if use_rslora else r"},
        ),
        Mistake(
            "half the rank is used instead of its square root",
            "For r = 4 this mistake makes no difference. Print your denominator for r = 9. Which two operations "
            "give 2 for r = 4?",
            {ROOT: "r / 2 if use_rslora else r"},
            {ROOT: "r // 2 if use_rslora else r"},
        ),
        Mistake(
            "the power 1/2 lacks its brackets",
            "Run 9**1/2 in a cell. In which order does Python compute it?",
            {SCALING: "alpha / r**1 / 2 if use_rslora else alpha / r"},
        ),
        Mistake(
            "the root is rounded down",
            "For r = 1, 4, 9 and 16 this mistake makes no difference. Print your root for r = 2.",
            {ROOT: "int(np.sqrt(r)) if use_rslora else r"},
        ),
        Mistake(
            "the rank is read from the wrong axis",
            "Print the r of your function, A.shape and B.shape. A is (r, in) and B is (out, r).",
            {R: "r = A.shape[1]"},
            {R: "r = B.shape[0]"},
        ),
        Mistake(
            "the factors are multiplied in the wrong order",
            "If in equals out, the shapes of B and A fit by accident. Which shape must ΔW have so that it can be added "
            "to W, and which shape does your product have?",
            {PRODUCT: "A @ B"},
        ),
        Mistake(
            "ΔW is transposed",
            "ΔW is added to W. Print both shapes for a W that is not square.",
            {PRODUCT: "(B @ A).T"},
        ),
        Mistake(
            "B is transposed in the product",
            "If r equals out, your code runs without an error. Write the shapes of your two factors side by side. "
            "Do the two inner axes both have the length r?",
            {PRODUCT: "B.T @ A"},
        ),
        Mistake(
            "A is transposed in the product",
            "If r equals in, your code runs without an error. Write the shapes of your two factors side by side. "
            "Do the two inner axes both have the length r?",
            {PRODUCT: "B @ A.T"},
        ),
    ),
)
