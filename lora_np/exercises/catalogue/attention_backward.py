"""The backward pass of attention, one head with a causal mask: dq, dk and dv of softmax(q kᵀ/√d + mask) v."""

from __future__ import annotations

import numpy as np

from ..exercise import Case, Exercise, Mistake


def cases() -> list[Case]:
    rng = np.random.default_rng(9)

    def case(label: str, t: int, d: int) -> Case:
        return Case(label, {name: rng.integers(-4, 5, (t, d)) / 2 for name in ("do", "q", "k", "v")})

    ahead, far = (
        case("a masked score, thousands above the others", 3, 4),
        case("scores in the thousands", 5, 4),
    )
    ahead.arguments["q"] = np.abs(ahead.arguments["q"]) + 0.5
    ahead.arguments["k"][-1] += 2048.0
    sums = far.arguments["k"].sum(axis=1)  # made equal for all keys, so that the scores of a row differ little
    far.arguments["k"][:, 0] += 2 - sums
    far.arguments["q"] += 1024.0 * np.array([[1], [-1], [1], [-1], [1]])
    return [
        case("three tokens of two features", 3, 2),
        case("two tokens of four features", 2, 4),
        case("as many tokens as features", 4, 4),
        ahead,
        far,
    ]


MASK, MASKED = "mask = np.triu(np.full((t, t), -1e30), k=1)", "z = scale * (q @ k.T) + mask"
MAX, SUM, DOT = "z.max(axis=-1, keepdims=True)", "e.sum(axis=-1, keepdims=True)", "(p * dp).sum(axis=-1, keepdims=True)"
SHARES, SCALE, DZ, DQ, DK = f"e / {SUM}", "1 / np.sqrt(d)", "p * (dp - dot)", "scale * (dz @ k)", "scale * (dz.T @ q)"

