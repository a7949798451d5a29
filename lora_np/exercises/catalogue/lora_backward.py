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


def cases(seed: int = 3) -> list[Case]:
    rng = np.random.default_rng(seed)

    def halves(*shape: int) -> np.ndarray:
        """Return random multiples of ½ from −2 to 2, except 0. Such numbers make a calculation by hand easy."""
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
            "the factor scaling is missing in all three gradients dA, dB and dx",
            "If the scaling doubles, a change of A or B changes y twice as much. By what factor do your "
            "gradients change?",
            {DA: "dhidden.T @ x", DB: "dy.T @ hidden", BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the factor scaling is missing in the gradient dA",
            "Test it: compute a difference quotient for A with scaling = 1 and with scaling = 2, but with the same "
            "argument `error`. The quotient doubles. Does your dA double?",
            {DA: "dhidden.T @ x"},
        ),
        Mistake(
            "the factor scaling is missing in the gradient dB",
            "Which factors multiply Bᵀ in the equation for y? Does your dB contain all of these factors?",
            {DB: "dy.T @ hidden"},
        ),
        Mistake(
            "the factor scaling is missing in the part of the gradient dx that comes from the bypass",
            "Follow x through the bypass in the equation for y. Which factor of the bypass is missing in your dx?",
            {BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "the factor scaling is missing in the gradients dA and dx",
            "dA and dx both use the gradient of the hidden features x Aᵀ. Which two factors multiply x Aᵀ in "
            "the equation for y? Does your gradient of x Aᵀ contain both factors?",
            {DA: "dhidden.T @ x", BYPASS: "bypass = dhidden @ A"},
        ),
        Mistake(
            "all three gradients dA, dB and dx are multiplied by the scaling twice",
            "Test it: double the scaling, but not `error`. The correct dA and dB double. By what factor do "
            "your dA and dB grow?",
            {
                DA: "scaling**2 * dhidden.T @ x",
                DB: "scaling**2 * dy.T @ hidden",
                BYPASS: "bypass = scaling**2 * dhidden @ A",
            },
        ),
        Mistake(
            "the gradient dA is multiplied by the scaling twice",
            "Test it: double the scaling, but not `error`. The correct dA doubles. By what factor does your dA grow?",
            {DA: "scaling**2 * (dhidden.T @ x)"},
        ),
        Mistake(
            "the gradients dA and dx are multiplied by the scaling twice",
            "dA and dx both use the gradient of the hidden features x Aᵀ. Does this gradient already contain "
            "the scaling?",
            {DHIDDEN: "dhidden = scaling * (dy @ B)"},
        ),
        Mistake(
            "the gradient dy is multiplied by the scaling",
            "dy is ∂L/∂y and depends only on the error and on n. Which term of the equation for y contains "
            "the scaling?",
            {DY: "dy = scaling * error / n"},
        ),
        Mistake(
            "the gradient dB is multiplied by the scaling twice",
            "How often does your dB contain the scaling? Count the scaling in your hidden features x Aᵀ too.",
            {DB: "scaling**2 * (dy.T @ hidden)"},
        ),
        Mistake(
            "the part of the gradient dx that comes from the bypass is multiplied by the scaling twice",
            "Test it: set W to zero and double the scaling, but not `error`. The correct dx doubles. By what "
            "factor does your dx grow?",
            {BYPASS: "bypass = scaling**2 * (dhidden @ A)"},
        ),
        Mistake(
            "A and B are swapped in the backward pass",
            "For a square W your code can run without an error. Test it: set B to zero. Then dA should be "
            "zero. Is your dA zero?",
            {HIDDEN: "hidden = x @ B", DHIDDEN: "dhidden = dy @ A.T", BYPASS: "bypass = scaling * (dhidden @ B.T)"},
            {HIDDEN: "hidden = x @ B", DHIDDEN: "dhidden = dy @ A.T", BYPASS: "bypass = scaling * (dy @ B @ A)"},
            {HIDDEN: "hidden = x @ B.T", DHIDDEN: "dhidden = dy @ A", BYPASS: "bypass = scaling * (dy @ A @ B)"},
            {HIDDEN: "hidden = x @ B.T", DHIDDEN: "dhidden = dy @ A", BYPASS: "bypass = scaling * (dy @ B @ A)"},
        ),
        Mistake(
            "dA is added to the gradient of B, and dB is added to the gradient of A",
            "A gradient has the shape of its parameter. Test it: print the shapes of dA and dB, and of the "
            "arrays in grads.",
            {ADD_A: 'grads["A"] += dB', ADD_B: 'grads["B"] += dA'},
        ),
        Mistake(
            "the gradient dA is transposed",
            "For a square A (r = in) your code runs without an error. Which shape must dA have so that A − lr "
            "· dA is possible?",
            {DA: "scaling * (x.T @ dhidden)"},
        ),
        Mistake(
            "the gradient dB is transposed",
            "For a square B (r = out) your code runs without an error. Which shape must dB have so that B − "
            "lr · dB is possible?",
            {DB: "scaling * (hidden.T @ dy)"},
        ),
        Mistake(
            "the weight matrix W is transposed in the gradient dx",
            "For a square W your code runs without an error. The array dy of shape (n, out) times a "
            "matrix gives dx of shape (n, in). Which shape must this matrix have?",
            {FROZEN: "frozen = dy @ W.T"},
        ),
        Mistake(
            "the factor B is transposed in the backward pass",
            "For a square B (r = out) your code runs without an error. The array dy of shape (n, out) times a "
            "matrix gives an array of shape (n, r). Which shape must this matrix have?",
            {DHIDDEN: "dhidden = dy @ B.T"},
        ),
        Mistake(
            "the factor A is not transposed in the hidden features x Aᵀ",
            "For a square A (r = in) your code runs without an error. Test it: compute the r hidden features "
            "of one token with a loop. Does your x Aᵀ have the same numbers?",
            {HIDDEN: "hidden = x @ A"},
        ),
        Mistake(
            "the factor A is transposed in the gradient dx",
            "For a square A (r = in) your code runs without an error. The gradient of the hidden features has "
            "the shape (n, r) and dx has the shape (n, in). Which shape must the matrix between the two "
            "arrays have?",
            {BYPASS: "bypass = scaling * (dhidden @ A.T)"},
        ),
        Mistake(
            "the gradients in grads are overwritten instead of added",
            "Test it: call your function twice with the same grads. Does grads contain the sum of both calls?",
            {ADD_A: 'grads["A"] = dA', ADD_B: 'grads["B"] = dB'},
            {ADD_A: 'grads["A"] = dA'},
            {ADD_B: 'grads["B"] = dB'},
        ),
        Mistake(
            "the gradients dA and dB are not stored in grads",
            "Test it: print grads before and after a call. Does any line of your code change the arrays in grads?",
            {ADD_A: "pass", ADD_B: "pass", RETURN: "return frozen + bypass, dA, dB"},
            {ADD_A: "pass", ADD_B: "pass"},
        ),
        Mistake(
            "a gradient of the frozen weight matrix W is computed too",
            "W is frozen. The optimizer does not change W, so it needs no gradient of W. Find the line of your code "
            "that computes this gradient.",
            {RETURN: 'grads["W"] = dy.T @ x\n    return frozen + bypass'},
            {RETURN: "return frozen + bypass, dy.T @ x"},
            {RETURN: "return dy.T @ x, frozen + bypass"},
        ),
        Mistake(
            "the gradient dx is not returned",
            "The layers below need dx to compute their own gradients. What does your function return?",
            {RETURN: "return None"},
        ),
        Mistake(
            "the gradient dx lacks the part that comes from the frozen path x Wᵀ",
            "Test it: set B to zero. Then y = x Wᵀ still depends on x. Is your dx zero?",
            {RETURN: "return bypass"},
        ),
        Mistake(
            "the gradient dx lacks the part that comes from the bypass",
            "Test it: set W to zero. Then y still depends on x, through A and B. Is your dx zero?",
            {RETURN: "return frozen"},
        ),
        Mistake(
            "the part of the gradient dx that comes from the frozen path is multiplied by the scaling",
            "Test it: set B to zero and change the scaling. Then y does not change, so dx should not change. "
            "Does your dx change?",
            {FROZEN: "frozen = scaling * (dy @ W)"},
        ),
        Mistake(
            "the gradients are not divided by the number of tokens n",
            "Test it: put every token into the batch twice. L is a mean over the tokens, so dA and dB should "
            "not change. Do your dA and dB change?",
            {DY: "dy = error"},
        ),
        Mistake(
            "the gradient dx is not divided by the number of tokens n",
            "L is a mean over the tokens, so dx contains the factor 1/n. Does your dx contain this factor?",
            {FROZEN: "frozen = error @ W", BYPASS: "bypass = scaling * (error @ B @ A)"},
        ),
        Mistake(
            "the gradients are divided by the number of tokens n twice",
            "With one token the mistake makes no difference. With ten tokens your gradients are ten times too "
            "small. How often does your code divide by n?",
            {DY: "dy = error / n**2"},
            {DA: "scaling * (dhidden.T @ x) / n", DB: "scaling * (dy.T @ hidden) / n"},
        ),
        Mistake(
            "the gradients are divided by the size n · out of the error instead of n",
            "L divides by the number of tokens n only. Test it: print your divisor for an error of shape (2, "
            "4). Is your divisor 2?",
            {DY: "dy = error / error.size"},
        ),
        Mistake(
            "the gradients are divided by the number of output features instead of the number of tokens n",
            "L divides by the number of tokens n. Test it: print your divisor for an error of shape (2, 4). "
            "Is your divisor 2?",
            {DY: "dy = error / error.shape[1]"},
        ),
        Mistake(
            "all three gradients dA, dB and dx are twice as large as they should be",
            "L contains the factor ½. What is the derivative of ½(y − target)² with respect to y?",
            {DY: "dy = 2 * error / n"},
        ),
        Mistake(
            "all three gradients dA, dB and dx are half as large as they should be",
            "What is the derivative of ½(y − target)² with respect to y? Does this derivative still contain "
            "the factor ½?",
            {DY: "dy = error / 2 / n"},
        ),
        Mistake(
            "the signs of all three gradients dA, dB and dx are reversed",
            "Test it: add a small multiple of your dA to A and compute L again. L should become larger. Does "
            "L become larger?",
            {DY: "dy = -error / n"},
        ),
        Mistake(
            "dA and dB are subtracted from grads instead of added",
            "In this exercise the gradients are only added to grads. The optimizer subtracts the gradients "
            "from A and B later.",
            {ADD_A: 'grads["A"] -= dA', ADD_B: 'grads["B"] -= dB'},
        ),
    ),
)
