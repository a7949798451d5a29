"""Dropout in front of the bypass: y = x Wᵀ + s·((x ∘ m) Aᵀ) Bᵀ and dx, with the same mask m for both.

_masks.py describes the dropout of an answer.
"""

from __future__ import annotations

import numpy as np

from ..exercise import Case, Exercise, Mistake
from ._masks import describe

KEPT, TIMES, DROPPED = "rng.random(x.shape) >= p", "1 / (1 - p)", "dropped = x * mask"
UP_AGAIN, BACK, RETURN_DX = "dropped @ A.T @ B.T", "dy @ B @ A", "dx_frozen + dx_dropped * mask"


def cases() -> list[Case]:
    def case(label: str, seed: int, in_: int, out: int, r: int, scaling: float, p: float) -> Case:
        rng = np.random.default_rng(seed)  # chosen so that no two masks of a token have the same y or dx
        shapes = {"x": (6, in_), "W": (out, in_), "A": (r, in_), "B": (out, r), "dy": (6, out)}
        arrays = {
            name: rng.choice([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0], shape) for name, shape in shapes.items()
        }
        dy = arrays.pop("dy")
        return Case(label, arrays | {"scaling": scaling, "p": p, "rng": np.random.default_rng(6), "dy": dy})

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
            "the frozen path has dropout too",
            "Set B = 0. Then y must equal x Wᵀ in every call. Is your y random?",
            {"frozen = x @ W.T": "frozen = dropped @ W.T", RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
            {"frozen = x @ W.T": "frozen = dropped @ W.T"},
        ),
        Mistake(
            "the whole dx is masked",
            "A number of x that the mask sets to zero still reaches y through W. So the gradient of this number is "
            "not zero. What is this gradient in your dx?",
            {RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
        ),
        Mistake(
            "only the frozen path has dropout",
            "Set B = 0. Then y must equal x Wᵀ in every call. Which path should have the mask: the frozen "
            "path or the bypass?",
            {
                "frozen = x @ W.T": "frozen = dropped @ W.T",
                UP_AGAIN: "x @ A.T @ B.T",
                RETURN_DX: "dx_frozen * mask + dx_dropped",
            },
        ),
        Mistake(
            "all tokens have the same mask",
            "Print your mask. Each number of x must be kept or dropped independently. Do the rows of your mask differ?",
            {KEPT: "rng.random(x.shape[-1]) >= p"},
        ),
        Mistake(
            "all features of a token are dropped together",
            "Print your mask for a few tokens. A token can keep one feature and lose another. Does this happen in "
            "your mask?",
            {KEPT: "rng.random((len(x), 1)) >= p"},
        ),
        Mistake(
            "the whole input is dropped or kept at once",
            "Call your function ten times. In some calls the whole bypass is zero, in other calls no number is dropped. How many "
            "random numbers do you draw?",
            {KEPT: "rng.random() >= p"},
        ),
        Mistake(
            "the backward pass draws a mask of its own",
            "dx is the derivative of the y that was computed. Hold the mask fixed and compare dx with a "
            "difference quotient of y.",
            {RETURN_DX: "dx_frozen + dx_dropped * (rng.random(x.shape) >= p) / (1 - p)"},
        ),
        Mistake(
            "the backward pass has no mask",
            "Change a number of x that the mask sets to zero. The bypass does not change. What is the bypass's part "
            "of your dx for this number?",
            {RETURN_DX: "dx_frozen + dx_dropped"},
            {RETURN_DX: "dx_frozen + dx_dropped / (1 - p)"},
        ),
        Mistake(
            "the kept numbers are not rescaled",
            "Compute the mean of y over a thousand calls. It should be close to the y without dropout. Is your mean "
            "close to this y?",
            {TIMES: "1.0"},
        ),
        Mistake(
            "the forward pass does not rescale the kept numbers",
            "Compute the mean of y over a thousand calls. It should be close to the y without dropout. Print "
            "the factor by which the forward pass multiplies the kept numbers.",
            {DROPPED: "dropped = x * kept"},
        ),
        Mistake(
            "the backward pass does not rescale the kept numbers",
            "In y, each kept number is multiplied by a factor. Which factor must its gradient have? Compare "
            "with a difference quotient with the same mask.",
            {RETURN_DX: "dx_frozen + dx_dropped * kept"},
        ),
        Mistake(
            "numbers are kept with probability p instead of dropped",
            "Call your function with p = 0.01 and count the zeros in your mask. About one number in a hundred "
            "should be zero.",
            {KEPT: "rng.random(x.shape) < p"},
            {KEPT: "rng.random(x.shape) < p", TIMES: "1 / p"},
        ),
        Mistake(
            "half of the numbers are dropped for every p",
            "Count the zeros in your mask for p = 0.1 and for p = 0.9. The share should be p.",
            {KEPT: "rng.random(x.shape) >= 0.5"},
            {KEPT: "rng.random(x.shape) >= 0.5", TIMES: "2.0"},
        ),
        Mistake(
            "numbers are dropped with a probability other than p",
            "Count the zeros in your mask for an x with a million numbers, with p = 0.2 and with p = 0.4. The "
            "share should be p.",
            {KEPT: "rng.random(x.shape) >= 2 * p"},
            {KEPT: "rng.random(x.shape) >= p / 2"},
            {KEPT: "rng.random(x.shape) >= 0.1"},
            {KEPT: "rng.random(x.shape) >= 0.1", TIMES: "1 / 0.9"},
        ),
        Mistake(
            "the same number of features is dropped in every call",
            "Count the zeros in your mask in ten calls. If the numbers are dropped independently, the count "
            "varies from call to call.",
            {KEPT: "rng.permutation(x.size).reshape(x.shape) >= round(p * x.size)"},
        ),
        Mistake(
            "the kept numbers are divided by p",
            "Call your function with p = 0.01. Hardly anything is dropped, so the kept numbers should hardly "
            "change. By what factor do your kept numbers change?",
            {TIMES: "1 / p"},
        ),
        Mistake(
            "the kept numbers are made smaller",
            "Some terms of the sum are dropped. Must the kept numbers become larger or smaller, so that the "
            "mean of the sum stays the same?",
            {TIMES: "1 - p"},
            {TIMES: "p"},
        ),
        Mistake(
            "the bypass's output is dropped",
            "Set W = 0 and print y. If a feature of x is dropped, all entries of y change. In your y, single "
            "entries are zero. Where is your mask applied?",
            {
                KEPT: "rng.random(dy.shape) >= p",
                DROPPED: "dropped = x",
                UP_AGAIN: "dropped @ A.T @ B.T * mask",
                BACK: "(dy * mask) @ B @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "the hidden features are dropped",
            "Print the shape of your mask. The equation multiplies m with x, which has the shape (n, in).",
            {
                KEPT: "rng.random((len(x), len(A))) >= p",
                DROPPED: "dropped = x",
                UP_AGAIN: "(dropped @ A.T * mask) @ B.T",
                BACK: "(dy @ B * mask) @ A",
                RETURN_DX: "dx_frozen + dx_dropped",
            },
        ),
        Mistake(
            "the layer's output is dropped",
            "Some entries of your y are exactly zero. The frozen path x Wᵀ has no mask. Where is your mask applied?",
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
            "the mask is applied to dy",
            "Your code runs only if in equals out. The mask multiplies x in the forward pass. Which gradient has "
            "the shape of x?",
            {BACK: "(dy * mask) @ B @ A", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "no number is dropped",
            "Call your function with two different generators. The two results should differ, because dropout is "
            "random in training.",
            {DROPPED: "dropped = x", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "the given generator is not used",
            "Call your function twice, each time with a new np.random.default_rng(0): the results should be equal. "
            "Call your function twice with one generator object: the results should differ. Do they?",
            {"rng.random": "np.random.random"},
            {"rng.random": "np.random.default_rng(0).random"},
        ),
        Mistake(
            "the bypass lacks its scaling, forward and backward",
            "If the scaling doubles, the bypass should double, in y and in dx. Which argument do you not use?",
            {"scaling * (dropped": "1.0 * (dropped", "scaling * (dy": "1.0 * (dy"},
        ),
        Mistake(
            "y lacks the scaling",
            "If the scaling doubles, the bypass's part of y should double. Does it in your y?",
            {"scaling * (dropped": "1.0 * (dropped"},
        ),
        Mistake(
            "dx lacks the scaling",
            "If the scaling doubles, the bypass's part of dx should double. Does it in your dx?",
            {"scaling * (dy": "1.0 * (dy"},
        ),
        Mistake(
            "dx lacks the frozen path",
            "Set B = 0. Then y = x Wᵀ still depends on x. What is your dx?",
            {RETURN_DX: "dx_dropped * mask"},
        ),
        Mistake(
            "y lacks the frozen path",
            "Set B = 0. Then y should equal x Wᵀ. What is your y?",
            {"y = frozen + bypass": "y = bypass"},
        ),
    ),
)
