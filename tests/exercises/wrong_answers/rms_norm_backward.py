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
    "ρ is treated as a constant in the gradient dx": dx("np.einsum('...i,i->...i', dy, w) * rho"),
    "the gradient dw is not summed over the tokens": dw("dy * (x * rho)"),
    "the gradient dw is summed over the features instead of the tokens": dw("np.einsum('...i,...i->...', dy, rho * x)"),
    "the gradient dw is summed over the first axis only": dw("np.sum(dy * rho * x, axis=0)"),
    "the factor ρ is missing in the gradient dw": dw("np.sum(dy * x, axis=tuple(range(x.ndim - 1)))"),
    "the gradient dw has w as an additional factor": dw("w * np.sum(dy * x * rho, axis=tuple(range(x.ndim - 1)))"),
    "the factor w is missing in the inner sum of the gradient dx": dx(
        "dy * w * rho - x * rho**3 * (dy * x).mean(axis=-1, keepdims=True)"
    ),
    "the factor w is missing in the first term of the gradient dx": dx(
        "rho * dy - rho**3 * x * (dy * w * x).mean(axis=-1, keepdims=True)"
    ),
    "the factor w is missing in both terms of the gradient dx": dx(
        "rho * dy - rho**3 * x * (dy * x).mean(axis=-1, keepdims=True)"
    ),
    "the inner sum of the gradient dx is multiplied by w_j, but each term of the sum must be multiplied by w_i": dx(
        "w * rho * (dy - rho**2 * x * (dy * x).mean(axis=-1, keepdims=True))"
    ),
    "the factor 1/d is missing in the second term of the gradient dx": dx(
        "w * dy * rho - x * rho**3 * np.sum(w * dy * x, axis=-1, keepdims=True)"
    ),
    "the second term of the gradient dx has the wrong sign": dx(
        "w * dy * rho + x * rho**3 * np.mean(w * dy * x, axis=-1, keepdims=True)"
    ),
    "the second term of the gradient dx has the factor ρ² instead of ρ³": dx(
        "rho * (w * dy - x * rho * np.mean(w * dy * x, axis=-1, keepdims=True))"
    ),
    "the second term of the gradient dx has the factor ρ instead of ρ³": dx(
        "rho * (w * dy - x * np.mean(w * dy * x, axis=-1, keepdims=True))"
    ),
    "the second term of the gradient dx is twice as large as it should be": dx(
        "w * dy * rho - (2 * x / n) * rho**3 * np.sum(w * dy * x, axis=-1, keepdims=True)"
    ),
    "the second term of the gradient dx is half as large as it should be": dx(
        "w * dy * rho - (x / (2 * n)) * rho**3 * np.sum(w * dy * x, axis=-1, keepdims=True)"
    ),
    "ε is left out of ρ": rho("(x**2).mean(-1, keepdims=True) ** -0.5"),
    "the mean of the squares in ρ runs over the tokens instead of the features": rho(
        "((x**2).sum(0, keepdims=True) / len(x) + eps) ** -0.5"
    ),
    "the mean of the squares in ρ runs over all tokens and features instead of the features of one token": HEAD
    + "    rho = np.full(x.shape, ((x**2).sum() / x.size + eps) ** -0.5)\n"
    + DW
    + DX
    + OUT,
    "ρ contains the sum of the squares instead of their mean": rho(
        "(np.einsum('...i,...i->...', x, x)[..., None] + eps) ** -0.5"
    ),
    "the square root is missing in ρ": rho("((x**2).mean(-1, keepdims=True) + eps) ** -1.0"),
    "ρ is the root mean square instead of 1 divided by the root mean square": rho(
        "((x**2).mean(-1, keepdims=True) + eps) ** 0.5"
    ),
    "ε is added outside the square root in ρ instead of inside": rho(
        "1 / ((x**2).mean(-1, keepdims=True) ** 0.5 + eps)"
    ),
    "the function computes the backward pass of LayerNorm instead of RMSNorm": HEAD
    + "    h = x - x.mean(-1, keepdims=True)\n    rho = ((h**2).mean(-1, keepdims=True) + eps) ** -0.5\n    h = h * rho\n"
    + "    dw = (dy * h).reshape(-1, len(w)).sum(0)\n    g = dy * w\n"
    + "    dx = rho * (g - g.mean(-1, keepdims=True) - h * (g * h).mean(-1, keepdims=True))\n"
    + OUT,
    "the gradient dw is a mean over the tokens instead of a sum": dw(
        "np.mean(dy * x * rho, axis=tuple(range(x.ndim - 1)))"
    ),
    "the gradient dw is not returned": HEAD + RHO + DX + "    return dx\n",
    "the mean of the squares lacks its last axis (keepdims=True)": rho("1 / ((x**2).mean(-1) + eps) ** 0.5"),
    "the inner sum of the gradient dx lacks its last axis (keepdims=True)": dx(
        "w * dy * rho - x * rho**3 * np.mean(w * dy * x, axis=-1)"
    ),
    "the inner sum of the gradient dx has only the term with i = j": dx("w * dy * rho * (1 - x**2 * rho**2 / n)"),
    "the inner sum of the gradient dx runs over the tokens instead of the features": dx(
        "w * dy * rho - x * rho**3 / n * np.einsum('n...,n...->...', w * dy, x)"
    ),
    "the inner sum of the gradient dx runs over all tokens and features instead of the features of one token": dx(
        "w * dy * rho - x * rho**3 / n * np.vdot(w * dy, x)"
    ),
    "the function returns dw, dx instead of dx, dw": HEAD + RHO + DW + DX + "    return dw, dx\n",
}

UNKNOWN = [
    dx("w * dy * rho - x * rho**3 * np.mean(w**2 * dy * x, axis=-1, keepdims=True)"),
    dw("np.sum(dy * x**2 * rho, axis=tuple(range(x.ndim - 1)))"),
    dx("w * dy * rho - w * x * rho**3 * np.mean(w * dy * x, axis=-1, keepdims=True)"),
]
