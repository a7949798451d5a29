# %% [markdown]
# # dA and dB
#
# Training needs to know how the loss changes with each number of $A$ and of $B$, and the chain rule says so, one product after the other, from the
# loss back to them. The frozen $W$ gets no gradient, but the layers below do, through both paths. Gradients are added to what is there already,
# since the same $A$ and $B$ may act in several places or calls, and each has its say.
#
# $$y = x W^\top + s\,(x A^\top)\,B^\top \qquad\qquad L = \frac1n \sum_{t=1}^{n} \tfrac12\, \lVert y_t - target_t \rVert^2$$
#
# $$dA_{\rho j} = \frac{\partial L}{\partial A_{\rho j}} \qquad\qquad dB_{i \rho} = \frac{\partial L}{\partial B_{i \rho}} \qquad\qquad dx_{t j} = \frac{\partial L}{\partial x_{t j}}$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** The forward pass has been computed, and you get what it left, the error $y - target$ of each of the $n$ tokens. Start from
# $\partial L / \partial y$. If you want to be sure before you ask: change one number of $A$ by $10^{-6}$, compute $L$ again, and divide (the
# cell below the function has numbers for that).

# %%
def lora_backward(error, x, W, A, B, scaling, grads):
    """error = y − target (n, out), x (n, in), W (out, in), A (r, in), B (out, r), scaling s, a number → dx (n, in).

    grads is a dictionary with the arrays "A" (r, in) and "B" (out, r), the gradients so far: dA and dB are added to them.
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
# Numbers to try it on, and to change. Take the # off the last line.
error = np.array([[1.0, -2.0, 0.5, 0.0], [-1.0, 1.0, 2.0, 3.0]])
x = np.array([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])  # n = 2, in = 3
W = np.array([[1.0, 0.0, 2.0], [-1.0, 1.0, 0.0], [0.0, 3.0, 1.0], [2.0, -1.0, 0.5]])  # out = 4
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])
scaling = 1.5
grads = {"A": np.zeros(A.shape), "B": np.zeros(B.shape)}
# For L with another A you need y: that is your lora_forward with alpha = 3. The target, y − error, stays while A changes.
# print(lora_backward(error, x, W, A, B, scaling, grads), grads, sep="\n")

# %%
check(lora_backward)

# %% [markdown]
# **Explain.** $W$ is frozen and gets no gradient. Why does the backward pass need $W$ all the same, and why must $x$ be kept for it, as in full
# fine-tuning? What, then, does LoRA save in memory?

# %% [markdown]
# BEGIN SOLUTION
# The layers below learn from $dx$, and $x$ reaches the loss through $W$ as well as through the bypass: without $W$ they would be told half of the
# truth. $x$ is needed for $dA$, in which it is a factor, and for $x A^\top$ in $dB$ (that one could be kept instead, it is narrow). So activations are
# hardly saved. What is saved is $dW$, as large as $W$, and the optimizer's two averages of it, twice as large again, in every adapted layer.
# END SOLUTION
