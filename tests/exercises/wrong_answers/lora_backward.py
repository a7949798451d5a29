"""Wrong answers to lora_backward, written differently from the solution."""

HEAD = "import numpy as np\ndef lora_backward(error, x, W, A, B, scaling, grads):\n"


def answer(dy="error / len(x)", dA="s * B.T @ dW", dB="s * dW @ A.T", dx="dy @ (W + s * B @ A)", add=None):
    """Return an answer that computes dW, as full fine-tuning does, and derives dA and dB from it."""
    add = add or 'grads["A"] = grads["A"] + dA\n    grads["B"] = grads["B"] + dB\n    return dx'
    lines = [
        "s = scaling",
        f"dy = {dy}",
        'dW = np.einsum("no,ni->oi", dy, x)',
        f"dA = {dA}",
        f"dB = {dB}",
        f"dx = {dx}",
    ]
    return HEAD + "".join(f"    {line}\n" for line in [*lines, add])


ANSWERS = {
    "the factor scaling is missing in all three gradients dA, dB and dx": answer(
        dA="B.T @ dW", dB="dW @ A.T", dx="dy @ W + dy @ B @ A"
    ),
    "the factor scaling is missing in the gradient dA": answer(dA="B.T @ dW"),
    "the factor scaling is missing in the gradient dB": answer(dB="dW @ A.T"),
    "the factor scaling is missing in the part of the gradient dx that comes from the bypass": answer(
        dx="dy @ (W + B @ A)"
    ),
    "the factor scaling is missing in the gradients dA and dx": HEAD
    + "    dy = error / len(x)\n    dh = np.einsum('no,or->nr', dy, B)\n    grads['A'] += np.dot(dh.T, x)\n"
    + "    grads['B'] += scaling * np.dot(dy.T, x @ A.T)\n    return np.dot(dy, W) + np.dot(dh, A)\n",
    "all three gradients dA, dB and dx are multiplied by the scaling twice": HEAD
    + "    s = scaling\n    dy = error / len(x)\n    h, dh = s * x @ A.T, s * dy @ B\n    grads['A'] += s * dh.T @ x\n"
    + "    grads['B'] += s * dy.T @ h\n    return dy @ W + s * dh @ A\n",
    "the gradient dA is multiplied by the scaling twice": HEAD
    + "    s = scaling\n    dy = error / len(x)\n    dh = s * dy @ B\n    grads['A'] += s * dh.T @ x\n"
    + "    grads['B'] += dy.T @ (s * x @ A.T)\n    return dy @ W + dh @ A\n",
    "the gradients dA and dx are multiplied by the scaling twice": HEAD
    + "    s = scaling\n    dy = error / len(x)\n    dh = s * dy @ B\n    grads['A'] += s * dh.T @ x\n"
    + "    grads['B'] += s * np.einsum('no,nr->or', dy, x @ A.T)\n    return dy @ W + s * (dh @ A)\n",
    "the gradient dy is multiplied by the scaling": answer(dy="s * error / len(error)"),
    "the gradient dB is multiplied by the scaling twice": answer(dB="s * (dy.T @ (s * x @ A.T))"),
    "the part of the gradient dx that comes from the bypass is multiplied by the scaling twice": answer(
        dx="dy @ (W + (s * B) @ (s * A))"
    ),
    "A and B are swapped in the backward pass": answer(dA="s * A @ dW", dB="s * dW @ B"),
    "dA is added to the gradient of B, and dB is added to the gradient of A": answer(
        add='grads["A"] = grads["A"] + dB\n    grads["B"] = grads["B"] + dA\n    return dx'
    ),
    "the gradient dA is transposed": answer(dA="s * dW.T @ B"),
    "the gradient dB is transposed": answer(dB="s * A @ dW.T"),
    "the weight matrix W is transposed in the gradient dx": answer(dx="dy @ W.T + s * (dy @ B) @ A"),
    "the factor B is transposed in the backward pass": answer(dA="s * B @ dW", dx="dy @ (W + s * B.T @ A)"),
    "the factor A is not transposed in the hidden features x Aᵀ": answer(dB="s * dW @ A"),
    "the factor A is transposed in the gradient dx": answer(dx="dy @ (W + s * B @ A.T)"),
    "the gradients in grads are overwritten instead of added": answer(
        add='grads["A"][:] = dA\n    grads["B"][:] = dB\n    return dx'
    ),
    "the gradients dA and dB are not stored in grads": answer(add="return (dx, dA, dB)"),
    "a gradient of the frozen weight matrix W is computed too": answer(
        add='grads["A"] += dA\n    grads["B"] += dB\n    grads["W"] = grads.get("W", 0) + dW\n    return dx'
    ),
    "the gradient dx is not returned": answer(add='grads["A"] += dA\n    grads["B"] += dB'),
    "the gradient dx lacks the part that comes from the frozen path x Wᵀ": answer(dx="s * dy @ (B @ A)"),
    "the gradient dx lacks the part that comes from the bypass": answer(dx="np.dot(dy, W)"),
    "the part of the gradient dx that comes from the frozen path is multiplied by the scaling": answer(
        dx="s * dy @ (W + B @ A)"
    ),
    "the gradients are not divided by the number of tokens n": answer(dy="1.0 * error"),
    "the gradient dx is not divided by the number of tokens n": answer(dx="len(x) * dy @ (W + s * B @ A)"),
    "the gradients are divided by the number of tokens n twice": answer(
        dA="s * B.T @ dW / len(x)", dB="s * dW @ A.T / len(x)"
    ),
    "the gradients are divided by the size n · out of the error instead of n": answer(
        dy="error * np.mean(np.ones_like(error)) / error.size"
    ),
    "the gradients are divided by the number of output features instead of the number of tokens n": answer(
        dy="error / W.shape[0]"
    ),
    "all three gradients dA, dB and dx are twice as large as they should be": answer(dy="(error + error) / len(error)"),
    "all three gradients dA, dB and dx are half as large as they should be": answer(dy="0.5 * error / len(error)"),
    "the signs of all three gradients dA, dB and dx are reversed": answer(dy="(0 - error) / len(error)"),
    "dA and dB are subtracted from grads instead of added": answer(
        add='grads["A"] -= dA\n    grads["B"] -= dB\n    return dx'
    ),
}

UNKNOWN = [
    answer(dA="s * B.T @ dW + 0.01 * A", dB="s * dW @ A.T + 0.01 * B"),
    answer(dA="s * B.T @ dW * np.sign(A)"),
    answer(dB="s * dy.T @ np.maximum(x @ A.T, 0)"),
]
