"""The backward pass of RMSNorm: dx and dw of y = w ∘ x · ρ, ρ = 1/√(mean x² + ε)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..exercise import Case, Exercise, Mistake


def cases() -> list[Case]:
    rng = np.random.default_rng(8)

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
            "rho is treated as a constant in dx",
            "Change one feature of x a little in the forward pass and print y. More than one entry of y "
            "changes, because ρ depends on x. Does your dx contain the path through ρ?",
            {"dx = direct + through_rho": "dx = direct"},
        ),
        Mistake(
            "dw is not summed over the tokens",
            "A gradient has the shape of its parameter, and all tokens share w. What is the shape of your dw?",
            {DW: "share"},
        ),
        Mistake(
            "dw is summed over the features",
            "Your dw has one number per token. It must have one number per feature, like w. Over which axis "
            "do you sum?",
            {DW: "share.sum(axis=-1)"},
            {DW: "share.reshape(-1, d).sum(axis=-1)"},
        ),
        Mistake(
            "dw is summed over the first axis only",
            "Try an x of shape (2, 3, 4). Then w has the shape (4,). What is the shape of your dw?",
            {DW: "share.sum(axis=0)"},
        ),
        Mistake(
            "dw is a mean over the tokens",
            "Repeat every token and its dy. dw should double, because the contributions of the tokens are "
            "added. Does your dw double?",
            {DW: "share.reshape(-1, d).mean(axis=0)"},
        ),
        Mistake(
            "dw is not returned",
            "The docstring asks for two arrays. What does your function return?",
            {"return dx, dw": "return dx"},
        ),
        Mistake(
            "dw leaves out rho",
            "y = w x ρ, so the derivative of y with respect to w has two factors. Which of them is missing in your dw?",
            {"share = dy * x * rho": "share = dy * x"},
        ),
        Mistake(
            "dw has w as a factor too",
            "y is linear in w, so dw does not depend on w. Double w: does your dw change?",
            {"share = dy * x * rho": "share = dy * w * x * rho"},
        ),
        Mistake(
            "w is missing in the inner sum",
            "ρ reaches every output y_i = w_i x_i ρ. Write the sum over i of dy_i · ∂y_i/∂ρ in full. Which "
            "factors does each term have?",
            {DOT: "np.sum(dy * x, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "w is missing in the direct path",
            "Hold ρ fixed. Then y_i is x_i times two factors. Which of the two factors is missing in your direct path?",
            {DIRECT: "direct = rho * dy"},
        ),
        Mistake(
            "w is missing in dx altogether",
            "Set w to zero. Then y is zero for every x, so dx is zero. What is your dx?",
            {"g = dy * w": "g = dy"},
        ),
        Mistake(
            "w multiplies the inner sum from outside",
            "In the sum over the outputs i, each term has its own factor w_i. In your code, one factor w_j "
            "multiplies the whole sum.",
            {"g = dy * w": "g = dy", "dx = direct + through_rho": "dx = w * (direct + through_rho)"},
        ),
        Mistake(
            "1/d is missing in the second term",
            "ρ contains a mean of squares. If you differentiate that mean with respect to x_1, which factor "
            "is in front of 2 x_1?",
            {SECOND: "-x * rho**3 * dot"},
        ),
        Mistake(
            "the second term has the wrong sign",
            "If a feature becomes larger, does ρ grow or shrink? Which sign does its derivative have?",
            {SECOND: "x * rho**3 * dot / d"},
        ),
        Mistake(
            "rho is squared in the second term",
            "Differentiate ρ = u^(−1/2) with respect to u, and write the result as a power of ρ. Compare this power "
            "with the power in your code.",
            {SECOND: "-x * rho**2 * dot / d"},
        ),
        Mistake(
            "rho has the power 1 in the second term",
            "Differentiate ρ = u^(−1/2) with respect to u, and write the result as a power of ρ. Which power of ρ "
            "does your second term have?",
            {SECOND: "-x * rho * dot / d"},
        ),
        Mistake(
            "the second term is doubled",
            "The derivative of u^(−1/2) contains a factor ½, and the derivative of x_j² a factor 2. Which of the "
            "two factors is in your second term?",
            {SECOND: "-2 * x * rho**3 * dot / d"},
        ),
        Mistake(
            "the second term is halved",
            "The derivative of u^(−1/2) contains a factor ½, and the derivative of x_j² contains another "
            "factor. Which of the two factors is missing?",
            {SECOND: "-0.5 * x * rho**3 * dot / d"},
        ),
        Mistake(
            "epsilon is left out",
            "Try x = 0. In the equation ρ is finite for this x. What is your ρ?",
            {"mean_square + eps": "mean_square"},
        ),
        Mistake(
            "the mean runs over the tokens",
            "Change one token. The dx of the other tokens should stay the same. Does your dx? Over which axis is "
            "your mean?",
            {MEAN: "np.mean(x * x, axis=0, keepdims=True)"},
            {MEAN: "np.mean(x * x, axis=tuple(range(x.ndim - 1)), keepdims=True)"},
        ),
        Mistake(
            "the mean runs over all tokens and features",
            "Every token has its own ρ. Print the shape of your ρ for three tokens.",
            {MEAN: "np.mean(x * x)"},
        ),
        Mistake(
            "rho contains the sum of the squares instead of their mean",
            "Let all features be 1, d = 4 and ε = 0. Then ρ is 1. What is your ρ?",
            {MEAN: "np.sum(x * x, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "rho lacks the square root",
            "Let all features be 2 and ε = 0. Then ρ is 1/2. What is your ρ?",
            {"np.sqrt(mean_square + eps)": "(mean_square + eps)"},
        ),
        Mistake(
            "rho is not inverted",
            "Multiply x by 10. In the equation ρ becomes smaller. By what factor does your ρ change?",
            {"1 / np.sqrt(mean_square + eps)": "np.sqrt(mean_square + eps)"},
        ),
        Mistake(
            "epsilon is outside the root",
            "Let x be 0 and ε be 0.01. Then ρ is 10. What is your ρ?",
            {"np.sqrt(mean_square + eps)": "(np.sqrt(mean_square) + eps)"},
        ),
        Mistake(
            "the function is LayerNorm's backward pass",
            "LayerNorm subtracts the mean of a token's features; the equation of RMSNorm does not. Which of your "
            "lines takes a mean over features that is not a mean of squares?",
            {DIRECT: CENTRED},
            {MEAN: f"{MEAN}\n    {MOVED}".replace("x * x", "(x - x.mean(-1, keepdims=True)) ** 2"), DIRECT: CENTRED},
            {MEAN: f"{MEAN} - np.mean(x, axis=-1, keepdims=True) ** 2", DIRECT: CENTRED},
        ),
        Mistake(
            "the mean of the squares has lost its last axis",
            "Print the shapes of x and of your mean of squares. NumPy aligns shapes from the right. Which "
            "axes of the two shapes are aligned? See keepdims.",
            {MEAN: "np.mean(x * x, axis=-1)"},
        ),
        Mistake(
            "the inner sum has lost its last axis",
            "Print the shapes of x and of your inner sum for two tokens of two features. NumPy aligns shapes "
            "from the right. See keepdims.",
            {DOT: "np.sum(g * x, axis=-1)"},
        ),
        Mistake(
            "the inner sum has only one term",
            "x_j changes every output y_i through ρ. Your second term has only the part with i = j. Where are the "
            "parts with the other i?",
            {DOT: "g * x"},
        ),
        Mistake(
            "the inner sum runs over the tokens",
            "ρ belongs to one token. Which outputs contain this ρ? Sum over these outputs only.",
            {DOT: "np.sum(g * x, axis=0, keepdims=True)"},
            {DOT: "np.sum(g * x, axis=tuple(range(x.ndim - 1)), keepdims=True)"},
        ),
        Mistake(
            "the inner sum runs over all tokens and features",
            "Add a second token to x. The dx of the first token should stay the same. Does it?",
            {DOT: "np.sum(g * x)"},
        ),
        Mistake(
            "dx and dw are returned in the wrong order",
            "Print the shapes of the two arrays that you return, and compare them with the docstring.",
            {"return dx, dw": "return dw, dx"},
        ),
    ),
)
