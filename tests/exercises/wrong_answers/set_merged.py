"""Wrong answers to set_merged, written differently from the solution."""

HEAD = "import numpy as np\ndef set_merged(layer, merged):\n"
FIVE = "    W, A, B, s, now = (layer[key] for key in ('W', 'A', 'B', 'scaling', 'merged'))\n"
BOTH = (
    HEAD + FIVE + "    if now != merged:\n        W += (1 if merged else -1) * {}\n        layer['merged'] = merged\n"
)

ANSWERS = {
    "the merged weight lacks the scaling": BOTH.format("np.dot(B, A)"),
    "the merged weight contains the scaling twice": BOTH.format("(s * B) @ (s * A)"),
    "only one of merging and unmerging uses the scaling": HEAD
    + FIVE
    + "    if merged and not now:\n        W += s * np.einsum('or,ri->oi', B, A)\n"
    + "    if now and not merged:\n        W -= np.einsum('or,ri->oi', B, A)\n"
    + "    layer['merged'] = merged\n",
    "the layer's state is not read": HEAD
    + FIVE
    + "    W += s * B @ A if merged else -s * B @ A\n    layer['merged'] = merged\n",
    "an already merged layer is merged again": HEAD
    + FIVE
    + "    if merged:\n        W += s * B @ A\n    elif now:\n        W -= s * B @ A\n    layer['merged'] = merged\n",
    "an unmerged layer is unmerged again": HEAD
    + FIVE
    + "    if merged and not now:\n        W += s * B @ A\n"
    + "    elif not merged:\n        W -= s * B @ A\n"
    + "    layer['merged'] = merged\n",
    "the state is switched without reading `merged`": HEAD
    + FIVE
    + "    W += (-s if now else s) * B @ A\n    layer['merged'] = not now\n",
    "the new state is not stored in the layer": HEAD
    + FIVE
    + "    if now == merged:\n        return\n    W += (s if merged else -s) * (B @ A)\n    now = merged\n",
    "unmerging adds the bypass a second time": HEAD
    + FIVE
    + "    if now is not merged:\n        np.add(W, s * B @ A, out=W)\n    layer['merged'] = merged\n",
    "merging subtracts and unmerging adds": HEAD
    + FIVE
    + "    W -= (int(merged) - int(now)) * s * B @ A\n    layer['merged'] = merged\n",
    "unmerging leaves the bypass in W": HEAD
    + FIVE
    + "    if merged and not now:\n        W += s * B @ A\n    layer['merged'] = merged\n",
    "unmerging restores an old copy of W": HEAD
    + FIVE
    + "    if merged and not now:\n        layer['before'] = np.array(W)\n        W[:] = W + B @ A * s\n"
    + "    elif now and not merged:\n        W[:] = layer.pop('before')\n"
    + "    layer['merged'] = merged\n",
    "W is replaced by a new array": HEAD
    + FIVE
    + "    change = {(False, True): s, (True, False): -s}.get((now, merged), 0)\n"
    + "    layer.update(W=W + change * (B @ A), merged=merged)\n",
    "the sum is not stored in the layer": HEAD
    + FIVE
    + "    W = W + (int(merged) - int(now)) * s * B @ A\n    layer['merged'] = merged\n",
    "the bypass of the first merge is used again": HEAD
    + FIVE
    + "    if 'bypass' not in layer:\n        layer['bypass'] = s * np.matmul(B, A)\n"
    + "    W += (int(merged) - int(now)) * layer['bypass']\n"
    + "    layer['merged'] = merged\n",
    "A is transposed in the merged weight": BOTH.format("s * np.einsum('or,ir->oi', B, A)"),
    "B is transposed in the merged weight": BOTH.format("s * np.einsum('ro,ri->oi', B, A)"),
    "A and B are multiplied in the wrong order": BOTH.format("s * np.dot(A, B)"),
    "the product of A and B is transposed": BOTH.format("s * (A.T @ B.T)"),
}

UNKNOWN = [
    BOTH.format("(s * B @ A + W)"),  # W too is added to W
    BOTH.format("s / len(A) * B @ A"),  # the rank divides once more
]
