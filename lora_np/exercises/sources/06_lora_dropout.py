# %% [markdown]
# # Dropout in front of the bypass
#
# During training, dropout sets some numbers of $x$ to zero for the bypass, each with probability $p$ and independently of the other numbers. Therefore the adapter cannot rely on a few features. The frozen path reads the whole $x$, because the frozen path does not learn. The kept numbers of $x$ are multiplied by a factor, so that the mean of the bypass over all masks equals the bypass without dropout.
#
# $$y = x W^\top + s\,\big((x \circ m)\,A^\top\big)\,B^\top \qquad\qquad m_{tj} = 0 \text{ with probability } p \qquad\qquad \mathbb{E}[m_{tj}] = 1$$
#
# The sign $\circ$ multiplies two arrays number by number.

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** The function computes the forward pass of one training step, and then the gradient of the loss with respect to $x$. Derive the value of the kept numbers of $m$ from $\mathbb{E}[m_{tj}] = 1$. You may draw the random numbers in any way: `check` does not compare them.

# %%
def lora_dropout(x, W, A, B, scaling, p, rng, dy):
    """x (n, in), W (out, in), A (r, in), B (out, r), scaling s, 0 < p < 1,
    rng a np.random.Generator, dy = ∂L/∂y (n, out) → y (n, out), dx = ∂L/∂x (n, in).

    The layer is in training mode. Do not change the arguments.
    """
    # BEGIN SOLUTION
    kept = rng.random(x.shape) >= p  # (n, in), a decision for each number
    mask = np.where(kept, 1 / (1 - p), 0.0)
    dropped = x * mask
    frozen = x @ W.T  # (n, in) (in, out) → (n, out)
    bypass = scaling * (dropped @ A.T @ B.T)  # (n, in) (in, r) (r, out) → (n, out)
    y = frozen + bypass
    dx_frozen = dy @ W  # (n, out) (out, in) → (n, in)
    dx_dropped = scaling * (dy @ B @ A)  # (n, out) (out, r) (r, in) → (n, in)
    dx = dx_frozen + dx_dropped * mask
    return y, dx
    # END SOLUTION


# %%
# Try your function on these numbers, or change them. Remove the # of the last line.
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # n = 2, in = 3
W = np.array([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])  # out = 4
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])
scaling, p = 1.5, 0.25
rng = np.random.default_rng(0)
dy = np.array([[1.0, -2.0, 0.5, 0.0], [-1.0, 1.0, 2.0, 3.0]])
# print(*lora_dropout(x, W, A, B, scaling, p, rng, dy), sep="\n")

# %%
check(lora_dropout)

# %% [markdown]
# **Explain.** An adapter that was trained with dropout is merged into $W$ without a factor that depends on $p$. Why does merging need no such factor? Why must the backward pass use the mask of the forward pass, and not a new random mask?

# %% [markdown]
# BEGIN SOLUTION
# The bypass is linear in $x \circ m$, and the mean of $m$ is 1. So the mean of $y$ over all masks is the output of the layer without dropout, $x\,(W + s\,B A)^\top$. The factor $1/(1-p)$ was already used during training, so merging needs no correction.
#
# The backward pass computes the derivative of the loss that the forward pass computed. In this loss, a dropped number has no influence through the bypass, and a kept number has $1/(1-p)$ times the usual influence. With a new mask, dropped numbers would get a gradient, and the result would not be the gradient of any loss.
# END SOLUTION
