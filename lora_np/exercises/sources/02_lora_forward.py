# %% [markdown]
# # The forward pass of LoRA
#
# A frozen weight $W$ keeps what the model has learned before fine-tuning. Beside $W$, a narrow bypass learns the new task. The bypass multiplies the input by $A$, which gives $r$ features. Then it multiplies these features by $B$, which gives $out$ features, and by the scaling $\alpha/r$. The frozen path with $W$ and the bypass read the same input $x$, and their outputs are added.
#
# $$y = x W^\top + \frac{\alpha}{r}\,(x A^\top)\,B^\top$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** Try your function on the numbers below first. `check` then says whether the function is right. If it is not right, `check` names the mistake and gives a hint.

# %%
def lora_forward(x, W, A, B, alpha):
    """x (…, in), W (out, in), A (r, in), B (out, r), alpha a number → y (…, out)."""
    # BEGIN SOLUTION
    r = A.shape[0]
    scaling = alpha / r
    frozen = x @ W.T  # (…, in) (in, out) → (…, out)
    hidden = x @ A.T  # (…, in) (in, r) → (…, r)
    bypass = hidden @ B.T  # (…, r) (r, out) → (…, out)
    return frozen + scaling * bypass
    # END SOLUTION


# %%
# Try your function on these numbers, or change them. Remove the # of the last line.
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # n = 2, in = 3
W = np.array([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])  # out = 4
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])
alpha = 6.0
# print(lora_forward(x, W, A, B, alpha))

# %%
check(lora_forward)

# %% [markdown]
# **Explain.** The first form $(x A^\top) B^\top$ and the second form $x (B A)^\top$ are equal. Why does LoRA compute the first form in training? When is the matrix $BA$ of the second form needed?

# %% [markdown]
# BEGIN SOLUTION
# For $n$ tokens the first form costs $n\,r\,(in + out)$ multiplications. The second form first computes the matrix $BA$, which costs $out \cdot r \cdot in$ multiplications. Then the second form multiplies $x$ by this matrix, which costs $n \cdot in \cdot out$ multiplications. The frozen path costs as many. If $r$ is far below $in$ and $out$, the first form is much cheaper.
#
# The matrix $BA$ is needed once, to merge the adapter. Merging adds $\frac{\alpha}{r} BA$ to $W$, and the layer then computes no bypass.
# END SOLUTION
