"""Wrong answers to count_lora, written differently from the solution."""

HEAD = "import numpy as np\ndef count_lora(shapes, r):\n"

ANSWERS = {
    "the size of A is counted for B": HEAD + "    return sum(2 * r * shape[1] for shape in shapes)\n",
    "the size of B is counted for A": HEAD + "    return int(2 * r * np.array(shapes)[:, 0].sum())\n",
    "the numbers of B are not counted": HEAD + "    return sum(np.zeros((r, k)).size for _, k in shapes)\n",
    "the numbers of A are not counted": HEAD + "    return r * sum(d for d, _ in shapes)\n",
    "the numbers of the product ΔW are counted instead of the numbers of A and B": HEAD
    + "    return int(np.prod(shapes, axis=1).sum())\n",
    "the numbers of the frozen weight matrix W are counted too": HEAD
    + "    return sum(d * k + r * (d + k) for d, k in shapes)\n",
    "the numbers of an r × r matrix are counted too": HEAD
    + "    return sum(d * r + r**2 + r * k for d, k in shapes)\n",
    "the numbers of a bias are counted with each weight matrix": HEAD
    + "    return r * int(np.sum(shapes)) + sum(d for d, k in shapes)\n",
    "the sizes of A and B are multiplied instead of added": HEAD
    + "    return sum((r * k) * (d * r) for d, k in shapes)\n",
    "the two sides of the weight matrix are multiplied instead of added": HEAD
    + "    return int(r * np.prod(shapes, axis=1).sum())\n",
    "the rank r multiplies only one side of the weight matrix": HEAD + "    return sum(r * d + k for d, k in shapes)\n",
    "the rank r is added to the sides of the weight matrix, but it must multiply each side": HEAD
    + "    return int(np.sum(shapes)) + r * len(shapes)\n",
    "the rank r is left out of the count": HEAD + "    return int(np.sum(shapes))\n",
    "only the first weight matrix of the list is counted": HEAD
    + "    for d, k in shapes:\n        return r * (d + k)\n",
    "only the last weight matrix of the list is counted": HEAD + "    d, k = shapes[-1]\n    return r * d + r * k\n",
    "weight matrices of equal shape are counted only once": HEAD
    + "    counts = {(d, k): r * (d + k) for d, k in shapes}\n    return sum(counts.values())\n",
}

UNKNOWN = [
    HEAD + "    return sum(2 * r * min(d, k) for d, k in shapes)\n",
    HEAD + "    return sum(d * k - r * (d + k) for d, k in shapes)\n",
    HEAD + "    return 4 * r * int(np.sum(shapes))\n",
]
