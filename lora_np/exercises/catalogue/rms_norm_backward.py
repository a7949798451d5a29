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
        case("tiny numbers, where ε counts", 2, 3, eps=1e-5, scale=2**-8),
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
            "Change one feature of x a little in the forward pass and print the whole y. How many of its entries change?",
            {"dx = direct + through_rho": "dx = direct"},
        ),
        Mistake(
            "dw is not summed over the tokens",
            "A gradient has the shape of what it belongs to, and all tokens share one w. What shape is your dw?",
            {DW: "share"},
        ),
        Mistake(
            "dw is summed over the features",
            "Your dw has a number for each token. Which index do w and y have in common?",
            {DW: "share.sum(axis=-1)"},
            {DW: "share.reshape(-1, d).sum(axis=-1)"},
        ),
        Mistake(
            "dw is summed over the first axis only",
            "Try x of shape (2, 3, 4), a batch of sequences. What shape is your dw, and what shape is w?",
            {DW: "share.sum(axis=0)"},
        ),
        Mistake(
            "dw is a mean over the tokens",
            "Whether the loss is a mean has been settled before dy came to you. Give it every token twice, and look at dw.",
            {DW: "share.reshape(-1, d).mean(axis=0)"},
        ),
        Mistake(
            "dw is not returned",
            "Your dx is right, and w learns nothing. What does the docstring promise after the arrow?",
            {"return dx, dw": "return dx"},
        ),
        Mistake(
            "dw leaves out rho",
            "Make x ten times larger: y stays nearly the same, and so should dw. What does yours do?",
            {"share = dy * x * rho": "share = dy * x"},
        ),
        Mistake(
            "dw has w as a factor too",
            "y is linear in w. Does the slope of a straight line depend on where on the line you are?",
            {"share = dy * x * rho": "share = dy * w * x * rho"},
        ),
        Mistake(
            "w is missing in the inner sum",
            "x reaches every output through rho, and each output has a factor of its own. Write that sum in full.",
            {DOT: "np.sum(dy * x, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "w is missing in the direct path",
            "Hold rho fixed. Then y is x times two factors, and your gradient has passed through one of them.",
            {DIRECT: "direct = rho * dy"},
        ),
        Mistake(
            "w is missing in dx altogether",
            "Set w to zero: y is zero whatever x is. What is your dx?",
            {"g = dy * w": "g = dy"},
        ),
        Mistake(
            "w stands before the inner sum, not in it",
            "In the sum over the outputs i the factor is w_i. In yours it is w_j, of the feature whose gradient it is.",
            {"g = dy * w": "g = dy", "dx = direct + through_rho": "dx = w * (direct + through_rho)"},
        ),
        Mistake(
            "1/d is missing in the second term",
            "Write rho for d = 2 without a sum sign, and differentiate it by x_1. Every number of the forward pass leaves a trace.",
            {SECOND: "-x * rho**3 * dot"},
        ),
        Mistake(
            "the second term has the other sign",
            "Make one feature larger: does rho grow or shrink? Then which sign has its derivative?",
            {SECOND: "x * rho**3 * dot / d"},
        ),
        Mistake(
            "rho is squared in the second term",
            "If x and the root of ε are doubled, y is unchanged and dx must be halved. Count the powers of x and rho in each term.",
            {SECOND: "-x * rho**2 * dot / d"},
        ),
        Mistake(
            "rho stands alone in the second term",
            "Differentiate u to the power −1/2, and write what comes out as a power of rho. Is it the power you have?",
            {SECOND: "-x * rho * dot / d"},
        ),
        Mistake(
            "the second term is doubled",
            "Two rules meet in the derivative of rho, the root's and the square's, and each brings a number. You have used one.",
            {SECOND: "-2 * x * rho**3 * dot / d"},
        ),
        Mistake(
            "the second term is halved",
            "What is the derivative of x_j² by x_j? Look for all of it in your second term.",
            {SECOND: "-0.5 * x * rho**3 * dot / d"},
        ),
        Mistake(
            "epsilon is left out",
            "Try x = 0. The forward pass has a finite rho there; has yours?",
            {"mean_square + eps": "mean_square"},
        ),
        Mistake(
            "the mean runs over the tokens",
            "Change one token. Do the gradients of the other tokens change, in yours? Should they?",
            {MEAN: "np.mean(x * x, axis=0, keepdims=True)"},
            {MEAN: "np.mean(x * x, axis=tuple(range(x.ndim - 1)), keepdims=True)"},
        ),
        Mistake(
            "the mean runs over everything",
            "How many different values has rho for three tokens? Print the shape of yours.",
            {MEAN: "np.mean(x * x)"},
        ),
        Mistake(
            "rho is made from the sum of the squares",
            "Let every feature be 1. What is rho for d = 4, with ε = 0, by the equation, and what is yours?",
            {MEAN: "np.sum(x * x, axis=-1, keepdims=True)"},
        ),
        Mistake(
            "rho is one over the mean square, without a root",
            "Double x. By what factor should rho change, so that y does not, and by what factor does yours?",
            {"np.sqrt(mean_square + eps)": "(mean_square + eps)"},
        ),
        Mistake(
            "rho is not inverted",
            "Make x ten times larger, and print your rho. By the equation, does it grow or shrink?",
            {"1 / np.sqrt(mean_square + eps)": "np.sqrt(mean_square + eps)"},
        ),
        Mistake(
            "epsilon stands outside the root",
            "Let x be 0 and ε be 0.01. What is ρ by the equation, and what is yours?",
            {"np.sqrt(mean_square + eps)": "(np.sqrt(mean_square) + eps)"},
        ),
        Mistake(
            "it is LayerNorm's backward pass",
            "Add one number to all features of a token. Which of the two norms does not notice, and is it the one in the equation?",
            {DIRECT: CENTRED},
            {MEAN: f"{MEAN}\n    {MOVED}".replace("x * x", "(x - x.mean(-1, keepdims=True)) ** 2"), DIRECT: CENTRED},
            {MEAN: f"{MEAN} - np.mean(x, axis=-1, keepdims=True) ** 2", DIRECT: CENTRED},
        ),
        Mistake(
            "the mean of the squares has lost its last axis",
            "Print the shapes of x and of your mean of squares. Where they meet without an error, which "
            "index of one meets which of the other?",
            {MEAN: "np.mean(x * x, axis=-1)"},
        ),
        Mistake(
            "the inner sum has lost its last axis",
            "Print the shapes of x and of your inner sum for two tokens of two features. NumPy aligns shapes from the right.",
            {DOT: "np.sum(g * x, axis=-1)"},
        ),
        Mistake(
            "the inner sum is no sum",
            "x_j reaches the output y_i also where i is not j. What becomes of all these ways in your second term?",
            {DOT: "g * x"},
        ),
        Mistake(
            "the inner sum runs over the tokens",
            "rho belongs to one token. Which outputs are made with it, and so which belong into the sum?",
            {DOT: "np.sum(g * x, axis=0, keepdims=True)"},
            {DOT: "np.sum(g * x, axis=tuple(range(x.ndim - 1)), keepdims=True)"},
        ),
        Mistake(
            "the inner sum runs over everything",
            "Add a second token to x. Should the dx of the first one change? Try it.",
            {DOT: "np.sum(g * x)"},
        ),
        Mistake(
            "dx and dw are returned in the other order",
            "Print the shapes of the two arrays that you return, and read the docstring's last arrow again.",
            {"return dx, dw": "return dw, dx"},
        ),
    ),
)
