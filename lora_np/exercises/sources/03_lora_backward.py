# %% [markdown]
# # dA and dB
#
# Training needs the derivative of the loss with respect to each number of $A$ and $B$. The chain rule gives this derivative. It starts at the loss and goes back through one matrix product after another to $A$ and $B$. The frozen $W$ gets no gradient. The layers below need $dx$, which is a sum of two parts, one from the frozen path and one from the bypass.
#
# The new gradients are *added* to the gradients of earlier calls, because several calls can use the same $A$ and $B$.
#
# $$y = x W^\top + s\,(x A^\top)\,B^\top \qquad\qquad L = \frac1n \sum_{t=1}^{n} \tfrac12\, \lVert y_t - target_t \rVert^2$$
#
# $$dA = \frac{\partial L}{\partial A}\colon (r, in) \qquad\qquad dB = \frac{\partial L}{\partial B}\colon (out, r) \qquad\qquad dx = \frac{\partial L}{\partial x}\colon (n, in)$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** The forward pass is already computed. You get the error $y - target$ of each of the $n$ tokens. Start with $dy = \partial L / \partial y$.
#
# To test your result before `check`, change one number of $A$ by $10^{-6}$, compute $L$ again, and divide the difference by $10^{-6}$. The cell below the function contains numbers for this test.

# %%
def lora_backward(error, x, W, A, B, scaling, grads):
    """error = y − target (n, out), x (n, in), W (out, in), A (r, in), B (out, r), scaling s
    → dx (n, in).

    grads is a dict with the gradients so far, "A" (r, in) and "B" (out, r).
    Add dA and dB to them.
    """
    # BEGIN SOLUTION
    n = x.shape[0]
    dy = error / n  # (n, out)
    hidden = x @ A.T  # (n, in) (in, r) → (n, r)
    dB = scaling * (dy.T @ hidden)  # (out, n) (n, r) → (out, r)
    dhidden = dy @ B  # (n, out) (out, r) → (n, r)
    dA = scaling * (dhidden.T @ x)  # (r, n) (n, in) → (r, in)
    grads["A"] += dA
    grads["B"] += dB
    frozen = dy @ W  # (n, out) (out, in) → (n, in)
    bypass = scaling * (dhidden @ A)  # (n, r) (r, in) → (n, in)
    return frozen + bypass
    # END SOLUTION


# %%
# Try your function on these numbers, or change them. Remove the # of the last line.
error = np.array([[1.0, -2.0, 0.5, 0.0], [-1.0, 1.0, 2.0, 3.0]])
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # n = 2, in = 3
W = np.array([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])  # out = 4
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])
scaling = 1.5
grads = {"A": np.zeros(A.shape), "B": np.zeros(B.shape)}
# To compute L with another A you need y: your lora_forward with alpha = 3 (s = 3/2).
# The target y − error stays the same while A changes.
# print(lora_backward(error, x, W, A, B, scaling, grads), grads, sep="\n")

# %%
check(lora_backward)

# %% [markdown]
# **Explain.** $W$ is frozen and gets no gradient. Why does the backward pass still need $W$? Why must LoRA keep $x$ in memory, as full fine-tuning does? Which memory does LoRA save compared with full fine-tuning?

# %% [markdown]
# BEGIN SOLUTION
# The layers below need $dx$, and $x$ reaches the loss through $W$ as well as through the bypass. Without $W$, one of the two parts of $dx$ would be missing. The input $x$ is a factor of $dA$, so the layer must keep $x$. ($dB$ needs only $x A^\top$, which is narrow.) So LoRA hardly saves memory for activations.
#
# In every adapted layer, LoRA saves the memory of $dW$, which is as large as $W$. LoRA also saves the memory of the two averages that full fine-tuning keeps for $W$ in the optimizer. Together these averages are twice as large as $W$.
# END SOLUTION
