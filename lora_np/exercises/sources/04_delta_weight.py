# %% [markdown]
# # ΔW, its scaling, and rsLoRA
#
# The bypass computes the same output as a matrix $\Delta W$ beside $W$. If two pairs of factors $B$ and $A$ have the same product $BA$, the two pairs are the same adapter.
#
# The scaling $s$ contains $\alpha$ and the rank $r$. The scaling should make the best learning rate independent of $r$, so that you need not search for a new learning rate at each rank. LoRA divides $\alpha$ by $r$. According to the paper on rsLoRA, the scaling is then too small at a high rank, and the adapter learns too slowly. Rank-stabilised LoRA (rsLoRA, [Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)) divides $\alpha$ by the square root of $r$ instead.
#
# $$\Delta W = s\,B A \qquad\qquad s = \frac{\alpha}{r} \quad\text{or, with rsLoRA,}\quad s = \frac{\alpha}{\sqrt r}$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** The result has the shape of $W$ and can be added to $W$. The rank is not an argument of the function, so read the rank from the shapes of the factors.

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
# Try your function on these numbers, or change them. Remove the # of the last line.
A = np.array([[1.0, -1.0, 0.5], [0.0, 2.0, 1.0]])  # r = 2, in = 3
B = np.array([[0.5, 1.0], [-1.0, 0.0], [2.0, 1.0], [0.0, -0.5]])  # out = 4
alpha = 6.0
# print(delta_weight(A, B, alpha))
# print(delta_weight(A, B, alpha, use_rslora=True))

# %%
check(delta_weight)

# %% [markdown]
# **Explain.** At the start $B = 0$. With the learning rate $\eta$, the first step of gradient descent gives $B = -\eta\, s\, dW A^\top$, where $dW$ is the gradient of $W$. How does this step change $\Delta W$? How does this change of $\Delta W$ grow with $r$ and with $s$? Why is this growth a reason to divide by the square root of $r$?

# %% [markdown]
# BEGIN SOLUTION
# After the step, $\Delta W = s\,B A = -\eta\, s^2\, dW\,(A^\top A)$. One factor $s$ comes from the gradient of $B$, and the other factor $s$ comes from $\Delta W = s\,B A$. The matrix $A^\top A$ is a sum over the $r$ rows of $A$. The numbers on the diagonal of $A^\top A$ are sums of $r$ squares, which cannot cancel, so $A^\top A$ grows in proportion to $r$. The change of $\Delta W$ is therefore proportional to $s^2 r$.
#
# With $s = \alpha/r$ the product $s^2 r$ is $\alpha^2/r$. So at a higher rank, a step with the same learning rate changes $\Delta W$ less. With $s = \alpha/\sqrt r$ the product $s^2 r$ is $\alpha^2$, which is the same for every rank.
# END SOLUTION
