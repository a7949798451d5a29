"""Dropout in front of the bypass: y = x Wᵀ + s·((x ∘ m) Aᵀ) Bᵀ and its dx, with one mask m for both. _masks.py looks at it."""

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
        case("no two sizes alike, p = 0.35", 1099, 4, 5, 2, 3.5, 0.35),
    ]


EXERCISE = Exercise(
    function="lora_dropout",
    title="Dropout in front of the bypass",
    minutes=20,
    needs="notebook 02, and the exercise on dA and dB",
    cases=cases,
    observe=describe,
    tells=False,
    mistakes=(
        Mistake(
            "the frozen path drops too",
            "Set B = 0: the adapted layer is its base, and its output should not be random. Is yours?",
            {"frozen = x @ W.T": "frozen = dropped @ W.T", RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
            {"frozen = x @ W.T": "frozen = dropped @ W.T"},
        ),
        Mistake(
            "the whole dx is masked",
            "A number of x that was dropped still reached y by the other path. What is its gradient, and what does yours say?",
            {RETURN_DX: "(dx_frozen + dx_dropped) * mask"},
        ),
        Mistake(
            "only the frozen path drops",
            "Set W = 0, so that only the bypass is left, and call the function twice. "
            "Which path was to be made noisy, the trained one or the other?",
            {
                "frozen = x @ W.T": "frozen = dropped @ W.T",
                UP_AGAIN: "x @ A.T @ B.T",
                RETURN_DX: "dx_frozen * mask + dx_dropped",
            },
        ),
        Mistake(
            "all tokens have the same mask",
            "Print your mask. How many decisions were made for a batch of a thousand tokens?",
            {KEPT: "rng.random(x.shape[-1]) >= p"},
        ),
        Mistake(
            "a token is dropped whole or not at all",
            "Print your mask for a few tokens. Can it happen that a token keeps one of its features and loses another?",
            {KEPT: "rng.random((len(x), 1)) >= p"},
        ),
        Mistake(
            "there is one decision for the whole input",
            "Call it ten times: in some of the calls the bypass is gone, in the others it is whole. How many numbers did you draw?",
            {KEPT: "rng.random() >= p"},
        ),
        Mistake(
            "the backward pass draws a mask of its own",
            "dx is the derivative of the y that was computed, not of another one. "
            "What would a difference quotient with the mask held fixed give?",
            {RETURN_DX: "dx_frozen + dx_dropped * (rng.random(x.shape) >= p) / (1 - p)"},
        ),
        Mistake(
            "the backward pass has no mask",
            "Take a number of x that was dropped, and change it: the bypass does not notice. What does your dx say of it?",
            {RETURN_DX: "dx_frozen + dx_dropped"},
            {RETURN_DX: "dx_frozen + dx_dropped / (1 - p)"},
        ),
        Mistake(
            "the kept numbers are not rescaled",
            "Take the mean of y over a thousand calls, and compare it with y at p = 0. What is lost, and how much of it?",
            {TIMES: "1.0"},
        ),
        Mistake(
            "the forward pass does not rescale",
            "Your dx is right, for another y than yours. Is the mean of your y over many calls what it is without dropout?",
            {DROPPED: "dropped = x * kept"},
        ),
        Mistake(
            "the backward pass does not rescale",
            "A number that was kept counts for more in the forward pass than without dropout. What follows for its gradient?",
            {RETURN_DX: "dx_frozen + dx_dropped * kept"},
        ),
        Mistake(
            "it keeps with probability p",
            "Try p = 0.01 on a large x, and count the zeros. How many would you expect when one in a hundred is dropped?",
            {KEPT: "rng.random(x.shape) < p"},
            {KEPT: "rng.random(x.shape) < p", TIMES: "1 / p"},
        ),
        Mistake(
            "half of them are dropped, whatever p",
            "Try p = 0.1 and p = 0.9. Does the share of zeros change?",
            {KEPT: "rng.random(x.shape) >= 0.5"},
            {KEPT: "rng.random(x.shape) >= 0.5", TIMES: "2.0"},
        ),
        Mistake(
            "another probability than p",
            "Count the zeros of your mask for an x with a million numbers. Is their share p? Try p = 0.2 and p = 0.4.",
            {KEPT: "rng.random(x.shape) >= 2 * p"},
            {KEPT: "rng.random(x.shape) >= p / 2"},
            {KEPT: "rng.random(x.shape) >= 0.1"},
            {KEPT: "rng.random(x.shape) >= 0.1", TIMES: "1 / 0.9"},
        ),
        Mistake(
            "equally many are dropped in every call",
            "Count the zeros of your mask, in ten calls. If all numbers but the last are decided, is the last one still free?",
            {KEPT: "rng.permutation(x.size).reshape(x.shape) >= round(p * x.size)"},
        ),
        Mistake(
            "the kept numbers are divided by p",
            "Let p go to zero: hardly anything is dropped, and your bypass grows without bounds. "
            "Which share of the numbers is left to carry the mean?",
            {TIMES: "1 / p"},
        ),
        Mistake(
            "the kept numbers are made smaller",
            "There are fewer terms in the sum, and you make each of them smaller too. "
            "Which way must they go if the mean is to stay?",
            {TIMES: "1 - p"},
            {TIMES: "p"},
        ),
        Mistake(
            "the bypass's output is dropped",
            "Look at a token whose mask has a zero: how many entries of the bypass change, "
            "compared with p = 0? A lost input feature changes all of them.",
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
            "With r = 1 your bypass is there for some tokens and gone for the others. Does one lost feature of many in x do that?",
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
            "Some entries of your y are exactly zero. How can that be, when the frozen path always arrives?",
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
            "the mask is put on dy",
            "It only fits when in equals out. Where on the way from x to y was the mask, "
            "at the beginning or at the end, and where is that on the way back?",
            {BACK: "(dy * mask) @ B @ A", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "nothing is dropped",
            "Call it twice with different generators: y is the same. That is right for evaluation; which mode was asked for?",
            {DROPPED: "dropped = x", RETURN_DX: "dx_frozen + dx_dropped"},
        ),
        Mistake(
            "the generator that it is given is not used",
            "Call it twice with default_rng(0), then ten times with one and the same generator. "
            "In which of the two should the masks repeat?",
            {"rng.random": "np.random.random"},
            {"rng.random": "np.random.default_rng(0).random"},
        ),
        Mistake(
            "the bypass lacks its scaling, forward and backward",
            "Set p so small that nothing is dropped, and compare with your answer to lora_forward. Which argument do you not use?",
            {"scaling * (dropped": "1.0 * (dropped", "scaling * (dy": "1.0 * (dy"},
        ),
        Mistake(
            "y lacks the scaling",
            "Your dx would be right if the bypass had its scaling. Double s: by how much does the bypass's part of y grow?",
            {"scaling * (dropped": "1.0 * (dropped"},
        ),
        Mistake(
            "dx lacks the scaling",
            "Your y is right. Double s and use the same seed: what x does through the bypass doubles. Does your dx say so?",
            {"scaling * (dy": "1.0 * (dy"},
        ),
        Mistake(
            "dx lacks the frozen path",
            "Set B = 0. Is y then independent of x? Compare with what your dx says.",
            {RETURN_DX: "dx_dropped * mask"},
        ),
        Mistake(
            "y lacks the frozen path",
            "Set B = 0, and print y. What should the layer compute before it has learned anything?",
            {"y = frozen + bypass": "y = bypass"},
        ),
    ),
)
