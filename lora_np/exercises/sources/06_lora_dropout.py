# %% [markdown]
# # Dropout in front of the bypass
#
# While LoRA trains, some numbers of $x$ are hidden from the bypass, each with probability $p$ and independently of all others, so that it cannot rely on a
# few of them. The frozen path reads the whole $x$, since what does not learn cannot learn too much. The numbers that remain are made larger,
# so that on average, over all the masks that there might have been, the bypass is what it is without dropout.
#
# $$y = x W^\top + s\,\big((x \circ m)\,A^\top\big)\,B^\top \qquad\qquad m_{tj} = 0 \text{ with probability } p \qquad\qquad \mathbb{E}[m_{tj}] = 1$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** It does one training step's forward pass and then the backward pass to $x$, in one go. The sign $\circ$ multiplies number by number;
# what $m$ is where it is not zero, you find from $p$. Your random numbers may differ from mine: only what you do with them is checked.

# %%
def lora_dropout(x, W, A, B, scaling, p, rng, dy):
    """x (n, in), W (out, in), A (r, in), B (out, r), scaling s, 0 < p < 1, rng a np.random.Generator, dy = ∂L/∂y (n, out).

    → y (n, out) and dx = ∂L/∂x (n, in), in training mode; no argument is changed.
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
# Numbers to try it on, and to change. Take the # off the last line.
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
# **Explain.** An adapter that was trained with dropout is merged into $W$ as it is, without a factor for $p$. Why is that right? And why must the
# backward pass have the very mask of the forward pass, although another one would be just as random?

# %% [markdown]
# BEGIN SOLUTION
# The bypass is linear in $x \circ m$, and $m$ is 1 on average: so the mean of $y$ over all masks is the layer without dropout, $x\,(W + s\,B A)^\top$. The
# rescaling is already in the training, and nothing is left for the merge to correct. The backward pass computes the derivative of the loss that was
# computed. In that one, a dropped number had no influence through the bypass, and a kept one had $1/(1-p)$ times the usual. A fresh mask would
# credit numbers that were not there; it would be the gradient of no loss at all.
# END SOLUTION
