"""The backward pass of RMSNorm: dx and dw of y = w ∘ x · ρ, ρ = 1/√(mean x² + ε)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake


def cases(seed: int = 8) -> list[Case]:
    rng = np.random.default_rng(seed)

    def case(label: str, *shape: int, eps: float, scale: float = 1.0) -> Case:
        arrays: dict[str, Any] = {"dy": rng.integers(-4, 5, shape) / 2, "x": scale * rng.integers(-4, 5, shape) / 2}
        return Case(label, arrays | {"w": rng.integers(1, 6, shape[-1:]) / 2, "eps": eps})

    square: dict[str, Any] = {
        "dy": np.array([[2.0, 1.0], [-1.0, 3.0]]),
        "x": np.array([[1.0, -1.0], [5.0, 1.0]]),
        "w": np.array([2.0, 0.5]),
        "eps": 3.0,
    }
    return [
        Case("two tokens of two features; ρ is 1/2 and 1/4", square),
        case("tiny numbers, for which ε matters", 2, 3, eps=1e-5, scale=2**-8),
        case("four tokens of three features", 4, 3, eps=0.5),
        case("a batch of sequences", 2, 3, 4, eps=1e-5),
    ]


MEAN, DW, DIRECT = "np.mean(x * x, axis=-1, keepdims=True)", "share.reshape(-1, d).sum(axis=0)", "direct = rho * g"
DOT, SECOND = "np.sum(g * x, axis=-1, keepdims=True)", "-x * rho**3 * dot / d"

CENTRED = "direct = rho * (g - np.mean(g, axis=-1, keepdims=True))"
MOVED = "x = x - x.mean(axis=-1, keepdims=True)"

EXERCISE = Exercise(
    function="rms_norm_backward",
    title="The backward pass of RMSNorm",
    minutes=20,
    needs="notebook 03b",
    cases=cases,
    returns=("dx", "dw"),
    mistakes=(
        Mistake(
            "ρ is treated as a constant in the gradient dx",
            "Test it: change one feature of x a little in the forward pass and print y. More than one number "
            "of y changes, because ρ depends on x. Does your dx differentiate ρ?",
            {"dx = direct + through_rho": "dx = direct"},
        ),
        Mistake(
            "the gradient dw is not summed over the tokens",
            "A gradient has the shape of its parameter, and all tokens share w. Which shape does your dw have?",
            {DW: "share"},
        ),
        Mistake(
            "the gradient dw is summed over the features instead of the tokens",
            "Your dw has one number per token, but w has one number per feature. Over which axis does your code sum?",
            {DW: "share.sum(axis=-1)"},
            {DW: "share.reshape(-1, d).sum(axis=-1)"},
        ),
        Mistake(
            "the gradient dw is summed over the first axis only",
            "Test it: call your function with an x of shape (2, 3, 4) and a w of shape (4,). Which shape does "
            "your dw have?",
            {DW: "share.sum(axis=0)"},
        ),
        Mistake(
            "the gradient dw is a mean over the tokens instead of a sum",
            "Test it: put every token and its dy into the batch twice. The correct dw doubles. Does your dw double?",
            {DW: "share.reshape(-1, d).mean(axis=0)"},
        ),
        Mistake(
            "the gradient dw is not returned",
            "The docstring asks for two arrays, dx and dw. What does your function return?",
            {"return dx, dw": "return dx"},
        ),
        Mistake(
            "the factor ρ is missing in the gradient dw",
            "The derivative of y = w x ρ with respect to w is a product of two factors. Which of the two "
            "factors is missing in your dw?",
            {"share = dy * x * rho": "share = dy * x"},
        ),
        Mistake(
            "the gradient dw has w as an additional factor",
            "y is linear in w, so dw does not depend on w. Test it: double w. Does your dw change?",
            {"share = dy * x * rho": "share = dy * w * x * rho"},
        ),
        Mistake(
            "the factor w is missing in the inner sum of the gradient dx",
            "ρ changes every output y_i = w_i x_i ρ. Write out the sum over i of dy_i · ∂y_i/∂ρ. Which "
            "factors does each term of the sum have?",
            {DOT: "np.sum(dy * x, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "the factor w is missing in the first term of the gradient dx",
            "If ρ is held constant, y_i is x_i times two factors. Which of the two factors is missing in your "
            "first term?",
            {DIRECT: "direct = rho * dy"},
        ),
        Mistake(
            "the factor w is missing in both terms of the gradient dx",
            "Test it: set w to zero. Then y is zero for every x, so dx is zero. Is your dx zero?",
            {"g = dy * w": "g = dy"},
        ),
        Mistake(
            "the inner sum of the gradient dx is multiplied by w_j, but each term of the sum must be multiplied by w_i",
            "ρ changes every output y_i = w_i x_i ρ. Write out the sum over i of dy_i · ∂y_i/∂ρ. Is w_i inside your "
            "sum or in front of it?",
            {"g = dy * w": "g = dy", "dx = direct + through_rho": "dx = w * (direct + through_rho)"},
        ),
        Mistake(
            "the factor 1/d is missing in the second term of the gradient dx",
            "ρ contains a mean of d squares. What is the derivative of this mean with respect to x_1?",
            {SECOND: "-x * rho**3 * dot"},
        ),
        Mistake(
            "the second term of the gradient dx has the wrong sign",
            "If the squares of the features become larger, does ρ become larger or smaller? Which sign does "
            "the derivative of ρ have?",
            {SECOND: "x * rho**3 * dot / d"},
        ),
        Mistake(
            "the second term of the gradient dx has the factor ρ² instead of ρ³",
            "Differentiate ρ = u^(−1/2) with respect to u, and write the derivative as a power of ρ. Which "
            "power of ρ does your second term have?",
            {SECOND: "-x * rho**2 * dot / d"},
        ),
        Mistake(
            "the second term of the gradient dx has the factor ρ instead of ρ³",
            "Write the derivative of ρ = u^(−1/2) with respect to u as a power of ρ. Is this power in your "
            "second term?",
            {SECOND: "-x * rho * dot / d"},
        ),
        Mistake(
            "the second term of the gradient dx is twice as large as it should be",
            "The derivative of u^(−1/2) contains the factor −½, and the derivative of x_j² contains the "
            "factor 2. Does your second term contain both factors?",
            {SECOND: "-2 * x * rho**3 * dot / d"},
        ),
        Mistake(
            "the second term of the gradient dx is half as large as it should be",
            "The derivative of u^(−1/2) contains the factor −½. Which factor does the derivative of x_j² "
            "contain, and is this factor in your second term?",
            {SECOND: "-0.5 * x * rho**3 * dot / d"},
        ),
        Mistake(
            "ε is left out of ρ",
            "Test it: set x to zero. In the equation ρ is then finite. Is your ρ finite?",
            {"mean_square + eps": "mean_square"},
        ),
        Mistake(
            "the mean of the squares in ρ runs over the tokens instead of the features",
            "Test it: change one token of x. The dx of the other tokens should not change. Does your dx of "
            "the other tokens change?",
            {MEAN: "np.mean(x * x, axis=0, keepdims=True)"},
            {MEAN: "np.mean(x * x, axis=tuple(range(x.ndim - 1)), keepdims=True)"},
        ),
        Mistake(
            "the mean of the squares in ρ runs over all tokens and features instead of the features of one token",
            "Every token has its own ρ. Test it: print the shape of your ρ for three tokens. Does your ρ have "
            "three numbers?",
            {MEAN: "np.mean(x * x)"},
        ),
        Mistake(
            "ρ contains the sum of the squares instead of their mean",
            "Test it: let all features be 1, with d = 4 and ε = 0. The correct ρ is 1. What is your ρ?",
            {MEAN: "np.sum(x * x, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "the square root is missing in ρ",
            "Test it: let all features be 2, with ε = 0. The correct ρ is 1/2. What is your ρ?",
            {"np.sqrt(mean_square + eps)": "(mean_square + eps)"},
        ),
        Mistake(
            "ρ is the root mean square instead of 1 divided by the root mean square",
            "Test it: multiply x by 10. In the equation ρ becomes smaller. Does your ρ become smaller?",
            {"1 / np.sqrt(mean_square + eps)": "np.sqrt(mean_square + eps)"},
        ),
        Mistake(
            "ε is added outside the square root in ρ instead of inside",
            "Test it: set x to 0 and ε to 0.01. The correct ρ is 10. What is your ρ?",
            {"np.sqrt(mean_square + eps)": "(np.sqrt(mean_square) + eps)"},
        ),
        Mistake(
            "the function computes the backward pass of LayerNorm instead of RMSNorm",
            "LayerNorm subtracts the mean of a token's features, but RMSNorm does not. Which line of your code "
            "computes a mean that is not in the equation of RMSNorm?",
            {DIRECT: CENTRED},
            {MEAN: f"{MEAN}\n    {MOVED}".replace("x * x", "(x - x.mean(-1, keepdims=True)) ** 2"), DIRECT: CENTRED},
            {MEAN: f"{MEAN} - np.mean(x, axis=-1, keepdims=True) ** 2", DIRECT: CENTRED},
        ),
        Mistake(
            "the mean of the squares lacks its last axis (keepdims=True)",
            "NumPy aligns shapes from the right. Test it: print the shapes of x and of your mean of squares. "
            "Does each token get its own mean?",
            {MEAN: "np.mean(x * x, axis=-1)"},
        ),
        Mistake(
            "the inner sum of the gradient dx lacks its last axis (keepdims=True)",
            "NumPy aligns shapes from the right. Test it: print the shapes of x and of your inner sum for two "
            "tokens. Does each token get its own sum?",
            {DOT: "np.sum(g * x, axis=-1)"},
        ),
        Mistake(
            "the inner sum of the gradient dx has only the term with i = j",
            "Through ρ, the feature x_j changes every output y_i. Does your second term contain the outputs "
            "with i ≠ j?",
            {DOT: "g * x"},
        ),
        Mistake(
            "the inner sum of the gradient dx runs over the tokens instead of the features",
            "Each token has its own ρ. Which outputs depend on the ρ of one token? Sum over these outputs only.",
            {DOT: "np.sum(g * x, axis=0, keepdims=True)"},
            {DOT: "np.sum(g * x, axis=tuple(range(x.ndim - 1)), keepdims=True)"},
        ),
        Mistake(
            "the inner sum of the gradient dx runs over all tokens and features instead of the features of one token",
            "Test it: add a second token to x. The dx of the first token should not change. Does your dx of "
            "the first token change?",
            {DOT: "np.sum(g * x)"},
        ),
        Mistake(
            "the function returns dw, dx instead of dx, dw",
            "Test it: print the shapes of the two arrays that your function returns. The docstring says which "
            "of the two arrays is first.",
            {"return dx, dw": "return dw, dx"},
        ),
    ),
)
