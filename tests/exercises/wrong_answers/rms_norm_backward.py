"""Wrong answers to rms_norm_backward, written differently from the solution."""

HEAD = "import numpy as np\ndef rms_norm_backward(dy, x, w, eps):\n"
RHO = "    n = x.shape[-1]\n    rho = ((x**2).sum(axis=-1, keepdims=True) / n + eps) ** -0.5\n"
DW = "    dw = np.sum(dy * x * rho, axis=tuple(range(x.ndim - 1)))\n"
DX = "    dx = rho * (w * dy - x * rho**2 * ((w * dy * x).mean(axis=-1, keepdims=True)))\n"
OUT = "    return dx, dw\n"


def dx(formula: str) -> str:
    return HEAD + RHO + DW + f"    dx = {formula}\n" + OUT


def dw(formula: str) -> str:
    return HEAD + RHO + f"    dw = {formula}\n" + DX + OUT


def rho(formula: str) -> str:
    return HEAD + f"    rho = {formula}\n" + DW + DX + OUT


ANSWERS = {
    "rho is treated as a constant in dx": dx("np.einsum('...i,i->...i', dy, w) * rho"),
    "dw is not summed over the tokens": dw("dy * (x * rho)"),
    "dw is summed over the features": dw("np.einsum('...i,...i->...', dy, rho * x)"),
    "dw is summed over the first axis only": dw("np.sum(dy * rho * x, axis=0)"),
    "dw leaves out rho": dw("np.sum(dy * x, axis=tuple(range(x.ndim - 1)))"),
    "dw has w as a factor too": dw("w * np.sum(dy * x * rho, axis=tuple(range(x.ndim - 1)))"),
    "w is missing in the inner sum": dx("dy * w * rho - x * rho**3 * (dy * x).mean(axis=-1, keepdims=True)"),
    "w is missing in the direct path": dx("rho * dy - rho**3 * x * (dy * w * x).mean(axis=-1, keepdims=True)"),
    "w is missing in dx altogether": dx("rho * dy - rho**3 * x * (dy * x).mean(axis=-1, keepdims=True)"),
    "w multiplies the inner sum from outside": dx(
        "w * rho * (dy - rho**2 * x * (dy * x).mean(axis=-1, keepdims=True))"
    ),
    "1/d is missing in the second term": dx("w * dy * rho - x * rho**3 * np.sum(w * dy * x, axis=-1, keepdims=True)"),
    "the second term has the wrong sign": dx("w * dy * rho + x * rho**3 * np.mean(w * dy * x, axis=-1, keepdims=True)"),
    "rho is squared in the second term": dx("rho * (w * dy - x * rho * np.mean(w * dy * x, axis=-1, keepdims=True))"),
    "rho has the power 1 in the second term": dx("rho * (w * dy - x * np.mean(w * dy * x, axis=-1, keepdims=True))"),
    "the second term is doubled": dx(
        "w * dy * rho - (2 * x / n) * rho**3 * np.sum(w * dy * x, axis=-1, keepdims=True)"
    ),
    "the second term is halved": dx(
        "w * dy * rho - (x / (2 * n)) * rho**3 * np.sum(w * dy * x, axis=-1, keepdims=True)"
    ),
    "epsilon is left out": rho("(x**2).mean(-1, keepdims=True) ** -0.5"),
    "the mean runs over the tokens": rho("((x**2).sum(0, keepdims=True) / len(x) + eps) ** -0.5"),
    "the mean runs over all tokens and features": HEAD
    + "    rho = np.full(x.shape, ((x**2).sum() / x.size + eps) ** -0.5)\n"
    + DW
    + DX
    + OUT,
    "rho contains the sum of the squares instead of their mean": rho(
        "(np.einsum('...i,...i->...', x, x)[..., None] + eps) ** -0.5"
    ),
    "rho lacks the square root": rho("((x**2).mean(-1, keepdims=True) + eps) ** -1.0"),
    "rho is not inverted": rho("((x**2).mean(-1, keepdims=True) + eps) ** 0.5"),
    "epsilon is outside the root": rho("1 / ((x**2).mean(-1, keepdims=True) ** 0.5 + eps)"),
    "the function is LayerNorm's backward pass": HEAD
    + "    h = x - x.mean(-1, keepdims=True)\n    rho = ((h**2).mean(-1, keepdims=True) + eps) ** -0.5\n    h = h * rho\n"
    + "    dw = (dy * h).reshape(-1, len(w)).sum(0)\n    g = dy * w\n"
    + "    dx = rho * (g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True))\n"
    + OUT,
    "dw is a mean over the tokens": dw("np.mean(dy * x * rho, axis=tuple(range(x.ndim - 1)))"),
    "dw is not returned": HEAD + RHO + DX + "    return dx\n",
    "the mean of the squares has lost its last axis": rho("1 / ((x**2).mean(-1) + eps) ** 0.5"),
    "the inner sum has lost its last axis": dx("w * dy * rho - x * rho**3 * np.mean(w * dy * x, axis=-1)"),
    "the inner sum has only one term": dx("w * dy * rho * (1 - x**2 * rho**2 / n)"),
    "the inner sum runs over the tokens": dx("w * dy * rho - x * rho**3 / n * np.einsum('n...,n...->...', w * dy, x)"),
    "the inner sum runs over all tokens and features": dx("w * dy * rho - x * rho**3 / n * np.vdot(w * dy, x)"),
    "dx and dw are returned in the wrong order": HEAD + RHO + DW + DX + "    return dw, dx\n",
}

UNKNOWN = [
    dx("w * dy * rho - x * rho**3 * np.mean(w**2 * dy * x, axis=-1, keepdims=True)"),
    dw("np.sum(dy * x**2 * rho, axis=tuple(range(x.ndim - 1)))"),
    dx("w * dy * rho - w * x * rho**3 * np.mean(w * dy * x, axis=-1, keepdims=True)"),
]
