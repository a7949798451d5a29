"""Wrong answers to count_lora, written differently from the solution."""

HEAD = "import numpy as np\ndef count_lora(shapes, r):\n"

ANSWERS = {
    "B is counted as if it had the size of A": HEAD + "    return sum(2 * r * shape[1] for shape in shapes)\n",
    "A is counted as if it had the size of B": HEAD + "    return int(2 * r * np.array(shapes)[:, 0].sum())\n",
    "B is not counted": HEAD + "    return sum(np.zeros((r, k)).size for _, k in shapes)\n",
    "A is not counted": HEAD + "    return r * sum(d for d, _ in shapes)\n",
    "the numbers of ΔW are counted": HEAD + "    return int(np.prod(shapes, axis=1).sum())\n",
    "the frozen W is counted too": HEAD + "    return sum(d * k + r * (d + k) for d, k in shapes)\n",
    "an r × r matrix is counted between A and B": HEAD + "    return sum(d * r + r**2 + r * k for d, k in shapes)\n",
    "a bias is counted with each matrix": HEAD + "    return r * int(np.sum(shapes)) + sum(d for d, k in shapes)\n",
    "the sizes of A and B are multiplied": HEAD + "    return sum((r * k) * (d * r) for d, k in shapes)\n",
    "the sides of the matrix are multiplied instead of added": HEAD
    + "    return int(r * np.prod(shapes, axis=1).sum())\n",
    "the rank multiplies only one side of the matrix": HEAD + "    return sum(r * d + k for d, k in shapes)\n",
    "the rank is added to the sides of the matrix": HEAD + "    return int(np.sum(shapes)) + r * len(shapes)\n",
    "the rank is left out": HEAD + "    return int(np.sum(shapes))\n",
    "only the first matrix is counted": HEAD + "    for d, k in shapes:\n        return r * (d + k)\n",
    "only the last matrix is counted": HEAD + "    d, k = shapes[-1]\n    return r * d + r * k\n",
    "matrices of the same shape are counted once": HEAD
    + "    counts = {(d, k): r * (d + k) for d, k in shapes}\n    return sum(counts.values())\n",
}

UNKNOWN = [
    HEAD + "    return sum(2 * r * min(d, k) for d, k in shapes)\n",
    HEAD + "    return sum(d * k - r * (d + k) for d, k in shapes)\n",
    HEAD + "    return 4 * r * int(np.sum(shapes))\n",
]
