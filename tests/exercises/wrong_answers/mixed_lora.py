"""Wrong answers to mixed_lora, written differently from the solution."""

HEAD = "import numpy as np\ndef mixed_lora(x, W, adapters, names):\n"
ONE = "    def through(row, A, B, s):\n        return s * np.einsum('ti,ri,or->to', row, A, B)\n"
EACH = (
    HEAD
    + ONE
    + "    out = []\n    for i, (row, name) in enumerate(zip(x, names)):\n        y = row @ W.T\n"
    + "{}        out.append(y)\n    return np.array(out)\n"
)

ANSWERS = {
    "all batch rows use the adapter of the first row": HEAD
    + "    y = np.einsum('bti,oi->bto', x, W)\n    if names[0] in adapters:\n        A, B, s = adapters[names[0]]\n"
    + "        y = y + s * x @ A.T @ B.T\n    return y\n",
    "every batch row uses all adapters": HEAD
    + "    return x @ W.T + sum(s * (x @ A.T) @ B.T for A, B, s in adapters.values())\n",
    "a batch row that should use the base alone gets an adapter": EACH.format(
        "        y = y + through(row, *adapters.get(name, list(adapters.values())[0]))\n"
    ),
    "the output of a batch row that should use the base alone stays zero": HEAD
    + ONE
    + "    y = np.zeros((*x.shape[:2], len(W)))\n    for i, name in enumerate(names):\n"
    + "        if name != '__base__':\n            y[i] = x[i] @ W.T + through(x[i], *adapters[name])\n    return y\n",
    "batch rows with an adapter lack the frozen path x Wᵀ": EACH.format(
        "        if name in adapters:\n            y = through(row, *adapters[name])\n"
    ),
    "batch rows with an adapter get the frozen path x Wᵀ twice": EACH.format(
        "        if name in adapters:\n            A, B, s = adapters[name]\n            y += row @ (W + s * B @ A).T\n"
    ),
    "the adapter of a batch row is selected by the index of the row instead of the name in `names`": EACH.format(
        "        keys = list(adapters)\n        y = y + through(row, *adapters[keys[i % len(keys)]])\n"
    ),
    "only one of several batch rows with the same adapter gets the bypass": HEAD
    + "    y = x @ W.T\n    for name in set(names) - {'__base__'}:\n        A, B, s = adapters[name]\n"
    + "        i = names.index(name)\n"
    + "        y[i] += s * x[i] @ A.T @ B.T\n    return y\n",
    "the output rows are sorted by adapter instead of by batch row": HEAD
    + ONE
    + "    parts = []\n    for name in [*adapters, '__base__']:\n        for i in range(len(names)):\n"
    + "            if names[i] == name:\n                y = x[i] @ W.T\n"
    + "                parts.append(y if name == '__base__' else y + through(x[i], *adapters[name]))\n"
    + "    return np.stack(parts)\n",
    "the scaling s is missing in the bypass": EACH.format(
        "        if name in adapters:\n            A, B, _ = adapters[name]\n            y += row @ (B @ A).T\n"
    ),
    "the scaling s of one adapter is used for all adapters": EACH.format(
        "        if i == 0:\n            scaling = list(adapters.values())[0][2]\n"
        "        if name in adapters:\n            y += scaling * through(row, *adapters[name][:2], 1)\n"
    ),
    "the weight matrix W is not transposed": EACH.replace("row @ W.T", "np.dot(row, W)").format(
        "        if name in adapters:\n            y = y + through(row, *adapters[name])\n"
    ),
    "the factor A of the adapters is not transposed": EACH.format(
        "        if name in adapters:\n            A, B, s = adapters[name]\n            y += s * np.dot(np.dot(row, A), B.T)\n"
    ),
    "the factor B of the adapters is not transposed": EACH.format(
        "        if name in adapters:\n            A, B, s = adapters[name]\n            y += s * np.dot(np.dot(row, A.T), B)\n"
    ),
    "none of the matrices W, A and B is transposed": EACH.replace("row @ W.T", "np.dot(row, W)").format(
        "        if name in adapters:\n            A, B, s = adapters[name]\n            y = y + row @ A @ B * s\n"
    ),
    "only one token of a batch row gets the bypass": EACH.format(
        "        if name != '__base__':\n            y[-1:] += through(row[-1:], *adapters[name])\n"
    ),
    "the bypass is added to a batch row several times, once for each row with the same adapter": HEAD
    + "    y = x @ W.T\n    for name in names:\n        if name in adapters:\n            A, B, s = adapters[name]\n"
    + "            mine = np.array(names) == name\n            y[mine] += s * x[mine] @ A.T @ B.T\n    return y\n",
}

UNKNOWN = [
    EACH.format(
        "        if name in adapters:\n            A, B, s = adapters[name]\n            y += through(row, A, B, s / len(A))\n"
    ),
    EACH.format("        if name in adapters:\n            y += through(np.abs(row), *adapters[name])\n"),
]
