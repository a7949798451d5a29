"""Wrong answers to lora_forward, written differently from the solution."""

HEAD = "import numpy as np\ndef lora_forward(x, W, A, B, alpha):\n"

ANSWERS = {
    "the factor alpha/r is missing in the bypass": HEAD + "    return x @ (W + B @ A).T\n",
    "the bypass is multiplied by alpha/r twice": HEAD
    + "    s = alpha / len(A)\n    h = s * np.einsum('...i,ri->...r', x, A)\n    return x @ W.T + s * (h @ B.T)\n",
    "the scaling is alpha times r instead of alpha/r": HEAD
    + "    r, _ = A.shape\n    return x @ W.T + x @ (r * alpha * B @ A).T\n",
    "the scaling is alpha instead of alpha/r": HEAD + "    return x @ W.T + alpha * (x @ A.T @ B.T)\n",
    "the scaling is r/alpha instead of alpha/r": HEAD + "    return x @ (W + len(A) / alpha * B @ A).T\n",
    "the scaling divides alpha by the square root of r instead of r": HEAD
    + "    return x @ (W + alpha * len(A) ** -0.5 * B @ A).T\n",
    "the scaling alpha/r is rounded down to a whole number": HEAD
    + "    return x @ (W + int(alpha / len(A)) * B @ A).T\n",
    "the rank r is read from the wrong axis of A or B": HEAD
    + "    return x @ W.T + alpha / len(B) * np.dot(x @ A.T, B.T)\n",
    "the bypass is subtracted from x Wᵀ instead of added": HEAD
    + "    return x @ (W - alpha / len(A) * np.dot(B, A)).T\n",
    "the function returns more than the array y": HEAD
    + "    s = alpha / len(A)\n    return x @ (W + s * B @ A).T, (x, A, B, s)\n",
    "the frozen path x Wᵀ is multiplied by the scaling too": HEAD
    + "    return alpha / B.shape[1] * (x @ (W + B @ A).T)\n",
    "the frozen path x Wᵀ is missing in the output": HEAD + "    return (x @ A.T) @ B.T * alpha / A.shape[0]\n",
    "A and B are swapped in the bypass": HEAD + "    return x @ W.T + (alpha / A.shape[0]) * (x @ (B @ A))\n",
    "the weight matrix W is not transposed": HEAD
    + "    return np.dot(x, W) + (alpha / A.shape[0]) * np.dot(np.dot(x, A.T), B.T)\n",
    "the factor B is not transposed": HEAD
    + "    return np.dot(x, W.T) + (alpha / A.shape[0]) * np.dot(np.dot(x, A.T), B)\n",
    "none of the matrices W, A and B is transposed": HEAD
    + "    h = np.dot(np.dot(x, A), B)\n    return np.dot(x, W) + h * alpha / len(A)\n",
    "the factor A is not transposed": HEAD
    + "    return np.dot(x, W.T) + (alpha / A.shape[0]) * np.dot(np.dot(x, A), B.T)\n",
}

UNKNOWN = [
    HEAD + "    return x @ W.T + alpha / (A.shape[0] + 1) * (x @ A.T) @ B.T\n",
    HEAD + "    return np.tanh(x @ W.T + alpha / A.shape[0] * (x @ A.T) @ B.T)\n",
]
