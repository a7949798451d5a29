"""What the adapter adds to the weight: ΔW = s·B A, with s = α/r, or α/√r for rsLoRA."""

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
            "there is no scaling at all",
            "Double alpha: ΔW should double. Does your function read alpha anywhere?",
            {SCALING: "1.0"},
        ),
        Mistake(
            "alpha alone is the scaling",
            "Make the factors longer with rows and columns of zeros: "
            "B A stays what it is, and the rank grows. Does your ΔW notice?",
            {SCALING: "alpha"},
        ),
        Mistake(
            "alpha is left out",
            "Your scaling falls with the rank as it should. Which knob is left with which a user makes the adapter louder?",
            {SCALING: "1 / divisor"},
        ),
        Mistake(
            "alpha is multiplied by the rank",
            "Compute your scaling for r = 8 and for r = 64. Which of the two was meant to be tamed?",
            {SCALING: "alpha * divisor"},
            {SCALING: "alpha * r"},
            {SCALING: "alpha / divisor if use_rslora else alpha * r"},
        ),
        Mistake(
            "the quotient stands on its head",
            "With alpha = r the scaling is 1, and your function is right. Now double alpha, and see what becomes of ΔW.",
            {SCALING: "divisor / alpha"},
        ),
        Mistake(
            "it divides by the rank twice",
            "Take alpha = r: the scaling ought to be 1, whatever they are. What is yours for 2 and 2, and for 8 and 8?",
            {SCALING: "alpha / divisor**2"},
            {SCALING: "alpha / divisor / r"},
            {SCALING: "alpha / divisor if use_rslora else alpha / r**2"},
        ),
        Mistake(
            "the scaling enters twice",
            "A factor that goes into B and into A has gone twice into their product. "
            "By how much does your ΔW grow when alpha doubles?",
            {SCALING: "(alpha / divisor) ** 2"},
        ),
        Mistake(
            "it divides without the remainder",
            "Your ΔW is right whenever r divides alpha. Try alpha = 3 with r = 2, and print the scaling.",
            {SCALING: "alpha // divisor"},
            {SCALING: "alpha / divisor if use_rslora else alpha // r"},
        ),
        Mistake(
            "rsLoRA is ignored",
            "Call it with use_rslora=True and with False, on the same factors of rank 4. What should differ?",
            {ROOT: "r"},
        ),
        Mistake(
            "rsLoRA is always on",
            "Plain LoRA comes out wrong, rsLoRA right. Where does your function look at its last argument?",
            {ROOT: "np.sqrt(r)"},
        ),
        Mistake(
            "use_rslora has the opposite effect",
            "Read your condition aloud, with the name of the case that each branch serves.",
            {ROOT: "r if use_rslora else np.sqrt(r)"},
        ),
        Mistake(
            "the root is taken of alpha too",
            "In rsLoRA ΔW is still proportional to alpha. "
            "Yours grows by less than twice when alpha doubles: what is under your root?",
            {SCALING: "np.sqrt(alpha / r) if use_rslora else alpha / r"},
        ),
        Mistake(
            "the root is taken of alpha and not of the rank",
            "What rsLoRA changes is what the rank does, and alpha goes on as before. Which of the two stands under your root?",
            {SCALING: "np.sqrt(alpha) / r if use_rslora else alpha / r"},
        ),
        Mistake(
            "the rank is squared where its root belongs",
            "rsLoRA was invented because LoRA damps high ranks too much. "
            "Is your scaling with rsLoRA larger or smaller than without?",
            {ROOT: "r**2 if use_rslora else r"},
        ),
        Mistake(
            "half the rank stands for its root",
            "At r = 4 your rsLoRA is right, and at no other rank. What else is 2, for r = 4?",
            {ROOT: "r / 2 if use_rslora else r"},
            {ROOT: "r // 2 if use_rslora else r"},
        ),
        Mistake(
            "the power 1/2 lacks its brackets",
            "Type 9**1/2 into a cell. In what order does Python read it?",
            {SCALING: "alpha / r**1 / 2 if use_rslora else alpha / r"},
        ),
        Mistake(
            "the root is rounded down",
            "Your rsLoRA is right for r = 1, 4, 9 and 16. "
            "What do those have in common, and what does your root do with the others?",
            {ROOT: "int(np.sqrt(r)) if use_rslora else r"},
        ),
        Mistake(
            "the rank is read off the wrong side",
            "Print the r that your function finds, beside the shapes of A and B. Which length do the two have in common?",
            {R: "r = A.shape[1]"},
            {R: "r = B.shape[0]"},
        ),
        Mistake(
            "the factors are multiplied in the wrong order",
            "A square example forgives you. What shape must ΔW have if it is to be added to W, "
            "and what shape does your product have?",
            {PRODUCT: "A @ B"},
        ),
        Mistake(
            "ΔW is transposed",
            "The result is to be added to W. Print both shapes for a W that is not square.",
            {PRODUCT: "(B @ A).T"},
        ),
        Mistake(
            "B is turned round",
            "It works where r equals out, by accident. "
            "Write the four sides of your product in a row: the two in the middle must mean the same.",
            {PRODUCT: "B.T @ A"},
        ),
        Mistake(
            "A is turned round",
            "It works where r equals in, by accident. Over which index does your product sum, and is it the rank on both sides?",
            {PRODUCT: "B @ A.T"},
        ),
    ),
)
