# %% [markdown]
# # The backward pass of RMSNorm
#
# RMSNorm divides each token by the root of its mean square and then gives each feature a factor $w_i$. A feature of the input goes two ways:
# to its own output, and through $\rho$ to all outputs of its token. Where paths part, the gradients that come back are added.
#
# $$y_i = w_i\, x_i\, \rho, \qquad \rho = \Big(\frac1d \sum_j x_j^2 + \varepsilon\Big)^{-1/2}$$
#
# You are given $dy_{ni} = \partial L / \partial y_{ni}$ for every token $n$, and owe $dx_{ni} = \partial L / \partial x_{ni}$ and
# $dw_i = \partial L / \partial w_i$. All tokens share the one $w$; $\varepsilon$ is a constant. Derive both on paper first.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try it on the numbers below as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def rms_norm_backward(dy, x, w, eps):
    """dy (…, d), x (…, d), w (d,), eps a number → dx (…, d), dw (d,).

    The last axis is the features; all axes before it, one or more, count tokens.
    """
    # BEGIN SOLUTION
    d = x.shape[-1]
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # (…, d) → (…, 1)
    rho = 1 / np.sqrt(mean_square + eps)
    share = dy * x * rho  # of each token in dw
    dw = share.reshape(-1, d).sum(axis=0)  # (…, d) → (tokens, d) → (d,)
    g = dy * w
    direct = rho * g
    dot = np.sum(g * x, axis=-1, keepdims=True)  # (…, d) → (…, 1)
    through_rho = -x * rho**3 * dot / d
    dx = direct + through_rho
    return dx, dw
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
dy = np.array([[1.0, -2.0, 0.5], [-1.0, 1.0, 2.0]])  # 2 tokens, d = 3
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
w = np.array([2.0, 0.5, 1.0])
eps = 0.5
# print(*rms_norm_backward(dy, x, w, eps), sep="\n")

# %%
check(rms_norm_backward)

# %% [markdown]
# **Explain.** Let $\varepsilon$ be 0. What is $\sum_j dx_j\, x_j$ for one token, and why could you have known it without deriving anything?

# %% [markdown]
# BEGIN SOLUTION
# It is 0. Multiply a token by any positive number: $\rho$ becomes smaller by the same factor, and $y$ does not change, so neither does the loss. The
# derivative of the loss along $x$ itself is therefore zero, and that derivative is $\sum_j dx_j\, x_j$. The direct path alone would give
# $\rho \sum_j g_j x_j$ with $g = dy \circ w$, in general not zero: the second path takes away exactly the part of the gradient that points along
# $x$. With $\varepsilon > 0$ the length counts a little, and a small rest remains, $\varepsilon \rho^3 \sum_j g_j x_j$.
# END SOLUTION
