"""Wrong answers to attention_backward, written differently from the solution."""

HEAD = "import numpy as np\ndef attention_backward(do, q, k, v):\n"
LINES = {
    "scale": "    s = d ** -0.5\n",
    "scores": "    z = np.einsum('tc,uc->tu', q, k) * s\n",
    "mask": "    z = np.where(np.tri(t, dtype=bool), z, -np.inf)\n",
    "exp": "    p = np.exp(z - np.max(z, axis=1)[:, None])\n",
    "shares": "    p = p / np.sum(p, axis=1)[:, None]\n",
    "dv": "    dv = np.einsum('tu,tc->uc', p, do)\n",
    "dp": "    dp = np.einsum('tc,uc->tu', do, v)\n",
    "dz": "    dz = p * dp - p * np.einsum('tu,tu->t', p, dp)[:, None]\n",
    "dq": "    dq = np.einsum('tu,uc->tc', dz, k) * s\n",
    "dk": "    dk = np.einsum('tu,tc->uc', dz, q) * s\n",
    "out": "    return dq, dk, dv\n",
}


def answer(**changed: str) -> str:
    lines = LINES | {name: f"    {line}\n" for name, line in changed.items()}
    return HEAD + "    t, d = q.shape\n" + "".join(lines.values())


ANSWERS = {
    "the derivative of the softmax lacks the second term": answer(dz="dz = dp * p"),
    "the derivative of the softmax lacks the outer factor p": answer(dz="dz = dp - (dp * p).sum(1)[:, None]"),
    "a token does not attend to itself": answer(mask="z = np.where(np.tri(t, k=-1, dtype=bool), z, -1e30)"),
    "a token attends to the next token too": answer(mask="z = np.where(np.tri(t, k=1, dtype=bool), z, -1e30)"),
    "the causal mask is missing": answer(mask=""),
    "the causal mask hides the earlier tokens instead of the later tokens": answer(
        mask="z = np.where(np.tri(t, dtype=bool).T, z, -np.inf)"
    ),
    "the causal mask is applied after the softmax instead of before the softmax": answer(
        mask="", shares="p = np.tri(t) * p / np.sum(p, axis=1)[:, None]"
    ),
    "the masked scores are set to zero instead of a very negative number": answer(mask="z = z * np.tri(t)"),
    "the gradients dq and dk lack the factor 1/√d": answer(dq="dq = dz @ k", dk="dk = (q.T @ dz).T"),
    "the gradient dq lacks the factor 1/√d": answer(dq="dq = np.dot(dz, k)"),
    "the gradient dk lacks the factor 1/√d": answer(dk="dk = (q.T @ dz).T"),
    "the factor 1/√d is missing in the forward and the backward pass": HEAD
    + "    t, d = q.shape\n"
    + "".join(LINES[name] for name in LINES if name != "scale").replace(" * s\n", "\n"),
    "the scores z lack the factor 1/√d": answer(scores="z = np.inner(q, k)"),
    "the gradients dq and dk are multiplied by 1/√d twice": answer(
        dz="dz = s * (p * dp - p * np.sum(p * dp, axis=1)[:, None])"
    ),
    "the gradient dk is multiplied by 1/√d twice": answer(scores="q = s * q\n    z = q @ k.T"),
    "the scores z are divided by d instead of √d": answer(scale="s = 1 / d"),
    "the scores z are divided by the square root of the number of tokens instead of √d": answer(
        scale="s = len(q) ** -0.5"
    ),
    "the gradient dk is computed from dz instead of dzᵀ": answer(dk="dk = dz @ (s * q)"),
    "the gradient dv is computed from p instead of pᵀ": answer(dv="dv = np.einsum('tu,uc->tc', p, do)"),
    "the softmax runs over the queries instead of the keys": answer(
        mask="z = np.where(np.tri(t, dtype=bool), z, -1e30)",
        exp="p = np.exp(z - np.max(z, axis=0)[None, :])",
        shares="p = p / np.sum(p, axis=0)[None, :]",
    ),
    "the sum in the softmax lacks its last axis (keepdims=True)": answer(shares="p = p / np.sum(p, axis=1)"),
    "the inner sum in the softmax's derivative runs over the queries instead of the keys": answer(
        dz="dz = p * dp - p * np.einsum('tu,tu->u', p, dp)"
    ),
    "the inner sum in the softmax's derivative lacks its last axis (keepdims=True)": answer(
        dz="dz = p * dp - p * np.einsum('tu,tu->t', p, dp)"
    ),
    "the inner sum in the softmax's derivative runs over all queries and keys instead of the keys of one query": answer(
        dz="dz = p * dp - p * np.vdot(p, dp)"
    ),
    "the gradients dq and dk are swapped": answer(dq="dq = (q.T @ dz).T * s", dk="dk = dz @ k * s"),
    "the function returns dv first instead of last": answer(out="return dv, dq, dk"),
    "the gradient dp is transposed": answer(dp="dp = np.einsum('tc,uc->ut', do, v)"),
    "the maximum of each row of scores includes masked scores": answer(
        mask="", exp="p = np.tri(t) * np.exp(z - np.max(z, axis=1)[:, None])"
    ),
    "the causal mask subtracts too little from the masked scores": answer(mask="z = z - 50 * (1 - np.tri(t))"),
    "the gradient dq is computed with q instead of k": answer(dq="dq = np.einsum('tu,uc->tc', dz, q) * s"),
    "the gradient dk is computed with k instead of q": answer(dk="dk = np.einsum('tu,tc->uc', dz, k) * s"),
    "the array v is not transposed in the gradient dp": answer(dp="dp = np.dot(do, v)"),
    "the array k is not transposed in the scores z": answer(scores="z = s * np.dot(q, k)"),
    "the maximum of the whole score matrix z is subtracted from every row instead of the maximum of the row": answer(
        exp="p = np.exp(z - np.amax(z))"
    ),
    "the exponential overflows for large scores": answer(exp="p = np.exp(z)"),
}

UNKNOWN = [
    answer(dz="dz = p * np.sum(p * dp, axis=1)[:, None] - p * dp"),  # the signs of the derivative changed
    answer(dv="dv = np.einsum('tu,tc->uc', p, do) / t"),
    answer(dz="dz = p * dp - p**2 * dp"),  # the diagonal of the Jacobian alone
]
