"""The backward pass of attention, one head with a causal mask: dq, dk and dv of softmax(q kᵀ/√d + mask) v."""

from __future__ import annotations

import numpy as np

from ..exercise import Case, Exercise, Mistake


def cases() -> list[Case]:
    rng = np.random.default_rng(9)

    def case(label: str, t: int, d: int) -> Case:
        return Case(label, {name: rng.integers(-4, 5, (t, d)) / 2 for name in ("do", "q", "k", "v")})

    ahead, far = (
        case("a score that must not be seen, thousands above the others", 3, 4),
        case("scores in the thousands", 5, 4),
    )
    ahead.arguments["q"] = np.abs(ahead.arguments["q"]) + 0.5
    ahead.arguments["k"][-1] += 2048.0
    sums = far.arguments["k"].sum(axis=1)  # made the same for all keys, so that a row's scores differ by little
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
            "Add one number to all scores of a row: the shares stay. What must the sum of a row of dz be, then? Print yours.",
            {DZ: "p * dp"},
        ),
        Mistake(
            "the softmax's derivative lacks its outer factor p",
            "What share has a token that must not be seen? Print your dz there: does a gradient reach its score?",
            {DZ: "dp - dot"},
        ),
        Mistake(
            "a token does not see itself",
            "Print the first row of your shares. Whom can the first token see, with the mask that you have?",
            {MASK: MASK.replace("k=1", "k=0")},
            {MASK: "mask = np.triu(np.full((t, t), -np.inf), k=0)"},
            {MASK: "mask = np.triu(np.full((t, t), -1e9), k=0)"},
        ),
        Mistake(
            "a token sees one token ahead",
            "Print the first row of your shares. How many of them are not zero?",
            {MASK: MASK.replace("k=1", "k=2")},
        ),
        Mistake(
            "there is no causal mask",
            "Change the last token of v. Does the output of the first token change in your forward pass? May it?",
            {" + mask": ""},
        ),
        Mistake(
            "the mask hides the past and shows the future",
            "Print your shares for three tokens. In which corner are the zeros, and which tokens meet there?",
            {MASK: "mask = np.tril(np.full((t, t), -1e30), k=-1)"},
        ),
        Mistake(
            "the mask comes after the softmax",
            "Print the sums of the rows of your shares. What should they be, and when in your code were they that?",
            {" + mask": "", SHARES: f"np.tril({SHARES})"},
        ),
        Mistake(
            "a score that is masked is set to zero",
            "What share does a score of 0 get from the softmax? Print your shares where the mask is.",
            {MASKED: "z = np.tril(scale * (q @ k.T))"},
        ),
        Mistake(
            "the backward pass leaves the scaling out of dq and dk",
            "Two of the three gradients pass through the line that makes z. Which factor of that line is missing on the way back?",
            {DQ: "dz @ k", DK: "dz.T @ q"},
        ),
        Mistake(
            "the backward pass leaves the scaling out of dq alone",
            "q and k enter z in the same way, so dq and dk must be alike. Compare your two lines.",
            {DQ: "dz @ k"},
        ),
        Mistake(
            "the backward pass leaves the scaling out of dk alone",
            "Swap the names q and k in your line for dq, and say what happens to each factor. Is that your line for dk?",
            {DK: "dz.T @ q"},
        ),
        Mistake(
            "there is no scaling at all",
            "Print p for random q and k of 400 features. Is nearly all of it on one token? What does the equation do about that?",
            {SCALE: "1.0"},
        ),
        Mistake(
            "the backward pass scales twice",
            "Follow one number from dz to dq and count: the forward pass has scaled once on that way. And yours?",
            {DZ: f"scale * {DZ}"},
            {DQ: f"scale * {DQ}", DK: f"scale * {DK}"},
        ),
        Mistake(
            "dk is scaled twice",
            "If you keep the scaled q for the backward pass, what is already in it when dk is made?",
            {DK: f"scale * {DK}"},
        ),
        Mistake(
            "the scores are divided by d",
            "For random q and k with spread 1, how large is a sum of d products, typically? Try d = 4 and d = 400.",
            {SCALE: "1 / d"},
        ),
        Mistake(
            "the scores are scaled by the number of tokens",
            "Give it a sequence twice as long. Should the score between the first two tokens change?",
            {SCALE: "1 / np.sqrt(t)"},
        ),
        Mistake(
            "dk is made from dz, not from its transpose",
            "dz is always square, so NumPy lets both pass. Its first index counts queries: for dk, which of its two is summed?",
            {DK: "scale * (dz @ q)"},
        ),
        Mistake(
            "dv is made from p, not from its transpose",
            "p is square, and no shape will warn you. The last token sees all values, but only itself sees the last value. "
            "How many terms has the last row of dv?",
            {"p.T @ do": "p @ do"},
        ),
        Mistake(
            "the softmax runs over the queries",
            "Print the sums of the rows of p, and those of its columns. Whose shares add up to 1?",
            {MAX: MAX.replace("-1", "0"), SUM: SUM.replace("-1", "0")},
            {SUM: SUM.replace("-1", "0")},
        ),
        Mistake(
            "the softmax's sum has lost its axis",
            "p is square, so a row of t numbers and a column of t numbers both divide it. Print the shape of yours.",
            {SUM: "e.sum(axis=-1)"},
            {MAX: "z.max(axis=-1)", SUM: "e.sum(axis=-1)"},
        ),
        Mistake(
            "the derivative's inner sum runs over the queries",
            "Each row of p is a softmax of its own. Which numbers belong to one row of dz?",
            {DOT: DOT.replace("-1", "0")},
        ),
        Mistake(
            "the derivative's inner sum has lost its axis",
            "Print the shapes of dp and of the sum that you subtract from it. Along which axis does NumPy repeat the sum?",
            {DOT: "(p * dp).sum(axis=-1)"},
        ),
        Mistake(
            "the derivative's inner sum runs over everything",
            "Change one entry of do in the last row. Does your dz change in the first row? Can it?",
            {DOT: "(p * dp).sum()"},
        ),
        Mistake(
            "dq and dk are swapped",
            "The last key is seen by the last query alone. Count the terms in the last row of your dk.",
            {"return dq, dk, dv": "return dk, dq, dv"},
        ),
        Mistake(
            "dv is returned first",
            "The docstring says what comes in which place. Print the three for v = 0: which of them is then not zero?",
            {"return dq, dk, dv": "return dv, dq, dk"},
            {"return dq, dk, dv": "return dv, dk, dq"},
        ),
        Mistake(
            "dp is transposed",
            "dp is square, whichever way round. Its first index should be the token that looks. Whose index comes first in yours?",
            {"dp = do @ v.T": "dp = v @ do.T"},
        ),
        Mistake(
            "dq is made with q",
            "z is linear in q. Does the slope of z along q depend on q, or on what q is multiplied with?",
            {DQ: "scale * (dz @ q)"},
        ),
        Mistake(
            "dk is made with k",
            "Set q to zero: then k has no influence on the output. What is your dk?",
            {DK: "scale * (dz.T @ k)"},
        ),
        Mistake(
            "v is not transposed on the way to dp",
            "It runs only where there are as many tokens as features. Which index do do and v have in common, that dp has not?",
            {"do @ v.T": "do @ v"},
        ),
        Mistake(
            "k is not transposed in the scores",
            "It runs only where t equals d. A score compares two tokens: over which index do you sum?",
            {"q @ k.T": "q @ k"},
        ),
        Mistake(
            "exp overflows for large scores",
            "What is np.exp(800.0)? A share is a fraction: how can both its parts be made smaller while it stays the same?",
            {f"z - {MAX}": "z"},
        ),
        Mistake(
            "the maximum is taken over forbidden scores too",
            "Let the last token's key be a thousand times as long. What is left in the first row after exp, and what is its sum?",
            {MASKED: "z = scale * (q @ k.T)", f"z - {MAX}": f"z - {MAX} + mask"},
        ),
        Mistake(
            "the mask is too weak",
            "Print your z for a forbidden score of 5000. How large may a score become before its token is seen after all?",
            {"-1e30": "-100.0"},
            {"-1e30": "-1000.0"},
        ),
        Mistake(
            "one maximum is taken off all rows",
            "A whole row may lie a thousand below the largest score. What does exp make of such a row, and what is its sum?",
            {MAX: "z.max()"},
        ),
    ),
)
