# %% [markdown]
# # The backward pass of RMSNorm
#
# RMSNorm divides each token by the root of its mean square, and then multiplies each feature with a factor $w_i$. An input feature reaches the loss on two paths: through its own output, and through $\rho$, which is in all outputs of its token. The gradients of the two paths are added.
#
# $$y_i = w_i\, x_i\, \rho, \qquad \rho = \Big(\frac1d \sum_j x_j^2 + \varepsilon\Big)^{-1/2}$$
#
# You get $dy_{ni} = \partial L / \partial y_{ni}$ for every token $n$. Compute $dx_{ni} = \partial L / \partial x_{ni}$ and $dw_i = \partial L / \partial w_i$. All tokens share $w$, and $\varepsilon$ is a constant. Derive both gradients on paper first.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function on the numbers below first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def rms_norm_backward(dy, x, w, eps):
    """dy (…, d), x (…, d), w (d,), eps a number → dx (…, d), dw (d,).

    The last axis contains the features. The one or more axes before it contain the tokens.
    """
    # BEGIN SOLUTION
    d = x.shape[-1]
    mean_square = np.mean(x * x, axis=-1, keepdims=True)  # (…, d) → (…, 1)
    rho = 1 / np.sqrt(mean_square + eps)
    share = dy * x * rho  # the share of each token in dw
    dw = share.reshape(-1, d).sum(axis=0)  # (…, d) → (tokens, d) → (d,)
    g = dy * w
    direct = rho * g
    dot = np.sum(g * x, axis=-1, keepdims=True)  # (…, d) → (…, 1)
    through_rho = -x * rho**3 * dot / d
    dx = direct + through_rho
    return dx, dw
    # END SOLUTION


# %%
# Try your function on these numbers, or change them. Remove the # of the last line.
dy = np.array([[1.0, -2.0, 0.5], [-1.0, 1.0, 2.0]])  # 2 tokens, d = 3
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
w = np.array([2.0, 0.5, 1.0])
eps = 0.5
# print(*rms_norm_backward(dy, x, w, eps), sep="\n")

# %%
check(rms_norm_backward)

# %% [markdown]
# **Explain.** Let $\varepsilon$ be 0. How large is the sum of $dx_j\, x_j$ over the features $j$ of one token? How can you find this sum without deriving $dx$?

# %% [markdown]
# BEGIN SOLUTION
# The sum is 0. If a token is multiplied by a positive number, $\rho$ is divided by the same number, and $y$ does not change. So the loss does not change, and the derivative of the loss in the direction of $x$ is zero. This derivative is $\sum_j dx_j\, x_j$.
#
# The direct path alone would give $\rho \sum_j g_j x_j$ with $g = dy \circ w$, which is not zero in general. The second path removes exactly the part of the gradient in the direction of $x$. With $\varepsilon > 0$ the length of $x$ has a small influence on $y$. Then the sum is $\varepsilon \rho^3 \sum_j g_j x_j$ instead of 0.
# END SOLUTION
