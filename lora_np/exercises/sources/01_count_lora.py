# %% [markdown]
# # How many numbers LoRA trains
#
# LoRA freezes a matrix $W$ and learns a change $\Delta W$ of the same shape. The change $\Delta W$ is the product of two narrow factors, $B$ and $A$. Only the factors are trained and stored, so an adapter is small, although $\Delta W$ is as large as $W$.
#
# LoRA adapts many matrices of a model at once. These matrices need not be square. With grouped-query attention, `k_proj` and `v_proj` have fewer outputs than inputs.
#
# $$\Delta W = \frac{\alpha}{r}\,B A \qquad\qquad \Delta W\colon (out, in) \qquad B\colon (out, r) \qquad A\colon (r, in)$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** The function counts the trained numbers before any array exists, so its arguments are the shapes of the matrices and the rank. Every matrix has its own adapter, and all adapters have the rank $r$.

# %%
def count_lora(shapes, r):
    """Count the numbers that LoRA trains.

    shapes: a list with one pair (out, in) per adapted matrix. r: the rank. Returns an int.
    """
    # BEGIN SOLUTION
    total = 0
    for out, in_ in shapes:
        size_A = r * in_  # A (r, in)
        size_B = out * r  # B (out, r)
        total += size_A + size_B
    return total
    # END SOLUTION


# %%
# Try your function on these numbers, or change them. Remove the # of the last line.
shapes = [(2, 3), (5, 3)]
r = 2
# print(count_lora(shapes, r))

# %%
check(count_lora)

# %% [markdown]
# **Explain.** At the same rank, why does LoRA train a smaller share of a large model than of a small model? From which rank on does LoRA train more numbers than a square $W$ has? Are the additional numbers useful?

# %% [markdown]
# BEGIN SOLUTION
# $W$ has $out \cdot in$ numbers, and the two factors have $r\,(in + out)$ numbers. For a square matrix of width $d$, the number of trained numbers divided by the size of $W$ is $2dr / d^2 = 2r/d$. This share falls as $d$ grows.
#
# For $r > d/2$ the factors have more numbers than $W$. The additional numbers are of little use, because at $r = d$ the product $BA$ can already be any matrix. Many pairs of factors give the same product $BA$, because $(B M)(M^{-1} A) = B A$ for every invertible $M$ $(r, r)$. LoRA saves memory only if $r$ is small compared with $in$ and $out$.
# END SOLUTION
