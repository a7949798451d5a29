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
    "ΔW is not multiplied by a scaling": HEAD + "    return np.einsum('or,ri->oi', B, A)\n",
    "the scaling of plain LoRA is alpha instead of alpha/r": HEAD + "    return (alpha * B) @ A\n",
    "alpha is left out of the scaling": HEAD
    + "    r = len(A)\n    return B @ A / (math.sqrt(r) if use_rslora else r)\n",
    "alpha is multiplied by the rank r, but it must be divided by r": HEAD
    + "    r = len(A)\n    power = 0.5 if use_rslora else 1\n    return r**power * B @ A * alpha\n",
    "the scaling is inverted: r/alpha instead of alpha/r": HEAD
    + "    r = len(A)\n    if use_rslora:\n        return (B @ A) * r**0.5 / alpha\n    return (B @ A) * r / alpha\n",
    "the scaling divides alpha by the rank r twice": PLAIN + "    return s / r * np.dot(B, A)\n",
    "ΔW is multiplied by the scaling twice": PLAIN + "    return (s * B) @ (s * A)\n",
    "the quotient alpha/r is rounded down to a whole number": HEAD
    + "    r = len(A)\n    s = alpha / math.sqrt(r) if use_rslora else int(alpha / r)\n    return s * B @ A\n",
    "the argument use_rslora has no effect: the scaling is always the scaling of plain LoRA": HEAD
    + "    return sum(np.outer(b, a) for b, a in zip(B.T, A)) * alpha / len(A)\n",
    "the argument use_rslora has no effect: the scaling is always the scaling of rsLoRA": HEAD
    + "    return alpha * len(A) ** -0.5 * B.dot(A)\n",
    "the scalings for use_rslora=True and use_rslora=False are exchanged": HEAD
    + "    r = len(A)\n    s = alpha / r\n    if not use_rslora:\n        s = alpha / math.sqrt(r)\n    return s * (B @ A)\n",
    "the scaling of rsLoRA has alpha under the square root too": with_rslora("math.sqrt(s)"),
    "the scaling of rsLoRA takes the square root of alpha instead of r": with_rslora("alpha**0.5 / r"),
    "the scaling of rsLoRA divides by the square of r instead of the square root of r": with_rslora("alpha / (r * r)"),
    "the scaling of rsLoRA divides by half of r instead of the square root of r": with_rslora("2 * alpha / r"),
    "the exponent 1/2 of the square root lacks its brackets": with_rslora("s / 2"),
    "the square root of the rank is rounded down to a whole number": with_rslora("alpha / math.isqrt(r)"),
    "the rank r is read from the wrong axis of A or B": HEAD
    + "    r = len(B)\n    return alpha / (r**0.5 if use_rslora else r) * np.einsum('or,ri->oi', B, A)\n",
    "the factors of ΔW are multiplied in the wrong order": PLAIN + "    return s * np.dot(A, B)\n",
    "the product ΔW is transposed": PLAIN + "    return s * A.T @ B.T\n",
    "the factor B is transposed in the product": PLAIN + "    return s * np.einsum('ro,ri->oi', B, A)\n",
    "the factor A is transposed in the product": PLAIN + "    return s * np.inner(B, A)\n",
}

UNKNOWN = [
    PLAIN + "    return np.eye(len(B), k) + s * B @ A\n",
    PLAIN + "    return -s * B @ A\n",
    with_rslora("alpha / np.cbrt(r)"),
]
