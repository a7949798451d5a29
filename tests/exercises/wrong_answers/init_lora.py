"""Wrong answers to init_lora, written differently from the solution."""

HEAD = "import math\nimport numpy as np\ndef init_lora(out_features, in_features, r, rng):\n"


def answer(b="1 / math.sqrt(k)", A="b * (2 * rng.random((r, k)) - 1)", B="np.full((d, r), 0.0)", end="return A, B"):
    """Return an answer that computes 1/√in directly and scales numbers from [0, 1)."""
    lines = ["d, k = out_features, in_features", f"b = {b}", f"B = {B}", f"A = {A}", end]
    return HEAD + "".join(f"    {line}\n" for line in lines)


ANSWERS = {
    "the bound b is computed from r instead of the number of input features": answer(b="r**-0.5"),
    "the bound b is computed from the number of output features instead of the number of input features": answer(
        b="d**-0.5"
    ),
    "the slope a is left out of the bound b": answer(b="math.sqrt(6 / k)"),
    "the slope a is not squared in the bound b": answer(b="math.sqrt(2 / (1 + math.sqrt(5))) * math.sqrt(3 / k)"),
    "the slope a is squared twice in the bound b": answer(b="math.sqrt(2 / (1 + 5**2)) * math.sqrt(3 / k)"),
    "the square root is missing in the bound b": answer(b="1 / k"),
    "the bound b is used as the standard deviation of A": answer(b="math.sqrt(12 / k) / 2"),
    "the numbers of A are drawn from an interval that is half as wide as the interval from −b to b": answer(
        A="b * (rng.random((r, k)) - 0.5)"
    ),
    "the bound b is not used for the numbers of A": answer(A="1 - 2 * rng.random((r, k))"),
    "the numbers of A are drawn between 0 and b instead of between −b and b": answer(A="b * rng.random((r, k))"),
    "the numbers of A are drawn from a normal distribution instead of a uniform distribution": answer(
        A="b * rng.standard_normal((r, k))"
    ),
    "the numbers of A are evenly spaced instead of random": answer(
        A="np.empty((r, k))\n    A.flat[rng.permutation(r * k)] = b * np.arange(-1, 1, 2 / (r * k - 0.5))[: r * k]"
    ),
    "the rows of A are not independent of each other": answer(A="rng.uniform(-b, b, (r, k))\n    A[-1] = A[0]"),
    "A starts at zero and B is random, but A must be random and B must start at zero": answer(
        A="np.zeros((r, k))", B="rng.standard_normal((d, r)) / r"
    ),
    "A and B are both random, but B must start at zero": answer(B="rng.normal(0, 0.02, (d, r))"),
    "A and B are both zero, but A must be random": HEAD
    + "    return np.zeros([r, in_features]), np.zeros([out_features, r])\n",
    "B starts with a number that is not zero": answer(B="np.full((d, r), 1e-6)"),
    "all numbers of A are equal": answer(A="np.full((r, k), b)"),
    "A has the transposed shape (in, r) instead of (r, in)": answer(A="rng.uniform(-b, b, size=(k, r))"),
    "B has the transposed shape (r, out) instead of (out, r)": answer(B="np.zeros_like(np.empty((r, d)))"),
    "the numbers of input and output features are swapped in the shapes of A and B": answer(
        b="1 / math.sqrt(d)", A="rng.uniform(-b, b, size=(r, d))", B="np.zeros((k, r))"
    ),
    "the function returns B, A instead of A, B": answer(end="return B, A"),
    "the random generator rng of the caller is not used": answer(
        A="np.random.RandomState(42).uniform(-b, b, (r, k))", end="return (A, B)"
    ),
}

UNKNOWN = [
    answer(b="1 / math.sqrt(k + 1)"),
    answer(b="math.sqrt(6 / (r + k))"),
    answer(A="b * np.sign(rng.standard_normal((r, k)))"),
]
