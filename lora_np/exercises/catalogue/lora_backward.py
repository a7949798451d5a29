"""The gradients dA, dB and dx of L = mean over the tokens of ½‖y − target‖², with y = x Wᵀ + s·(x Aᵀ) Bᵀ.

The function adds dA and dB to the gradients of earlier calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake

DY, HIDDEN, DHIDDEN = "dy = error / n", "hidden = x @ A.T", "dhidden = dy @ B"
DA, DB = "scaling * (dhidden.T @ x)", "scaling * (dy.T @ hidden)"
FROZEN, BYPASS = "frozen = dy @ W", "bypass = scaling * (dhidden @ A)"
ADD_A, ADD_B, RETURN = 'grads["A"] += dA', 'grads["B"] += dB', "return frozen + bypass"


def observe(function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    """Return dx and the two accumulated gradients, and whether the function also computed a gradient for W."""
    *others, grads = arguments
    grads = {name: gradient.copy() for name, gradient in grads.items()}
    seen = {"dx": function(*others, grads), 'grads["A"]': grads.get("A"), 'grads["B"]': grads.get("B")}
    return seen | ({"a gradient for W": True} if "W" in grads else {})


def cases() -> list[Case]:
    rng = np.random.default_rng(3)

    def halves(*shape: int) -> np.ndarray:
        """Return random multiples of ½ from −2 to 2, without 0: they are easy to compute with by hand."""
        return rng.choice([-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0], shape)

    def case(label: str, n: int, in_: int, out: int, r: int, scaling: float) -> Case:
        shapes = {"x": (n, in_), "W": (out, in_), "A": (r, in_), "B": (out, r)}
        arguments: dict[str, Any] = {"error": halves(n, out) * n}  # divided by n, the numbers are halves
        arguments |= {name: halves(*shape) for name, shape in shapes.items()} | {"scaling": scaling}
        return Case(label, arguments | {"grads": {"A": halves(r, in_), "B": halves(out, r)}})

    return [
        case("a single token", 1, 3, 4, 2, 1.5),
        case("everything square, r = 3", 4, 3, 3, 3, 1.5),
        case("as many features in as out", 5, 3, 3, 2, 2.5),
        case("all sizes different", 5, 4, 3, 2, 0.5),
    ]


EXERCISE = Exercise(
    function="lora_backward",
    title="dA and dB",
    minutes=25,
    needs="notebook 03",
    cases=cases,
    observe=observe,
    mistakes=(
        Mistake(
            "the scaling is missing in all gradients",
            "If the scaling doubles, the bypass doubles, and a change of A or B acts twice as strongly. By what "
            "factor do your gradients change?",
            {DA: "dhidden.T @ x", DB: "dy.T @ hidden", BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the scaling is missing in dA",
            "Compare dA with a difference quotient, with scaling = 1 and then with scaling = 2, for the same error. "
            "The quotient doubles. Does your dA double?",
            {DA: "dhidden.T @ x"},
        ),
        Mistake(
            "the scaling is missing in dB",
            "Compare dB with a difference quotient, with scaling = 1 and then with scaling = 2. Which factors "
            "multiply Bᵀ in the equation for y?",
            {DB: "dy.T @ hidden"},
        ),
        Mistake(
            "the scaling is missing in dx",
            "In the equation for y, follow x through the bypass. Which factor of that path is missing in your dx?",
            {BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the scaling is missing in dA and dx",
            "dA and dx are both computed from the gradient of the hidden features x Aᵀ. Which two factors multiply "
            "x Aᵀ in the equation for y? Are both factors in that gradient?",
            {DA: "dhidden.T @ x", BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the scaling enters all gradients twice",
            "Keep the error and double the scaling: dA should double. By what factor does your dA grow?",
            {
                DA: "scaling**2 * dhidden.T @ x",
                DB: "scaling**2 * dy.T @ hidden",
                BYPASS: "bypass = scaling**2 * dhidden @ A",
            },
        ),
        Mistake(
            "the scaling enters dA twice",
            "Keep the error and double the scaling: dA should double. By what factor does your dA grow, and which "
            "lines multiply by the scaling?",
            {DA: "scaling**2 * (dhidden.T @ x)"},
        ),
        Mistake(
            "the scaling enters dA and dx twice",
            "dA and dx are both computed from the gradient of the hidden features. Is the scaling already in "
            "that gradient?",
            {DHIDDEN: "dhidden = scaling * (dy @ B)"},
        ),
        Mistake(
            "dy already contains the scaling",
            "dy is ∂L/∂y and depends only on the error and on n. Where does the scaling first appear when "
            "you go from y back to B?",
            {DY: "dy = scaling * error / n"},
        ),
        Mistake(
            "the scaling enters dB twice",
            "If your hidden features x Aᵀ already contain the scaling, you must not multiply by it again in "
            "dB. Count the factors in dB.",
            {DB: "scaling**2 * (dy.T @ hidden)"},
        ),
        Mistake(
            "the scaling enters dx twice",
            "Keep the error, set W to zero and double the scaling: dx should double. By what factor does your dx grow?",
            {BYPASS: "bypass = scaling**2 * (dhidden @ A)"},
        ),
        Mistake(
            "A and B are swapped in the backward pass",
            "If in equals out, your code runs without an error. At the start B is zero: should dA be zero then? Is "
            "your dA zero?",
            {HIDDEN: "hidden = x @ B", DHIDDEN: "dhidden = dy @ A.T", BYPASS: "bypass = scaling * (dhidden @ B.T)"},
            {HIDDEN: "hidden = x @ B", DHIDDEN: "dhidden = dy @ A.T", BYPASS: "bypass = scaling * (dy @ B @ A)"},
            {HIDDEN: "hidden = x @ B.T", DHIDDEN: "dhidden = dy @ A", BYPASS: "bypass = scaling * (dy @ A @ B)"},
            {HIDDEN: "hidden = x @ B.T", DHIDDEN: "dhidden = dy @ A", BYPASS: "bypass = scaling * (dy @ B @ A)"},
        ),
        Mistake(
            "dA is added to B's gradient, and dB to A's",
            "A gradient has the shape of its parameter. Print the shapes of dA and dB, and of the arrays in grads.",
            {ADD_A: 'grads["A"] += dB', ADD_B: 'grads["B"] += dA'},
        ),
        Mistake(
            "dA is transposed",
            "If r equals in, your code runs without an error. Which shape must dA have so that A − lr · dA is "
            "possible?",
            {DA: "scaling * (x.T @ dhidden)"},
        ),
        Mistake(
            "dB is transposed",
            "If r equals out, your code runs without an error. Which shape must dB have so that B − lr · dB is "
            "possible?",
            {DB: "scaling * (hidden.T @ dy)"},
        ),
        Mistake(
            "W is transposed in dx",
            "For a square W your code runs without an error. Write the shapes: dy is (n, out) and dx is (n, in). "
            "Which shape must the matrix between them have?",
            {FROZEN: "frozen = dy @ W.T"},
        ),
        Mistake(
            "B is transposed in the backward pass",
            "If r equals out, your code runs without an error. Write the shapes: dy is (n, out) and the gradient "
            "of the hidden features is (n, r).",
            {DHIDDEN: "dhidden = dy @ B.T"},
        ),
        Mistake(
            "A is not transposed in x Aᵀ",
            "If r equals in, your code runs without an error. Compute the r hidden features of one token with a "
            "loop, and compare.",
            {HIDDEN: "hidden = x @ A"},
        ),
        Mistake(
            "A is transposed in dx",
            "If r equals in, your code runs without an error. Write the shapes: the gradient of the hidden "
            "features is (n, r) and dx is (n, in).",
            {BYPASS: "bypass = scaling * (dhidden @ A.T)"},
        ),
        Mistake(
            "the gradients are overwritten",
            "Call your function twice with the same grads. After the second call, grads should hold the sum "
            "of both calls. Does it?",
            {ADD_A: 'grads["A"] = dA', ADD_B: 'grads["B"] = dB'},
            {ADD_A: 'grads["A"] = dA'},
            {ADD_B: 'grads["B"] = dB'},
        ),
        Mistake(
            "dA and dB are not stored in grads",
            "Print grads before and after a call. Which of your lines changes the arrays in grads?",
            {ADD_A: "pass", ADD_B: "pass", RETURN: "return frozen + bypass, dA, dB"},
            {ADD_A: "pass", ADD_B: "pass"},
        ),
        Mistake(
            "a gradient is computed for W too",
            "W is frozen: the optimizer must not move it, and its gradient needs as much memory as W. Which line "
            "computes this gradient?",
            {RETURN: 'grads["W"] = dy.T @ x\n    return frozen + bypass'},
            {RETURN: "return frozen + bypass, dy.T @ x"},
            {RETURN: "return dy.T @ x, frozen + bypass"},
        ),
        Mistake(
            "dx is not returned",
            "The layers below need dx to compute their own gradients. What does your function return?",
            {RETURN: "return None"},
        ),
        Mistake(
            "dx lacks the frozen path",
            "Set B to zero. Then y = x Wᵀ still depends on x. What is your dx?",
            {RETURN: "return bypass"},
        ),
        Mistake(
            "dx lacks the bypass",
            "Set W to zero. Then y still depends on x, through A and B. What is your dx?",
            {RETURN: "return frozen"},
        ),
        Mistake(
            "the frozen path of dx is scaled too",
            "Set B to zero and change the scaling: y stays the same, so dx should stay the same. Does your dx?",
            {FROZEN: "frozen = scaling * (dy @ W)"},
        ),
        Mistake(
            "the mean over the tokens is forgotten",
            "Repeat every token. L is a mean and stays the same, so dA and dB should stay the same. Do your dA and dB?",
            {DY: "dy = error"},
        ),
        Mistake(
            "the mean over the tokens is forgotten in dx",
            "L is a mean over the tokens, so dx has a factor 1/n. Is this factor in your dx? Compare dx with a "
            "difference quotient of L.",
            {FROZEN: "frozen = error @ W", BYPASS: "bypass = scaling * (error @ B @ A)"},
        ),
        Mistake(
            "the mean over the tokens is taken twice",
            "With one token this mistake makes no difference. With ten tokens the gradients become ten times too small. How "
            "often do you divide by n?",
            {DY: "dy = error / n**2"},
            {DA: "scaling * (dhidden.T @ x) / n", DB: "scaling * (dy.T @ hidden) / n"},
        ),
        Mistake(
            "the mean is taken over all numbers of the error",
            "L divides by the number of tokens n only. Print the number that you divide by, for an error of "
            "shape (2, 4).",
            {DY: "dy = error / error.size"},
        ),
        Mistake(
            "the mean is taken over the output features",
            "L divides by the number of tokens n. Print the number that you divide by, for an error of shape (2, 4).",
            {DY: "dy = error / error.shape[1]"},
        ),
        Mistake(
            "all gradients are twice as large as they should be",
            "L contains the factor ½. What is the derivative of ½(y − target)² with respect to y?",
            {DY: "dy = 2 * error / n"},
        ),
        Mistake(
            "all gradients are half as large as they should be",
            "What is the derivative of ½(y − target)² with respect to y? Does the derivative still contain ½?",
            {DY: "dy = error / 2 / n"},
        ),
        Mistake(
            "all signs are reversed",
            "Add a small multiple of your dA to A and compute L again. L should rise along the gradient. Does it?",
            {DY: "dy = -error / n"},
        ),
        Mistake(
            "dA and dB are subtracted from grads",
            "Your function takes a step against the gradient. In this exercise the gradients are only added to "
            "grads. The optimizer takes the step later.",
            {ADD_A: 'grads["A"] -= dA', ADD_B: 'grads["B"] -= dB'},
        ),
    ),
)
