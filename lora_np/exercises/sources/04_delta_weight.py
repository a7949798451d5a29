# %% [markdown]
# # ΔW, its scaling, and rsLoRA
#
# The bypass computes what a matrix $\Delta W$ beside $W$ would compute, and that matrix is all that $A$ and $B$ mean: other factors with the same
# product are the same adapter. The scaling $s$ makes $\alpha$ the loudness of the bypass and takes the rank out of it, so that one need not tune again for
# another $r$. Dividing by $r$, as LoRA does, takes out too much, and rank-stabilised LoRA (rsLoRA,
# [Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)) divides by its square root instead.
#
# $$\Delta W = s\,B A \qquad\qquad s = \frac{\alpha}{r} \quad\text{or, with rsLoRA,}\quad s = \frac{\alpha}{\sqrt r}$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** What it returns can be added to $W$ as it is. The rank is not among its arguments, because the factors know it.

# %%
def delta_weight(A, B, alpha, use_rslora=False):
    """A (r, in), B (out, r), alpha a number, use_rslora True or False → ΔW (out, in)."""
    # BEGIN SOLUTION
    r = A.shape[0]
    divisor = np.sqrt(r) if use_rslora else r
    scaling = alpha / divisor
    product = B @ A  # (out, r) (r, in) → (out, in)
    return scaling * product
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2, in = 3
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])  # out = 4
alpha = 6.0
# print(delta_weight(A, B, alpha), delta_weight(A, B, alpha, use_rslora=True), sep="\n")

# %%
check(delta_weight)

# %% [markdown]
# **Explain.** At the start $B = 0$, and the first step of gradient descent makes it $-\eta\, s\, dW A^\top$. What does that step change in $\Delta W$, how does
# the change grow with $r$ and with $s$, and what does that say for $\sqrt r$ in the denominator?

# %% [markdown]
# BEGIN SOLUTION
# After the step $\Delta W = s\,B A = -\eta\, s^2\, dW\,(A^\top A)$. One $s$ comes from the gradient, the other from the product. $A^\top A$ is a
# sum over the $r$ rows of $A$; on its diagonal stand sums of $r$ squares, which cannot cancel, so it grows as $r$ does. The change is thus
# proportional to $s^2 r$. With $s = \alpha/r$ that is $\alpha^2/r$: the higher the rank, the less a step of the same learning rate moves, and a high
# rank looks no better than a low one. With $s = \alpha/\sqrt r$ it is $\alpha^2$, the same for every rank.
# END SOLUTION
