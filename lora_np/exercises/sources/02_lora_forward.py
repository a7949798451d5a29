# %% [markdown]
# # The forward pass of LoRA
#
# A frozen weight $W$ keeps what the model knows, and a narrow bypass beside it learns what is new. The bypass takes the input
# down to $r$ features with $A$, up again with $B$, and is scaled by $\alpha/r$, so that $\alpha$ says how loud it is whatever the rank.
# Both paths read the same input, and their outputs are added.
#
# $$y = x W^\top + \frac{\alpha}{r}\,(x A^\top)\,B^\top$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try it on the numbers below as often as you like; then `check` says whether it is right, and if it is not, what
# went wrong.

# %%
def lora_forward(x, W, A, B, alpha):
    """x (…, in), W (out, in), A (r, in), B (out, r) → y (…, out)."""
    # BEGIN SOLUTION
    r = A.shape[0]
    scaling = alpha / r
    frozen = x @ W.T  # (…, in) (in, out) → (…, out)
    hidden = x @ A.T  # (…, in) (in, r) → (…, r)
    bypass = hidden @ B.T  # (…, r) (r, out) → (…, out)
    return frozen + scaling * bypass
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # n = 2, in = 3
W = np.array([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])  # out = 4
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])
alpha = 6.0
# print(lora_forward(x, W, A, B, alpha))

# %%
check(lora_forward)

# %% [markdown]
# **Explain.** $(x A^\top) B^\top$ and $x\,(B A)^\top$ are the same numbers. Why is one of them what everybody computes, and when would you
# compute the other?

# %% [markdown]
# BEGIN SOLUTION
# For $n$ tokens the first costs $n\,r\,(in + out)$ multiplications, the second first builds the $out \times in$ matrix $BA$ (that alone costs
# $out \cdot r \cdot in$) and then multiplies with it ($n \cdot in \cdot out$), as much as the frozen layer itself. With $r$ far below $in$ and
# $out$ the first is nearly free. One computes $BA$ once, to add it into $W$: merging, after which the bypass costs nothing at all.
# END SOLUTION
