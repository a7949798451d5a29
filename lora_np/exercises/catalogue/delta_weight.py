"""The matrix that the adapter adds to the weight: ΔW = s·B A, with s = α/r, or α/√r for rsLoRA."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

R, ROOT, SCALING, PRODUCT = "r = A.shape[0]", "np.sqrt(r) if use_rslora else r", "alpha / divisor", "B @ A"


def cases(seed: int = 4) -> list[Case]:
    rng = np.random.default_rng(seed)

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
            "ΔW is not multiplied by a scaling",
            "If alpha doubles, ΔW should double. Does your function use alpha anywhere?",
            {SCALING: "1.0"},
        ),
        Mistake(
            "the scaling of plain LoRA is alpha instead of alpha/r",
            "Test it: print your scaling for alpha = 8, once with r = 2 and once with r = 8. Does your "
            "scaling depend on r?",
            {SCALING: "alpha"},
        ),
        Mistake(
            "alpha is left out of the scaling",
            "If alpha doubles, ΔW should double. Does your scaling depend on alpha?",
            {SCALING: "1 / divisor"},
        ),
        Mistake(
            "alpha is multiplied by the rank r, but it must be divided by r",
            "Test it: print your scaling for r = 8 and for r = 64. Does your scaling become smaller when the "
            "rank grows?",
            {SCALING: "alpha * divisor"},
            {SCALING: "alpha * r"},
            {SCALING: "alpha / divisor if use_rslora else alpha * r"},
        ),
        Mistake(
            "the scaling is inverted: r/alpha instead of alpha/r",
            "If alpha doubles, ΔW should double. By what factor does your ΔW change?",
            {SCALING: "divisor / alpha"},
        ),
        Mistake(
            "the scaling divides alpha by the rank r twice",
            "With alpha = r the scaling of plain LoRA is 1. Test it: print your scaling for alpha = r = 2 and "
            "for alpha = r = 8.",
            {SCALING: "alpha / divisor**2"},
            {SCALING: "alpha / divisor / r"},
            {SCALING: "alpha / divisor if use_rslora else alpha / r**2"},
        ),
        Mistake(
            "ΔW is multiplied by the scaling twice",
            "If alpha doubles, ΔW should double. By what factor does your ΔW grow?",
            {SCALING: "(alpha / divisor) ** 2"},
        ),
        Mistake(
            "the quotient alpha/r is rounded down to a whole number",
            "The mistake makes no difference if r divides alpha. Test it: print your scaling for alpha = 3 and r = 2.",
            {SCALING: "alpha // divisor"},
            {SCALING: "alpha / divisor if use_rslora else alpha // r"},
        ),
        Mistake(
            "the argument use_rslora has no effect: the scaling is always the scaling of plain LoRA",
            "Test it: call your function on factors of rank 4, first with use_rslora=True and then with "
            "use_rslora=False. The first result should be twice the second result. Are your two results equal?",
            {ROOT: "r"},
        ),
        Mistake(
            "the argument use_rslora has no effect: the scaling is always the scaling of rsLoRA",
            "Test it: print your scaling for use_rslora=True and for use_rslora=False, with the same r and "
            "alpha. Which line reads use_rslora?",
            {ROOT: "np.sqrt(r)"},
        ),
        Mistake(
            "the scalings for use_rslora=True and use_rslora=False are exchanged",
            "Test it: print your scaling for use_rslora=True and for use_rslora=False. Which of the two numbers "
            "should be alpha/√r?",
            {ROOT: "r if use_rslora else np.sqrt(r)"},
        ),
        Mistake(
            "the scaling of rsLoRA has alpha under the square root too",
            "With rsLoRA ΔW is still proportional to alpha. Which quantities are under your square root?",
            {SCALING: "np.sqrt(alpha / r) if use_rslora else alpha / r"},
        ),
        Mistake(
            "the scaling of rsLoRA takes the square root of alpha instead of r",
            "In the formula of rsLoRA only the rank is under the square root. Which quantity is under your "
            "square root?",
            {SCALING: "np.sqrt(alpha) / r if use_rslora else alpha / r"},
        ),
        Mistake(
            "the scaling of rsLoRA divides by the square of r instead of the square root of r",
            "If r > 1, the scaling of rsLoRA is larger than the scaling of plain LoRA with the same r and alpha. Does "
            "your function give rsLoRA a larger scaling?",
            {ROOT: "r**2 if use_rslora else r"},
        ),
        Mistake(
            "the scaling of rsLoRA divides by half of r instead of the square root of r",
            "The mistake makes no difference for r = 4. Test it: print your denominator for r = 9. Is your "
            "denominator 3?",
            {ROOT: "r / 2 if use_rslora else r"},
            {ROOT: "r // 2 if use_rslora else r"},
        ),
        Mistake(
            "the exponent 1/2 of the square root lacks its brackets",
            "Test it: run 9**1/2 in a cell. Does Python compute the power or the division first?",
            {SCALING: "alpha / r**1 / 2 if use_rslora else alpha / r"},
        ),
        Mistake(
            "the square root of the rank is rounded down to a whole number",
            "The mistake makes no difference for r = 1, 4, 9 and 16. Test it: print your square root for r = 2.",
            {ROOT: "int(np.sqrt(r)) if use_rslora else r"},
        ),
        Mistake(
            "the rank r is read from the wrong axis of A or B",
            "Test it: print your r, A.shape and B.shape. A has the shape (r, in) and B has the shape (out, r).",
            {R: "r = A.shape[1]"},
            {R: "r = B.shape[0]"},
        ),
        Mistake(
            "the factors of ΔW are multiplied in the wrong order",
            "ΔW is added to W, so ΔW must have the shape of W. Which shape does your product have if in and "
            "out are not equal?",
            {PRODUCT: "A @ B"},
        ),
        Mistake(
            "the product ΔW is transposed",
            "ΔW is added to W. Test it: print the shapes of ΔW and W for a W that is not square.",
            {PRODUCT: "(B @ A).T"},
        ),
        Mistake(
            "the factor B is transposed in the product",
            "For a square B (r = out) your code runs without an error. Write down the shapes of your two "
            "factors. Do the two inner axes both have the length r?",
            {PRODUCT: "B.T @ A"},
        ),
        Mistake(
            "the factor A is transposed in the product",
            "For a square A (r = in) your code runs without an error. Write down the shapes of your two "
            "factors. Do the two inner axes both have the length r?",
            {PRODUCT: "B @ A.T"},
        ),
    ),
)
