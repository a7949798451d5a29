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
    "the scale of the block is the largest weight instead of the largest magnitude": loop(
        scale="np.max(w)", each="x / s if s > 0 else x"
    ),
    "the scale of the block is the mean magnitude instead of the largest magnitude": loop(scale="sum(abs(w)) / len(w)"),
    "the scale of the block is the root mean square instead of the largest magnitude": loop(
        scale="(w @ w / len(w)) ** 0.5"
    ),
    "the weights are not divided by the scale of the block": loop(each="x"),
    "the weights of a block of zeros are divided by zero": HEAD
    + "    s = np.max(np.abs(w))\n    q = np.argmin((w[:, None] / s - values[None, :]) ** 2, axis=1)\n"
    + "    return q[0::2] * 16 + q[1::2], s\n",
    "the signs of the weights are lost": loop(each="abs(x) / s if s else 0.0"),
    "each weight gets the next lower of the sixteen values instead of the nearest value": loop(
        pick="sum(v <= t for v in values) - 1"
    ),
    "each weight gets the next higher of the sixteen values instead of the nearest value": loop(
        pick="sum(v < t for v in values)"
    ),
    "each weight gets the furthest of the sixteen values instead of the nearest value": loop(
        pick="max(range(16), key=lambda k: abs(values[k] - t))"
    ),
    "the sixteen values are treated as evenly spaced": loop(pick="round((t + 1) / 2 * 15)"),
    "the upper four bits of a byte contain the second number of the pair instead of the first": loop(
        byte="(b << 4) | a"
    ),
    "weights of the first half of the block are paired with weights of the second half instead of their neighbours": loop(
        pairs="zip(q[:len(q) // 2], q[len(q) // 2:])"
    ),
    "the upper number of a byte is multiplied by less than 16": loop(byte="(a << 3) + b"),
    "the four-bit numbers are not packed in pairs into bytes": loop(byte="a", pairs="zip(q, q)"),
    "the function returns 1 divided by the scale instead of the scale": loop(back="1 / np.float64(s)"),
}

UNKNOWN = [
    loop(pick="min(range(1, 16), key=lambda k: abs(values[k] - t))"),
    loop(byte="a + b"),
]
