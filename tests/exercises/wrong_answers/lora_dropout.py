"""Wrong answers to lora_dropout, written differently from the solution."""

HEAD = "import numpy as np\ndef lora_dropout(x, W, A, B, scaling, p, rng, dy):\n"


def answer(
    m="rng.binomial(1, 1 - p, size=x.shape) / (1 - p)",
    y="x @ W.T + (x * m) @ D.T",
    dx="dy @ W + m * (dy @ D)",
    before="pass",
):
    """Return an answer with ΔW as one matrix D, and a mask from a binomial distribution."""
    lines = [before, "D = scaling * np.dot(B, A)", f"m = {m}", f"y = {y}", f"dx = {dx}", "return y, dx"]
    return HEAD + "".join(f"    {line}\n" for line in lines)


def binomial(shape):
    return f"rng.binomial(1, 1 - p, size={shape}) / (1 - p)"


ANSWERS = {
    "the frozen path x Wᵀ has dropout too": answer(y="(m * x) @ (W + D).T", dx="m * (dy @ (W + D))"),
    "the whole gradient dx is masked, but only the part that comes from the bypass must be masked": answer(
        dx="m * (dy @ (W + D))"
    ),
    "dropout is applied to the frozen path instead of the bypass": answer(
        y="(x * m) @ W.T + x @ D.T", dx="m * (dy @ W) + dy @ D"
    ),
    "the same dropout mask is used for all tokens": answer(m=binomial("(1, x.shape[1])")),
    "all features of a token are dropped together": answer(m=binomial("len(x)") + "\n    m = m[:, None]"),
    "the whole input x is dropped or kept at once": answer(m="(rng.uniform() > p) / (1 - p)"),
    "the backward pass draws a second dropout mask": answer(dx=f"dy @ W + (dy @ D) * {binomial('x.shape')}"),
    "the backward pass does not apply the dropout mask": answer(dx="dy @ (W + D)"),
    "the kept numbers of x are not divided by 1 − p": answer(m="np.where(rng.random(x.shape) < p, 0.0, 1.0)"),
    "the forward pass does not divide the kept numbers of x by 1 − p": answer(
        y="x @ W.T + np.where(m > 0, x, 0) @ D.T"
    ),
    "the backward pass does not divide the gradients of the kept numbers by 1 − p": answer(
        dx="dy @ W + np.where(m > 0, dy @ D, 0)"
    ),
    "the numbers of x are kept with probability p, but they must be dropped with probability p": answer(
        m="rng.choice([0, 1], x.shape, p=[1 - p, p]) / p"
    ),
    "half of the numbers of x are dropped for every p": answer(m="rng.integers(0, 2, x.shape) / (1 - p)"),
    "the kept numbers of x are divided by p instead of 1 − p": answer(m="(rng.random(x.shape) > p) * p**-1"),
    "the kept numbers of x are made smaller instead of larger": answer(
        m="np.where(rng.random(x.shape) < p, 0.0, 1 - p)"
    ),
    "dropout is applied to the output of the bypass instead of x": answer(
        m=binomial("(len(x), len(W))"), y="x @ W.T + m * (x @ D.T)", dx="dy @ W + (m * dy) @ D"
    ),
    "dropout is applied to the hidden features x Aᵀ instead of x": answer(
        m=binomial("(x @ A.T).shape"),
        y="x @ W.T + scaling * ((m * (x @ A.T)) @ B.T)",
        dx="dy @ W + scaling * ((m * (dy @ B)) @ A)",
    ),
    "dropout is applied to the output y of the layer instead of x": answer(
        m=binomial("dy.shape"), y="m * (x @ (W + D).T)", dx="(m * dy) @ (W + D)"
    ),
    "the backward pass applies the dropout mask to dy instead of dx": answer(dx="dy @ W + (m * dy) @ D"),
    "no number of x is dropped": answer(y="x @ (W + D).T", dx="dy @ (W + D)"),
    "the random generator rng of the caller is not used": answer(before="rng = np.random.default_rng()"),
    "the numbers of x are dropped with a probability other than p": answer(
        m="(abs(rng.standard_normal(x.shape)) > p) / (1 - p)"
    ),
    "every call drops exactly the same number of features": answer(
        before="drop = rng.choice(x.size, int(p * x.size), replace=False)",
        m="np.ones(x.shape) / (1 - p)\n    m.flat[drop] = 0",
    ),
    "the factor scaling is missing both in y and in dx": answer(before="scaling = 1"),
    "the factor scaling is missing in y": answer(y="x @ W.T + (x * m) @ (B @ A).T"),
    "the factor scaling is missing in the gradient dx": answer(dx="dy @ W + m * (dy @ B @ A)"),
    "the gradient dx lacks the part that comes from the frozen path x Wᵀ": answer(dx="m * np.dot(dy, D)"),
    "the output y lacks the frozen path x Wᵀ": answer(y="(m * x) @ D.T"),
}

UNKNOWN = [
    answer(y="x @ W.T + x @ (D * rng.binomial(1, 1 - p, D.shape)).T / (1 - p)"),  # weights are dropped
    answer(y="x @ W.T + (x * m - x) @ D.T"),
    answer(dx="dy @ W + m * (dy @ D) + 0.5"),
    answer(m="np.repeat(rng.random((len(x) // 2, x.shape[1])) >= p, 2, axis=0) / (1 - p)"),  # two tokens share a mask
    answer(m="(rng.random(x.shape) >= 2 * p * np.arange(x.size).reshape(x.shape) / x.size) / (1 - p)"),  # p on average
]