EXERCISE = Exercise(
    function="attention_backward",
    title="The backward pass of attention",
    minutes=25,
    needs="notebook 03b",
    cases=cases,
    returns=("dq", "dk", "dv"),
    mistakes=(
        Mistake(
            "the softmax's derivative lacks its second term",
            "Each row of dz must sum to zero, because adding a number to all scores of a row does not change "
            "the shares. Print the sums of your rows.",
            {DZ: "p * dp"},
        ),
        Mistake(
            "the softmax's derivative lacks its outer factor p",
            "A masked token has the share 0, so its score gets no gradient. Print your dz for a masked token.",
            {DZ: "dp - dot"},
        ),
        Mistake(
            "a token does not attend to itself",
            "Print the first row of your shares. The first token sees only itself, so its row is 1, 0, 0, …",
            {MASK: MASK.replace("k=1", "k=0")},
            {MASK: "mask = np.triu(np.full((t, t), -np.inf), k=0)"},
            {MASK: "mask = np.triu(np.full((t, t), -1e9), k=0)"},
        ),
        Mistake(
            "a token attends to the next token too",
            "Print the first row of your shares. The first token sees only itself. How many shares of your first "
            "row are not zero?",
            {MASK: MASK.replace("k=1", "k=2")},
        ),
        Mistake(
            "there is no causal mask",
            "Print your shares. The share p[t, u] must be zero if u is later than t. Is it zero in your shares?",
            {" + mask": ""},
        ),
        Mistake(
            "the mask hides the past and shows the future",
            "Print your shares for three tokens. The zeros must be above the diagonal, where the key comes "
            "after the query.",
            {MASK: "mask = np.tril(np.full((t, t), -1e30), k=-1)"},
        ),
        Mistake(
            "the mask comes after the softmax",
            "Print the sum of each row of your shares. It must be 1. Which line changes the sums after the softmax?",
            {" + mask": "", SHARES: f"np.tril({SHARES})"},
        ),
        Mistake(
            "masked scores are set to zero",
            "exp(0) is 1, so a score of 0 still gets a share. Print your shares above the diagonal.",
            {MASKED: "z = np.tril(scale * (q @ k.T))"},
        ),
        Mistake(
            "the backward pass leaves the scaling out of dq and dk",
            "z = scale · q kᵀ. Which factor of this line is missing in your dq and dk?",
            {DQ: "dz @ k", DK: "dz.T @ q"},
        ),
        Mistake(
            "the backward pass leaves the scaling out of dq",
            "q and k enter z in the same way. Compare your line for dq with your line for dk.",
            {DQ: "dz @ k"},
        ),
        Mistake(
            "the backward pass leaves the scaling out of dk",
            "z is symmetric in q and k. Compare the factors in your line for dk with the factors in your line for dq.",
            {DK: "dz.T @ q"},
        ),
        Mistake(
            "the scaling is missing in both passes",
            "The equation for z has the factor 1/√d. Print your z for q and k full of ones with d = 4: it should be 2.",
            {SCALE: "1.0"},
        ),
        Mistake(
            "the forward pass leaves the scaling out of the scores",
            "Print your z for q and k full of ones with d = 4: it should be 2. Does the forward pass use the scaling?",
            {"scale * (q @ k.T)": "q @ k.T"},
        ),
        Mistake(
            "the backward pass scales twice",
            "The forward pass multiplies by the scaling once between q and z. Count the factors between your "
            "dz and dq.",
            {DZ: f"scale * {DZ}"},
            {DQ: f"scale * {DQ}", DK: f"scale * {DK}"},
        ),
        Mistake(
            "dk is scaled twice",
            "If your stored q already contains the scaling, do not multiply dk by it again. Count the factors in dk.",
            {DK: f"scale * {DK}"},
        ),
        Mistake(
            "the scores are divided by d",
            "The equation divides by √d. Print your z for q and k full of ones with d = 4: it should be 2.",
            {SCALE: "1 / d"},
        ),
        Mistake(
            "the scores are scaled by the number of tokens",
            "Add a token at the end of the sequence. The score between the first two tokens should stay the "
            "same. Does it?",
            {SCALE: "1 / np.sqrt(t)"},
        ),
        Mistake(
            "dk is computed from dz instead of its transpose",
            "The first index of dz is the query, the second is the key. For dk, the sum runs over the "
            "queries. Over which index do you sum?",
            {DK: "scale * (dz @ q)"},
        ),
        Mistake(
            "dv is computed from p instead of its transpose",
            "The first index of p is the query, the second is the value. For dv, the sum runs over the "
            "queries. Over which index do you sum?",
            {"p.T @ do": "p @ do"},
        ),
        Mistake(
            "the softmax runs over the queries",
            "Print the sums of the rows of p and of its columns. The shares of one query, a row, must sum to 1.",
            {MAX: MAX.replace("-1", "0"), SUM: SUM.replace("-1", "0")},
            {SUM: SUM.replace("-1", "0")},
        ),
        Mistake(
            "the softmax's sum has lost its last axis",
            "Print the shape of your sum. If it is (t,), NumPy divides each column, not each row, by a "
            "number. See keepdims.",
            {SUM: "e.sum(axis=-1)"},
            {MAX: "z.max(axis=-1)", SUM: "e.sum(axis=-1)"},
        ),
        Mistake(
            "the derivative's inner sum runs over the queries",
            "Each row of p is a softmax of its own, so the inner sum runs along a row. Along which axis does your "
            "sum run?",
            {DOT: DOT.replace("-1", "0")},
        ),
        Mistake(
            "the derivative's inner sum has lost its last axis",
            "Print the shapes of dp and of the sum that you subtract. If the sum has the shape (t,), NumPy "
            "subtracts it along the wrong axis. See keepdims.",
            {DOT: "(p * dp).sum(axis=-1)"},
        ),
        Mistake(
            "the derivative's inner sum runs over the whole matrix",
            "Change one entry in the last row of do. The first row of dz should stay the same. Does it?",
            {DOT: "(p * dp).sum()"},
        ),
        Mistake(
            "dq and dk are swapped",
            "The first query sees only one key, so its share is always 1 and the first row of dq is zero. "
            "Which of your two arrays has that row?",
            {"return dq, dk, dv": "return dk, dq, dv"},
        ),
        Mistake(
            "the arrays are returned with dv first",
            "The docstring asks for dq, dk, dv. Set v = 0: then dq and dk are zero, and dv is not. Print your dq, "
            "dk and dv.",
            {"return dq, dk, dv": "return dv, dq, dk"},
            {"return dq, dk, dv": "return dv, dk, dq"},
        ),
        Mistake(
            "dp is transposed",
            "dp has the indices of p: the first is the query. do belongs to queries and v to keys. Which of "
            "the two comes first in your product?",
            {"dp = do @ v.T": "dp = v @ do.T"},
        ),
        Mistake(
            "dq is computed with q instead of k",
            "z is linear in q. The derivative of z with respect to q does not contain q. What does this derivative "
            "contain?",
            {DQ: "scale * (dz @ q)"},
        ),
        Mistake(
            "dk is computed with k instead of q",
            "Set q to zero. Then k has no influence on the output, so dk is zero. What is your dk?",
            {DK: "scale * (dz.T @ k)"},
        ),
        Mistake(
            "v is not transposed in dp",
            "Your code runs only if t equals d. Write the shapes: do is (t, d), v is (t, d) and dp is (t, t).",
            {"do @ v.T": "do @ v"},
        ),
        Mistake(
            "k is not transposed in the scores",
            "Your code runs only if t equals d. Write the shapes: q is (t, d), k is (t, d) and z is (t, t).",
            {"q @ k.T": "q @ k"},
        ),
        Mistake(
            "exp overflows for large scores",
            "Print np.exp(800.0). Which number can you subtract from all scores of a row without changing the shares?",
            {f"z - {MAX}": "z"},
        ),
        Mistake(
            "the maximum includes masked scores",
            "If a masked score is the largest of its row, exp gives 0 for all other scores. Over which scores should "
            "the maximum be taken?",
            {MASKED: "z = scale * (q @ k.T)", f"z - {MAX}": f"z - {MAX} + mask"},
        ),
        Mistake(
            "the mask is too weak",
            "A masked score can be 5000 before the mask is added. Print your z for a masked token. Is this z small "
            "enough for exp to give 0?",
            {"-1e30": "-100.0"},
            {"-1e30": "-1000.0"},
        ),
        Mistake(
            "one maximum is subtracted from all rows",
            "If all scores of a row are a thousand below your maximum, exp gives only zeros. Which maximum "
            "does each row need?",
            {MAX: "z.max()"},
        ),
    ),
)
