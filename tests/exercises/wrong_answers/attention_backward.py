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
    "the softmax's derivative lacks its second term": answer(dz="dz = dp * p"),
    "the softmax's derivative lacks its outer factor p": answer(dz="dz = dp - (dp * p).sum(1)[:, None]"),
    "a token does not attend to itself": answer(mask="z = np.where(np.tri(t, k=-1, dtype=bool), z, -1e30)"),
    "a token attends to the next token too": answer(mask="z = np.where(np.tri(t, k=1, dtype=bool), z, -1e30)"),
    "there is no causal mask": answer(mask=""),
    "the mask hides the past and shows the future": answer(mask="z = np.where(np.tri(t, dtype=bool).T, z, -np.inf)"),
    "the mask comes after the softmax": answer(mask="", shares="p = np.tri(t) * p / np.sum(p, axis=1)[:, None]"),
    "masked scores are set to zero": answer(mask="z = z * np.tri(t)"),
    "the backward pass leaves the scaling out of dq and dk": answer(dq="dq = dz @ k", dk="dk = (q.T @ dz).T"),
    "the backward pass leaves the scaling out of dq": answer(dq="dq = np.dot(dz, k)"),
    "the backward pass leaves the scaling out of dk": answer(dk="dk = (q.T @ dz).T"),
    "the scaling is missing in both passes": HEAD
    + "    t, d = q.shape\n"
    + "".join(LINES[name] for name in LINES if name != "scale").replace(" * s\n", "\n"),
    "the forward pass leaves the scaling out of the scores": answer(scores="z = np.inner(q, k)"),
    "the backward pass scales twice": answer(dz="dz = s * (p * dp - p * np.sum(p * dp, axis=1)[:, None])"),
    "dk is scaled twice": answer(scores="q = s * q\n    z = q @ k.T"),
    "the scores are divided by d": answer(scale="s = 1 / d"),
    "the scores are scaled by the number of tokens": answer(scale="s = len(q) ** -0.5"),
    "dk is computed from dz instead of its transpose": answer(dk="dk = dz @ (s * q)"),
    "dv is computed from p instead of its transpose": answer(dv="dv = np.einsum('tu,uc->tc', p, do)"),
    "the softmax runs over the queries": answer(
        mask="z = np.where(np.tri(t, dtype=bool), z, -1e30)",
        exp="p = np.exp(z - np.max(z, axis=0)[None, :])",
        shares="p = p / np.sum(p, axis=0)[None, :]",
    ),
    "the softmax's sum has lost its last axis": answer(shares="p = p / np.sum(p, axis=1)"),
    "the derivative's inner sum runs over the queries": answer(dz="dz = p * dp - p * np.einsum('tu,tu->u', p, dp)"),
    "the derivative's inner sum has lost its last axis": answer(dz="dz = p * dp - p * np.einsum('tu,tu->t', p, dp)"),
    "the derivative's inner sum runs over the whole matrix": answer(dz="dz = p * dp - p * np.vdot(p, dp)"),
    "dq and dk are swapped": answer(dq="dq = (q.T @ dz).T * s", dk="dk = dz @ k * s"),
    "the arrays are returned with dv first": answer(out="return dv, dq, dk"),
    "dp is transposed": answer(dp="dp = np.einsum('tc,uc->ut', do, v)"),
    "the maximum includes masked scores": answer(mask="", exp="p = np.tri(t) * np.exp(z - np.max(z, axis=1)[:, None])"),
    "the mask is too weak": answer(mask="z = z - 50 * (1 - np.tri(t))"),
    "dq is computed with q instead of k": answer(dq="dq = np.einsum('tu,uc->tc', dz, q) * s"),
    "dk is computed with k instead of q": answer(dk="dk = np.einsum('tu,tc->uc', dz, k) * s"),
    "v is not transposed in dp": answer(dp="dp = np.dot(do, v)"),
    "k is not transposed in the scores": answer(scores="z = s * np.dot(q, k)"),
    "one maximum is subtracted from all rows": answer(exp="p = np.exp(z - np.amax(z))"),
    "exp overflows for large scores": answer(exp="p = np.exp(z)"),
}

UNKNOWN = [
    answer(dz="dz = p * np.sum(p * dp, axis=1)[:, None] - p * dp"),  # the signs of the derivative changed
    answer(dv="dv = np.einsum('tu,tc->uc', p, do) / t"),
    answer(dz="dz = p * dp - p**2 * dp"),  # the diagonal of the Jacobian alone
]
