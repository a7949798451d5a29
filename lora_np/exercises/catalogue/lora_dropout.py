"""Dropout in front of the bypass: y = x Wᵀ + s·((x ∘ m) Aᵀ) Bᵀ and dx, with the same mask m for both.

_masks.py describes the dropout of an answer.
"""

from __future__ import annotations

import numpy as np

from ..exercise import Case, Exercise, Mistake
from ._masks import describe

KEPT, TIMES, DROPPED = "rng.random(x.shape) >= p", "1 / (1 - p)", "dropped = x * mask"
UP_AGAIN, BACK, RETURN_DX = "dropped @ A.T @ B.T", "dy @ B @ A", "dx_frozen + dx_dropped * mask"


def cases(seed: int | None = None) -> list[Case]:
    def case(label: str, seed: int, in_: int, out: int, r: int, scaling: float, p: float) -> Case:
        rng = np.random.default_rng(seed)  # chosen so that no two masks of a token have the same y or dx
        shapes = {"x": (6, in_), "W": (out, in_), "A": (r, in_), "B": (out, r), "dy": (6, out)}
        arrays = {
            name: rng.choice([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0], shape) for name, shape in shapes.items()
        }
        dy = arrays.pop("dy")
        return Case(label, arrays | {"scaling": scaling, "p": p, "rng": np.random.default_rng(6), "dy": dy})

    if seed is not None:
        new = case("random numbers", seed, 4, 5, 2, 3.5, 0.35)
        rng = np.random.default_rng(seed)
        for name in ("x", "W", "A", "B", "dy"):  # with random fractions, two masks do not give equal results by chance
            new.arguments[name] = rng.uniform(0.5, 2, new.arguments[name].shape) * np.sign(new.arguments[name])
        return [Case(new.label, new.arguments | {"rng": np.random.default_rng(seed + 1)})]
    return [
        case("everything square, r = 3, p = 0.15", 146, 3, 3, 3, 2.5, 0.15),
        case("all sizes different, p = 0.35", 1099, 4, 5, 2, 3.5, 0.35),
    ]


