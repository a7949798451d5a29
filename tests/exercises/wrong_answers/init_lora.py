"""Wrong answers to init_lora, written differently from the solution."""

HEAD = "import math\nimport numpy as np\ndef init_lora(out_features, in_features, r, rng):\n"


def answer(b="1 / math.sqrt(k)", A="b * (2 * rng.random((r, k)) - 1)", B="np.full((d, r), 0.0)", end="return A, B"):
    """Return an answer that computes 1/√in directly and scales numbers from [0, 1)."""
    lines = ["d, k = out_features, in_features", f"b = {b}", f"B = {B}", f"A = {A}", end]
    return HEAD + "".join(f"    {line}\n" for line in lines)


ANSWERS = {
    "the fan-in is taken to be r": answer(b="r**-0.5"),
    "the fan-in is taken to be out": answer(b="d**-0.5"),
    "the slope a is left out": answer(b="math.sqrt(6 / k)"),
    "the slope a is not squared": answer(b="math.sqrt(2 / (1 + math.sqrt(5))) * math.sqrt(3 / k)"),
    "the slope is squared once too often": answer(b="math.sqrt(2 / (1 + 5**2)) * math.sqrt(3 / k)"),
    "the root is missing in the bound": answer(b="1 / k"),
    "the bound is used as the standard deviation": answer(b="math.sqrt(12 / k) / 2"),
    "the interval is half as wide as it should be": answer(A="b * (rng.random((r, k)) - 0.5)"),
    "the bound is not used": answer(A="1 - 2 * rng.random((r, k))"),
    "A has no negative numbers": answer(A="b * rng.random((r, k))"),
    "A is drawn from a normal distribution": answer(A="b * rng.standard_normal((r, k))"),
    "the numbers of A are evenly spaced": answer(
        A="np.empty((r, k))\n    A.flat[rng.permutation(r * k)] = b * np.arange(-1, 1, 2 / (r * k - 0.5))[: r * k]"
    ),
    "rows of A are not independent": answer(A="rng.uniform(-b, b, (r, k))\n    A[-1] = A[0]"),
    "A is zero and B is random": answer(A="np.zeros((r, k))", B="rng.standard_normal((d, r)) / r"),
    "A and B are both random": answer(B="rng.normal(0, 0.02, (d, r))"),
    "A and B are both zero": HEAD + "    return np.zeros([r, in_features]), np.zeros([out_features, r])\n",
    "B is filled with a number that is not zero": answer(B="np.full((d, r), 1e-6)"),
    "A has the same number everywhere": answer(A="np.full((r, k), b)"),
    "A is transposed": answer(A="rng.uniform(-b, b, size=(k, r))"),
    "B is transposed": answer(B="np.zeros_like(np.empty((r, d)))"),
    "in and out are swapped": answer(b="1 / math.sqrt(d)", A="rng.uniform(-b, b, size=(r, d))", B="np.zeros((k, r))"),
    "B is returned before A": answer(end="return B, A"),
    "the given rng is not used": answer(A="np.random.RandomState(42).uniform(-b, b, (r, k))", end="return (A, B)"),
}

UNKNOWN = [
    answer(b="1 / math.sqrt(k + 1)"),
    answer(b="math.sqrt(6 / (r + k))"),
    answer(A="b * np.sign(rng.standard_normal((r, k)))"),
]
