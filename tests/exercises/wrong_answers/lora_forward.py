"""Wrong answers to lora_forward, written differently from the solution."""

HEAD = "import numpy as np\ndef lora_forward(x, W, A, B, alpha):\n"

ANSWERS = {
    "the scaling is missing": HEAD + "    return x @ (W + B @ A).T\n",
    "the scaling is applied twice": HEAD
    + "    s = alpha / len(A)\n    h = s * np.einsum('...i,ri->...r', x, A)\n    return x @ W.T + s * (h @ B.T)\n",
    "the scaling grows with the rank (alpha times r)": HEAD
    + "    r, _ = A.shape\n    return x @ W.T + x @ (r * alpha * B @ A).T\n",
    "alpha alone is the scaling": HEAD + "    return x @ W.T + alpha * (x @ A.T @ B.T)\n",
    "the scaling is inverted (r over alpha)": HEAD + "    return x @ (W + len(A) / alpha * B @ A).T\n",
    "the scaling divides by the square root of the rank": HEAD
    + "    return x @ (W + alpha * len(A) ** -0.5 * B @ A).T\n",
    "the scaling is rounded down": HEAD + "    return x @ (W + int(alpha / len(A)) * B @ A).T\n",
    "the rank is read from the wrong axis": HEAD + "    return x @ W.T + alpha / len(B) * np.dot(x @ A.T, B.T)\n",
    "the bypass is subtracted": HEAD + "    return x @ (W - alpha / len(A) * np.dot(B, A)).T\n",
    "more than y is returned": HEAD + "    s = alpha / len(A)\n    return x @ (W + s * B @ A).T, (x, A, B, s)\n",
    "the frozen path is scaled too": HEAD + "    return alpha / B.shape[1] * (x @ (W + B @ A).T)\n",
    "the frozen path is missing": HEAD + "    return (x @ A.T) @ B.T * alpha / A.shape[0]\n",
    "A and B are swapped": HEAD + "    return x @ W.T + (alpha / A.shape[0]) * (x @ (B @ A))\n",
    "W is not transposed": HEAD + "    return np.dot(x, W) + (alpha / A.shape[0]) * np.dot(np.dot(x, A.T), B.T)\n",
    "B is not transposed": HEAD + "    return np.dot(x, W.T) + (alpha / A.shape[0]) * np.dot(np.dot(x, A.T), B)\n",
    "none of the three matrices is transposed": HEAD
    + "    h = np.dot(np.dot(x, A), B)\n    return np.dot(x, W) + h * alpha / len(A)\n",
    "A is not transposed": HEAD + "    return np.dot(x, W.T) + (alpha / A.shape[0]) * np.dot(np.dot(x, A), B.T)\n",
}

UNKNOWN = [
    HEAD + "    return x @ W.T + alpha / (A.shape[0] + 1) * (x @ A.T) @ B.T\n",
    HEAD + "    return np.tanh(x @ W.T + alpha / A.shape[0] * (x @ A.T) @ B.T)\n",
]