EXERCISE = Exercise(
    function="lora_dropout",
    title="Dropout in front of the bypass",
    minutes=20,
    needs="notebook 02 and exercise 3",
    cases=cases,
    observe=describe,
    tells=False,
    mistakes=(
        Mistake(
            "the frozen path x Wᵀ has dropout too",
            "Test it: set B to zero. Then y must equal x Wᵀ in every call. Does your y change from call to call?",
            {"frozen = x @ W.T": "frozen = dropped @ W.T", RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
            {"frozen = x @ W.T": "frozen = dropped @ W.T"},
        ),
        Mistake(
            "the whole gradient dx is masked, but only the part that comes from the bypass must be masked",
            "Only the bypass has the mask m. If the mask drops a number of x, this number still changes y through W. "
            "What is the gradient of this number in your dx?",
            {RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
        ),
        Mistake(
            "dropout is applied to the frozen path instead of the bypass",
            "Test it: set B to zero. Then y must equal x Wᵀ in every call. To which path does your code apply "
            "the mask?",
            {
                "frozen = x @ W.T": "frozen = dropped @ W.T",
                UP_AGAIN: "x @ A.T @ B.T",
                RETURN_DX: "dx_frozen * mask + dx_dropped",
            },
        ),
        Mistake(
            "the same dropout mask is used for all tokens",
            "Each number of x must be kept or dropped independently. Test it: print your mask. Do the rows of "
            "your mask differ?",
            {KEPT: "rng.random(x.shape[-1]) >= p"},
        ),
        Mistake(
            "all features of a token are dropped together",
            "Each number of x must be kept or dropped independently. Test it: print your mask for a few "
            "tokens. Does any row of your mask contain kept and dropped numbers?",
            {KEPT: "rng.random((len(x), 1)) >= p"},
        ),
        Mistake(
            "the whole input x is dropped or kept at once",
            "Each number of x must be kept or dropped independently. How many random numbers does your "
            "function draw for an x of shape (2, 3)?",
            {KEPT: "rng.random() >= p"},
        ),
        Mistake(
            "the backward pass draws a second dropout mask",
            "Each call returns y and dx, and dx must be the derivative of this y. How many masks does your function draw in "
            "one call?",
            {RETURN_DX: "dx_frozen + dx_dropped * (rng.random(x.shape) >= p) / (1 - p)"},
        ),
        Mistake(
            "the backward pass does not apply the dropout mask",
            "If the mask drops a number of x, this number does not change the bypass. What does the bypass add to "
            "your dx for this number?",
            {RETURN_DX: "dx_frozen + dx_dropped"},
            {RETURN_DX: "dx_frozen + dx_dropped / (1 - p)"},
        ),
        Mistake(
            "the kept numbers of x are not divided by 1 − p",
            "Test it: compute the mean of y over a thousand calls. Is your mean close to the y without dropout?",
            {TIMES: "1.0"},
        ),
        Mistake(
            "the forward pass does not divide the kept numbers of x by 1 − p",
            "The mean of y over many calls should equal the y without dropout. By which factor does your "
            "forward pass multiply the kept numbers of x?",
            {DROPPED: "dropped = x * kept"},
        ),
        Mistake(
            "the backward pass does not divide the gradients of the kept numbers by 1 − p",
            "In the forward pass each kept number of x is multiplied by a factor. Does your dx contain this factor?",
            {RETURN_DX: "dx_frozen + dx_dropped * kept"},
        ),
        Mistake(
            "the numbers of x are kept with probability p, but they must be dropped with probability p",
            "Test it: call your function with p = 0.01. About one in a hundred numbers of your mask should be "
            "zero. How many numbers are zero?",
            {KEPT: "rng.random(x.shape) < p"},
            {KEPT: "rng.random(x.shape) < p", TIMES: "1 / p"},
        ),
        Mistake(
            "half of the numbers of x are dropped for every p",
            "Test it: count the zeros in your mask for p = 0.1 and for p = 0.9. The share of zeros should be "
            "close to p. Is your share close to p?",
            {KEPT: "rng.random(x.shape) >= 0.5"},
            {KEPT: "rng.random(x.shape) >= 0.5", TIMES: "2.0"},
        ),
        Mistake(
            "the numbers of x are dropped with a probability other than p",
            "Test it: count the zeros in your mask for an x with a million numbers and p = 0.2. The share of "
            "zeros should be close to p. Is your share close to p?",
            {KEPT: "rng.random(x.shape) >= 2 * p"},
            {KEPT: "rng.random(x.shape) >= p / 2"},
            {KEPT: "rng.random(x.shape) >= 0.1"},
            {KEPT: "rng.random(x.shape) >= 0.1", TIMES: "1 / 0.9"},
        ),
        Mistake(
            "every call drops exactly the same number of features",
            "If each number is dropped independently, the count of dropped numbers varies. Test it: count the "
            "zeros of your mask in ten calls. Does your count vary?",
            {KEPT: "rng.permutation(x.size).reshape(x.shape) >= round(p * x.size)"},
        ),
        Mistake(
            "the kept numbers of x are divided by p instead of 1 − p",
            "Test it: call your function with p = 0.01. Few numbers are dropped, so the kept numbers should "
            "hardly change. By what factor do your kept numbers change?",
            {TIMES: "1 / p"},
        ),
        Mistake(
            "the kept numbers of x are made smaller instead of larger",
            "Dropout removes some terms of the sum x Aᵀ. Must the kept numbers become larger or smaller, so "
            "that the mean of the sum stays the same?",
            {TIMES: "1 - p"},
            {TIMES: "p"},
        ),
        Mistake(
            "dropout is applied to the output of the bypass instead of x",
            "Test it: set W to zero and print y. If the mask drops a feature of x, all numbers of y change. "
            "Are single numbers of your y zero?",
            {
                KEPT: "rng.random(dy.shape) >= p",
                DROPPED: "dropped = x",
                UP_AGAIN: "dropped @ A.T @ B.T * mask",
                BACK: "(dy * mask) @ B @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "dropout is applied to the hidden features x Aᵀ instead of x",
            "The equation multiplies x, of shape (n, in), by the mask m. Test it: print the shape of your mask. Is the "
            "shape (n, in)?",
            {
                KEPT: "rng.random((len(x), len(A))) >= p",
                DROPPED: "dropped = x",
                UP_AGAIN: "(dropped @ A.T * mask) @ B.T",
                BACK: "(dy @ B * mask) @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "dropout is applied to the output y of the layer instead of x",
            "Some numbers of your y are exactly zero, but the frozen path x Wᵀ has no dropout. To which array "
            "does your code apply the mask?",
            {
                KEPT: "rng.random(dy.shape) >= p",
                DROPPED: "dropped = x",
                "y = frozen + bypass": "y = (frozen + bypass) * mask",
                "dx_frozen = dy @ W": "dx_frozen = (dy * mask) @ W",
                BACK: "(dy * mask) @ B @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "the backward pass applies the dropout mask to dy instead of dx",
            "Your code runs only if in and out are equal. The forward pass multiplies the mask with x. Which "
            "gradient has the shape of x?",
            {BACK: "(dy * mask) @ B @ A", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "no number of x is dropped",
            "Test it: call your function with two generators that have different seeds. The two results "
            "should differ. Do your results differ?",
            {DROPPED: "dropped = x", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "the random generator rng of the caller is not used",
            "Test it: call your function twice, each time with a new np.random.default_rng(0), and then twice "
            "with one generator. The first two results should be equal, and the last two results should "
            "differ. Which of your results are equal?",
            {"rng.random": "np.random.random"},
            {"rng.random": "np.random.default_rng(0).random"},
        ),
        Mistake(
            "the factor scaling is missing both in y and in dx",
            "If the scaling doubles, the parts of y and dx that come from the bypass should double. Which argument "
            "does your code not use?",
            {"scaling * (dropped": "1.0 * (dropped", "scaling * (dy": "1.0 * (dy"},
        ),
        Mistake(
            "the factor scaling is missing in y",
            "If the scaling doubles, the part of y that comes from the bypass should double. Does this part of your "
            "y double?",
            {"scaling * (dropped": "1.0 * (dropped"},
        ),
        Mistake(
            "the factor scaling is missing in the gradient dx",
            "If the scaling doubles, the part of dx that comes from the bypass should double. Does this part of your "
            "dx double?",
            {"scaling * (dy": "1.0 * (dy"},
        ),
        Mistake(
            "the gradient dx lacks the part that comes from the frozen path x Wᵀ",
            "Test it: set B to zero. Then y still depends on x, through W. Is your dx zero?",
            {RETURN_DX: "dx_dropped * mask"},
        ),
        Mistake(
            "the output y lacks the frozen path x Wᵀ",
            "Test it: set B to zero. Then y should equal x Wᵀ. Does your y equal x Wᵀ?",
            {"y = frozen + bypass": "y = bypass"},
        ),
    ),
)
