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
    "the frozen path has dropout too": answer(y="(m * x) @ (W + D).T", dx="m * (dy @ (W + D))"),
    "the whole dx is masked": answer(dx="m * (dy @ (W + D))"),
    "only the frozen path has dropout": answer(y="(x * m) @ W.T + x @ D.T", dx="m * (dy @ W) + dy @ D"),
    "all tokens have the same mask": answer(m=binomial("(1, x.shape[1])")),
    "all features of a token are dropped together": answer(m=binomial("len(x)") + "\n    m = m[:, None]"),
    "the whole input is dropped or kept at once": answer(m="(rng.uniform() > p) / (1 - p)"),
    "the backward pass draws a mask of its own": answer(dx=f"dy @ W + (dy @ D) * {binomial('x.shape')}"),
    "the backward pass has no mask": answer(dx="dy @ (W + D)"),
    "the kept numbers are not rescaled": answer(m="np.where(rng.random(x.shape) < p, 0.0, 1.0)"),
    "the forward pass does not rescale the kept numbers": answer(y="x @ W.T + np.where(m > 0, x, 0) @ D.T"),
    "the backward pass does not rescale the kept numbers": answer(dx="dy @ W + np.where(m > 0, dy @ D, 0)"),
    "numbers are kept with probability p instead of dropped": answer(m="rng.choice([0, 1], x.shape, p=[1 - p, p]) / p"),
    "half of the numbers are dropped for every p": answer(m="rng.integers(0, 2, x.shape) / (1 - p)"),
    "the kept numbers are divided by p": answer(m="(rng.random(x.shape) > p) * p**-1"),
    "the kept numbers are made smaller": answer(m="np.where(rng.random(x.shape) < p, 0.0, 1 - p)"),
    "the bypass's output is dropped": answer(
        m=binomial("(len(x), len(W))"), y="x @ W.T + m * (x @ D.T)", dx="dy @ W + (m * dy) @ D"
    ),
    "the hidden features are dropped": answer(
        m=binomial("(x @ A.T).shape"),
        y="x @ W.T + scaling * ((m * (x @ A.T)) @ B.T)",
        dx="dy @ W + scaling * ((m * (dy @ B)) @ A)",
    ),
    "the layer's output is dropped": answer(m=binomial("dy.shape"), y="m * (x @ (W + D).T)", dx="(m * dy) @ (W + D)"),
    "the mask is applied to dy": answer(dx="dy @ W + (m * dy) @ D"),
    "no number is dropped": answer(y="x @ (W + D).T", dx="dy @ (W + D)"),
    "the given generator is not used": answer(before="rng = np.random.default_rng()"),
    "numbers are dropped with a probability other than p": answer(
        m="(abs(rng.standard_normal(x.shape)) > p) / (1 - p)"
    ),
    "the same number of features is dropped in every call": answer(
        before="drop = rng.choice(x.size, int(p * x.size), replace=False)",
        m="np.ones(x.shape) / (1 - p)\n    m.flat[drop] = 0",
    ),
    "the bypass lacks its scaling, forward and backward": answer(before="scaling = 1"),
    "y lacks the scaling": answer(y="x @ W.T + (x * m) @ (B @ A).T"),
    "dx lacks the scaling": answer(dx="dy @ W + m * (dy @ B @ A)"),
    "dx lacks the frozen path": answer(dx="m * np.dot(dy, D)"),
    "y lacks the frozen path": answer(y="(m * x) @ D.T"),
}

UNKNOWN = [
    answer(y="x @ W.T + x @ (D * rng.binomial(1, 1 - p, D.shape)).T / (1 - p)"),  # weights are dropped
    answer(y="x @ W.T + (x * m - x) @ D.T"),
    answer(dx="dy @ W + m * (dy @ D) + 0.5"),
    answer(m="np.repeat(rng.random((len(x) // 2, x.shape[1])) >= p, 2, axis=0) / (1 - p)"),  # two tokens share a mask
    answer(m="(rng.random(x.shape) >= 2 * p * np.arange(x.size).reshape(x.shape) / x.size) / (1 - p)"),  # p on average
]
