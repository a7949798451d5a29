"""The backward pass of attention, one head with a causal mask: dq, dk and dv of softmax(q kᵀ/√d + mask) v."""

from __future__ import annotations

import numpy as np

from ..exercise import Case, Exercise, Mistake


def cases(seed: int = 9) -> list[Case]:
    rng = np.random.default_rng(seed)

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
            "the derivative of the softmax lacks the second term",
            "A constant added to all scores of a row does not change the shares p, so each row of dz has the "
            "sum zero. Test it: print the sum of each row of your dz.",
            {DZ: "p * dp"},
        ),
        Mistake(
            "the derivative of the softmax lacks the outer factor p",
            "The share p of a masked token is 0, so the gradient of its score is 0. Test it: print your dz "
            "for a masked token. Is this number 0?",
            {DZ: "dp - dot"},
        ),
        Mistake(
            "a token does not attend to itself",
            "The first token attends only to itself. Test it: print the first row of your shares p. Is this "
            "row 1, 0, 0, …?",
            {MASK: MASK.replace("k=1", "k=0")},
            {MASK: "mask = np.triu(np.full((t, t), -np.inf), k=0)"},
            {MASK: "mask = np.triu(np.full((t, t), -1e9), k=0)"},
        ),
        Mistake(
            "a token attends to the next token too",
            "The first token attends only to itself. Test it: print the first row of your shares p. How many "
            "shares of this row are not zero?",
            {MASK: MASK.replace("k=1", "k=2")},
        ),
        Mistake(
            "the causal mask is missing",
            "The share p[t, u] must be zero if the token u comes after the token t. Test it: print your "
            "shares p. Are these shares zero?",
            {" + mask": ""},
        ),
        Mistake(
            "the causal mask hides the earlier tokens instead of the later tokens",
            "Test it: print your shares p for three tokens. Above the diagonal, the key comes after the "
            "query. Are your shares zero above the diagonal?",
            {MASK: "mask = np.tril(np.full((t, t), -1e30), k=-1)"},
        ),
        Mistake(
            "the causal mask is applied after the softmax instead of before the softmax",
            "Each row of the shares p must have the sum 1. Test it: print the sum of each row of your shares. "
            "Which line changes the sums after the softmax?",
            {" + mask": "", SHARES: f"np.tril({SHARES})"},
        ),
        Mistake(
            "the masked scores are set to zero instead of a very negative number",
            "The exponential of a score of 0 is 1, so the share of this score is not zero. Test it: print your shares p "
            "above the diagonal. Are these shares zero?",
            {MASKED: "z = np.tril(scale * (q @ k.T))"},
        ),
        Mistake(
            "the gradients dq and dk lack the factor 1/√d",
            "The equation z = q kᵀ/√d has three factors. Which of these factors is missing in your dq and dk?",
            {DQ: "dz @ k", DK: "dz.T @ q"},
        ),
        Mistake(
            "the gradient dq lacks the factor 1/√d",
            "q and k enter z in the same way, so dq and dk have the same factors. Which factor of your dk is "
            "missing in your dq?",
            {DQ: "dz @ k"},
        ),
        Mistake(
            "the gradient dk lacks the factor 1/√d",
            "q and k enter z in the same way, so dq and dk have the same factors. Which factor of your dq is "
            "missing in your dk?",
            {DK: "dz.T @ q"},
        ),
        Mistake(
            "the factor 1/√d is missing in the forward and the backward pass",
            "Test it: let all numbers of q and k be 1, with d = 4, and print your z. The correct scores are 2. Which "
            "factor of the equation does your code not use?",
            {SCALE: "1.0"},
        ),
        Mistake(
            "the scores z lack the factor 1/√d",
            "Test it: let all numbers of q and k be 1, with d = 4, and print your z. The correct scores are 2. Does "
            "your line for z multiply by 1/√d?",
            {"scale * (q @ k.T)": "q @ k.T"},
        ),
        Mistake(
            "the gradients dq and dk are multiplied by 1/√d twice",
            "The equation for z contains the factor 1/√d once. How often does your code multiply by 1/√d between dz and dq?",
            {DZ: f"scale * {DZ}"},
            {DQ: f"scale * {DQ}", DK: f"scale * {DK}"},
        ),
        Mistake(
            "the gradient dk is multiplied by 1/√d twice",
            "Does your stored q already contain the factor 1/√d? Count this factor in every array that your "
            "line for dk uses.",
            {DK: f"scale * {DK}"},
        ),
        Mistake(
            "the scores z are divided by d instead of √d",
            "Test it: let all numbers of q and k be 1, with d = 4, and print your z. The correct scores are 2. By "
            "which number does your code divide?",
            {SCALE: "1 / d"},
        ),
        Mistake(
            "the scores z are divided by the square root of the number of tokens instead of √d",
            "Test it: add a token at the end of the sequence. The score between the first two tokens should "
            "not change. Does this score change?",
            {SCALE: "1 / np.sqrt(t)"},
        ),
        Mistake(
            "the gradient dk is computed from dz instead of dzᵀ",
            "The first index of dz is the query, and the second index is the key. For dk, the sum runs over "
            "the queries. Over which index does your code sum?",
            {DK: "scale * (dz @ q)"},
        ),
        Mistake(
            "the gradient dv is computed from p instead of pᵀ",
            "The first index of p is the query, and the second index is the value. For dv, the sum runs over "
            "the queries. Over which index does your code sum?",
            {"p.T @ do": "p @ do"},
        ),
        Mistake(
            "the softmax runs over the queries instead of the keys",
            "The shares of one query are one row of p and must have the sum 1. Test it: print the sum of each "
            "row of your p. Are these sums 1?",
            {MAX: MAX.replace("-1", "0"), SUM: SUM.replace("-1", "0")},
            {SUM: SUM.replace("-1", "0")},
        ),
        Mistake(
            "the sum in the softmax lacks its last axis (keepdims=True)",
            "With a sum of shape (t,), NumPy divides each column by one number, but each row must be divided by one "
            "number. Test it: print the shape of your sum.",
            {SUM: "e.sum(axis=-1)"},
            {MAX: "z.max(axis=-1)", SUM: "e.sum(axis=-1)"},
        ),
        Mistake(
            "the inner sum in the softmax's derivative runs over the queries instead of the keys",
            "Each row of p is a separate softmax, so the inner sum runs along a row. Along which axis does "
            "your sum run?",
            {DOT: DOT.replace("-1", "0")},
        ),
        Mistake(
            "the inner sum in the softmax's derivative lacks its last axis (keepdims=True)",
            "With a sum of shape (t,), NumPy subtracts one number from each column of dp, but one number must be "
            "subtracted from each row. Test it: print the shape of your inner sum.",
            {DOT: "(p * dp).sum(axis=-1)"},
        ),
        Mistake(
            "the inner sum in the softmax's derivative runs over all queries and keys instead of the keys of one query",
            "Test it: change one number in the last row of `do`. The first row of dz should not change. Does your "
            "first row change?",
            {DOT: "(p * dp).sum()"},
        ),
        Mistake(
            "the gradients dq and dk are swapped",
            "The first query attends to one key only, so the share of this key is always 1 and the first row of dq "
            "is zero. Which of your two arrays has a first row of zeros?",
            {"return dq, dk, dv": "return dk, dq, dv"},
        ),
        Mistake(
            "the function returns dv first instead of last",
            "The docstring asks for dq, dk, dv. Test it: set v to zero, so that dq and dk are zero. Are the "
            "first two returned arrays zero?",
            {"return dq, dk, dv": "return dv, dq, dk"},
            {"return dq, dk, dv": "return dv, dk, dq"},
        ),
        Mistake(
            "the gradient dp is transposed",
            "Like p, dp has the query as its first index. Which of the arrays v and `do` has one row per query? Is "
            "this array the first factor of your product?",
            {"dp = do @ v.T": "dp = v @ do.T"},
        ),
        Mistake(
            "the gradient dq is computed with q instead of k",
            "z is linear in q, so the derivative of z with respect to q does not contain q. Which array does "
            "this derivative contain?",
            {DQ: "scale * (dz @ q)"},
        ),
        Mistake(
            "the gradient dk is computed with k instead of q",
            "Test it: set q to zero. Then k does not change the output, so dk is zero. Is your dk zero?",
            {DK: "scale * (dz.T @ k)"},
        ),
        Mistake(
            "the array v is not transposed in the gradient dp",
            "Your code runs only if t and d are equal. The arrays v and `do` have the shape (t, d), and dp has the "
            "shape (t, t). Which shapes does your product have?",
            {"do @ v.T": "do @ v"},
        ),
        Mistake(
            "the array k is not transposed in the scores z",
            "Your code runs only if t and d are equal. q and k have the shape (t, d), and z has the shape (t, "
            "t). Which shapes does your product have?",
            {"q @ k.T": "q @ k"},
        ),
        Mistake(
            "the exponential overflows for large scores",
            "Test it: print np.exp(800.0). Which number can be subtracted from all scores of a row, so that "
            "the shares do not change?",
            {f"z - {MAX}": "z"},
        ),
        Mistake(
            "the maximum of each row of scores includes masked scores",
            "If a masked score is the largest score of its row, all other exponentials of the row can become "
            "0. Over which scores should the maximum be taken?",
            {MASKED: "z = scale * (q @ k.T)", f"z - {MAX}": f"z - {MAX} + mask"},
        ),
        Mistake(
            "the causal mask subtracts too little from the masked scores",
            "Before the mask is added, a masked score can be 5000. Test it: print your z for a masked token. "
            "Is z so small that the exponential is 0?",
            {"-1e30": "-100.0"},
            {"-1e30": "-1000.0"},
        ),
        Mistake(
            "the maximum of the whole score matrix z is subtracted from every row instead of the maximum of the row",
            "If all scores of a row are a thousand below your maximum, all exponentials of this row are 0. "
            "Which maximum does each row need?",
            {MAX: "z.max()"},
        ),
    ),
)
