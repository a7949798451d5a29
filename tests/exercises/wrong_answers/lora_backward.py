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
    "the scaling is missing in all gradients": answer(dA="B.T @ dW", dB="dW @ A.T", dx="dy @ W + dy @ B @ A"),
    "the scaling is missing in dA": answer(dA="B.T @ dW"),
    "the scaling is missing in dB": answer(dB="dW @ A.T"),
    "the scaling is missing in dx": answer(dx="dy @ (W + B @ A)"),
    "the scaling is missing in dA and dx": HEAD
    + "    dy = error / len(x)\n    dh = np.einsum('no,or->nr', dy, B)\n    grads['A'] += np.dot(dh.T, x)\n"
    + "    grads['B'] += scaling * np.dot(dy.T, x @ A.T)\n    return np.dot(dy, W) + np.dot(dh, A)\n",
    "the scaling enters all gradients twice": HEAD
    + "    s = scaling\n    dy = error / len(x)\n    h, dh = s * x @ A.T, s * dy @ B\n    grads['A'] += s * dh.T @ x\n"
    + "    grads['B'] += s * dy.T @ h\n    return dy @ W + s * dh @ A\n",
    "the scaling enters dA twice": HEAD
    + "    s = scaling\n    dy = error / len(x)\n    dh = s * dy @ B\n    grads['A'] += s * dh.T @ x\n"
    + "    grads['B'] += dy.T @ (s * x @ A.T)\n    return dy @ W + dh @ A\n",
    "the scaling enters dA and dx twice": HEAD
    + "    s = scaling\n    dy = error / len(x)\n    dh = s * dy @ B\n    grads['A'] += s * dh.T @ x\n"
    + "    grads['B'] += s * np.einsum('no,nr->or', dy, x @ A.T)\n    return dy @ W + s * (dh @ A)\n",
    "dy already contains the scaling": answer(dy="s * error / len(error)"),
    "the scaling enters dB twice": answer(dB="s * (dy.T @ (s * x @ A.T))"),
    "the scaling enters dx twice": answer(dx="dy @ (W + (s * B) @ (s * A))"),
    "A and B are swapped in the backward pass": answer(dA="s * A @ dW", dB="s * dW @ B"),
    "dA is added to B's gradient, and dB to A's": answer(
        add='grads["A"] = grads["A"] + dB\n    grads["B"] = grads["B"] + dA\n    return dx'
    ),
    "dA is transposed": answer(dA="s * dW.T @ B"),
    "dB is transposed": answer(dB="s * A @ dW.T"),
    "W is transposed in dx": answer(dx="dy @ W.T + s * (dy @ B) @ A"),
    "B is transposed in the backward pass": answer(dA="s * B @ dW", dx="dy @ (W + s * B.T @ A)"),
    "A is not transposed in x Aᵀ": answer(dB="s * dW @ A"),
    "A is transposed in dx": answer(dx="dy @ (W + s * B @ A.T)"),
    "the gradients are overwritten": answer(add='grads["A"][:] = dA\n    grads["B"][:] = dB\n    return dx'),
    "dA and dB are not stored in grads": answer(add="return (dx, dA, dB)"),
    "a gradient is computed for W too": answer(
        add='grads["A"] += dA\n    grads["B"] += dB\n    grads["W"] = grads.get("W", 0) + dW\n    return dx'
    ),
    "dx is not returned": answer(add='grads["A"] += dA\n    grads["B"] += dB'),
    "dx lacks the frozen path": answer(dx="s * dy @ (B @ A)"),
    "dx lacks the bypass": answer(dx="np.dot(dy, W)"),
    "the frozen path of dx is scaled too": answer(dx="s * dy @ (W + B @ A)"),
    "the mean over the tokens is forgotten": answer(dy="1.0 * error"),
    "the mean over the tokens is forgotten in dx": answer(dx="len(x) * dy @ (W + s * B @ A)"),
    "the mean over the tokens is taken twice": answer(dA="s * B.T @ dW / len(x)", dB="s * dW @ A.T / len(x)"),
    "the mean is taken over all numbers of the error": answer(dy="error * np.mean(np.ones_like(error)) / error.size"),
    "the mean is taken over the output features": answer(dy="error / W.shape[0]"),
    "all gradients are twice as large as they should be": answer(dy="(error + error) / len(error)"),
    "all gradients are half as large as they should be": answer(dy="0.5 * error / len(error)"),
    "all signs are reversed": answer(dy="(0 - error) / len(error)"),
    "dA and dB are subtracted from grads": answer(add='grads["A"] -= dA\n    grads["B"] -= dB\n    return dx'),
}

UNKNOWN = [
    answer(dA="s * B.T @ dW + 0.01 * A", dB="s * dW @ A.T + 0.01 * B"),
    answer(dA="s * B.T @ dW * np.sign(A)"),
    answer(dB="s * dy.T @ np.maximum(x @ A.T, 0)"),
]
