"""Wrong answers to set_merged, written differently from the solution."""

HEAD = "import numpy as np\ndef set_merged(layer, merged):\n"
FIVE = "    W, A, B, s, now = (layer[key] for key in ('W', 'A', 'B', 'scaling', 'merged'))\n"
BOTH = (
    HEAD + FIVE + "    if now != merged:\n        W += (1 if merged else -1) * {}\n        layer['merged'] = merged\n"
)

ANSWERS = {
    "the factor scaling is missing in the merged weight matrix W": BOTH.format("np.dot(B, A)"),
    "the bypass is multiplied by the scaling twice in the merged weight matrix W": BOTH.format("(s * B) @ (s * A)"),
    "the scaling is used either in merging or in unmerging, but not in both": HEAD
    + FIVE
    + "    if merged and not now:\n        W += s * np.einsum('or,ri->oi', B, A)\n"
    + "    if now and not merged:\n        W -= np.einsum('or,ri->oi', B, A)\n"
    + "    layer['merged'] = merged\n",
    'the function does not read the layer\'s state layer["merged"]': HEAD
    + FIVE
    + "    W += s * B @ A if merged else -s * B @ A\n    layer['merged'] = merged\n",
    "merging a layer that is already merged changes W": HEAD
    + FIVE
    + "    if merged:\n        W += s * B @ A\n    elif now:\n        W -= s * B @ A\n    layer['merged'] = merged\n",
    "unmerging a layer that is not merged changes W": HEAD
    + FIVE
    + "    if merged and not now:\n        W += s * B @ A\n"
    + "    elif not merged:\n        W -= s * B @ A\n"
    + "    layer['merged'] = merged\n",
    "the function reverses the layer's state without reading the argument `merged`": HEAD
    + FIVE
    + "    W += (-s if now else s) * B @ A\n    layer['merged'] = not now\n",
    'the function does not store the new state in layer["merged"]': HEAD
    + FIVE
    + "    if now == merged:\n        return\n    W += (s if merged else -s) * (B @ A)\n    now = merged\n",
    "unmerging adds the bypass to W instead of subtracting the bypass": HEAD
    + FIVE
    + "    if now is not merged:\n        np.add(W, s * B @ A, out=W)\n    layer['merged'] = merged\n",
    "merging subtracts the bypass from W and unmerging adds it, but it must be the other way round": HEAD
    + FIVE
    + "    W -= (int(merged) - int(now)) * s * B @ A\n    layer['merged'] = merged\n",
    "unmerging does not subtract the bypass from W": HEAD
    + FIVE
    + "    if merged and not now:\n        W += s * B @ A\n    layer['merged'] = merged\n",
    "unmerging restores an old copy of W instead of subtracting the bypass": HEAD
    + FIVE
    + "    if merged and not now:\n        layer['before'] = np.array(W)\n        W[:] = W + B @ A * s\n"
    + "    elif now and not merged:\n        W[:] = layer.pop('before')\n"
    + "    layer['merged'] = merged\n",
    'the function replaces layer["W"] by a new array instead of changing the existing array': HEAD
    + FIVE
    + "    change = {(False, True): s, (True, False): -s}.get((now, merged), 0)\n"
    + "    layer.update(W=W + change * (B @ A), merged=merged)\n",
    'the merged weight matrix is not stored in layer["W"]': HEAD
    + FIVE
    + "    W = W + (int(merged) - int(now)) * s * B @ A\n    layer['merged'] = merged\n",
    "the product BA of the first merge is used for all later merges": HEAD
    + FIVE
    + "    if 'bypass' not in layer:\n        layer['bypass'] = s * np.matmul(B, A)\n"
    + "    W += (int(merged) - int(now)) * layer['bypass']\n"
    + "    layer['merged'] = merged\n",
    "the factor A is transposed in the merged weight matrix": BOTH.format("s * np.einsum('or,ir->oi', B, A)"),
    "the factor B is transposed in the merged weight matrix": BOTH.format("s * np.einsum('ro,ri->oi', B, A)"),
    "A and B are multiplied in the wrong order, AB instead of BA": BOTH.format("s * np.dot(A, B)"),
    "the product BA is transposed before it is added to W": BOTH.format("s * (A.T @ B.T)"),
}

UNKNOWN = [
    BOTH.format("(s * B @ A + W)"),  # W too is added to W
    BOTH.format("s / len(A) * B @ A"),  # the rank divides once more
]
