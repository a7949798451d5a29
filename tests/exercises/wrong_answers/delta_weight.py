"""Wrong answers to delta_weight, written differently from the solution."""

HEAD = "import math\nimport numpy as np\ndef delta_weight(A, B, alpha, use_rslora=False):\n"
PLAIN = HEAD + "    r, k = A.shape\n    s = alpha / (r**0.5 if use_rslora else r)\n"


def with_rslora(scaling):
    """Return an answer that is right without rsLoRA and uses this scaling with rsLoRA."""
    return (
        HEAD
        + f"    r = B.shape[1]\n    s = alpha / r\n    if use_rslora:\n        s = {scaling}\n    return s * (B @ A)\n"
    )


ANSWERS = {
    "ΔW has no scaling": HEAD + "    return np.einsum('or,ri->oi', B, A)\n",
    "alpha alone is the scaling": HEAD + "    return (alpha * B) @ A\n",
    "alpha is left out": HEAD + "    r = len(A)\n    return B @ A / (math.sqrt(r) if use_rslora else r)\n",
    "alpha is multiplied by the rank": HEAD
    + "    r = len(A)\n    power = 0.5 if use_rslora else 1\n    return r**power * B @ A * alpha\n",
    "the quotient is inverted (r over alpha)": HEAD
    + "    r = len(A)\n    if use_rslora:\n        return (B @ A) * r**0.5 / alpha\n    return (B @ A) * r / alpha\n",
    "the scaling divides by the rank twice": PLAIN + "    return s / r * np.dot(B, A)\n",
    "the scaling enters twice": PLAIN + "    return (s * B) @ (s * A)\n",
    "the division is rounded down": HEAD
    + "    r = len(A)\n    s = alpha / math.sqrt(r) if use_rslora else int(alpha / r)\n    return s * B @ A\n",
    "rsLoRA is ignored": HEAD + "    return sum(np.outer(b, a) for b, a in zip(B.T, A)) * alpha / len(A)\n",
    "rsLoRA is always on": HEAD + "    return alpha * len(A) ** -0.5 * B.dot(A)\n",
    "use_rslora has the opposite effect": HEAD
    + "    r = len(A)\n    s = alpha / r\n    if not use_rslora:\n        s = alpha / math.sqrt(r)\n    return s * (B @ A)\n",
    "the root is taken of alpha too": with_rslora("math.sqrt(s)"),
    "the root is taken of alpha instead of the rank": with_rslora("alpha**0.5 / r"),
    "the square of the rank is used instead of its root": with_rslora("alpha / (r * r)"),
    "half the rank is used instead of its square root": with_rslora("2 * alpha / r"),
    "the power 1/2 lacks its brackets": with_rslora("s / 2"),
    "the root is rounded down": with_rslora("alpha / math.isqrt(r)"),
    "the rank is read from the wrong axis": HEAD
    + "    r = len(B)\n    return alpha / (r**0.5 if use_rslora else r) * np.einsum('or,ri->oi', B, A)\n",
    "the factors are multiplied in the wrong order": PLAIN + "    return s * np.dot(A, B)\n",
    "ΔW is transposed": PLAIN + "    return s * A.T @ B.T\n",
    "B is transposed in the product": PLAIN + "    return s * np.einsum('ro,ri->oi', B, A)\n",
    "A is transposed in the product": PLAIN + "    return s * np.inner(B, A)\n",
}

UNKNOWN = [
    PLAIN + "    return np.eye(len(B), k) + s * B @ A\n",
    PLAIN + "    return -s * B @ A\n",
    with_rslora("alpha / np.cbrt(r)"),
]
