"""Wrong answers to quantize_block, written differently from the solution."""

HEAD = "import numpy as np\ndef quantize_block(w, values):\n"


def loop(
    scale="max(abs(x) for x in w)",
    each="x / s if s else 0.0",
    pick="min(range(16), key=lambda k: abs(values[k] - t))",
    pairs="zip(q[0::2], q[1::2])",
    byte="(a << 4) | b",
    back="s",
):
    """Return an answer that quantises weight by weight."""
    return HEAD + (
        f"    s = {scale}\n    q = []\n    for x in w:\n        t = {each}\n        q.append({pick})\n"
        f"    return np.array([{byte} for a, b in {pairs}]), {back}\n"
    )


ANSWERS = {
    "the scale is the largest weight, not the largest magnitude": loop(scale="np.max(w)", each="x / s if s > 0 else x"),
    "the scale is the mean of the magnitudes": loop(scale="sum(abs(w)) / len(w)"),
    "the scale is the root mean square of the weights": loop(scale="(w @ w / len(w)) ** 0.5"),
    "the weights are not scaled": loop(each="x"),
    "a block of zeros is divided by zero": HEAD
    + "    s = np.max(np.abs(w))\n    q = np.argmin((w[:, None] / s - values[None, :]) ** 2, axis=1)\n"
    + "    return q[0::2] * 16 + q[1::2], s\n",
    "the sign is lost": loop(each="abs(x) / s if s else 0.0"),
    "the next lower value is taken instead of the nearest": loop(pick="sum(v <= t for v in values) - 1"),
    "the next higher value is taken instead of the nearest": loop(pick="sum(v < t for v in values)"),
    "the furthest value is taken instead of the nearest": loop(pick="max(range(16), key=lambda k: abs(values[k] - t))"),
    "the sixteen values are treated as if they were evenly spaced": loop(pick="round((t + 1) / 2 * 15)"),
    "the second of two numbers is in the upper four bits": loop(byte="(b << 4) | a"),
    "the first half of the block is paired with the second half": loop(pairs="zip(q[:len(q) // 2], q[len(q) // 2:])"),
    "the upper number is shifted too little": loop(byte="(a << 3) + b"),
    "the numbers are not packed": loop(byte="a", pairs="zip(q, q)"),
    "the reciprocal of the scale is returned": loop(back="1 / np.float64(s)"),
}

UNKNOWN = [
    loop(pick="min(range(1, 16), key=lambda k: abs(values[k] - t))"),
    loop(byte="a + b"),
]
