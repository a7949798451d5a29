# %% [markdown]
# # How many numbers LoRA trains
#
# LoRA leaves a matrix $W$ as it is and learns a change $\Delta W$ of the same shape, written as the product of two narrow factors. Only the
# factors are trained and stored, so that an adapter is small although what it adds is as large as $W$. A model is adapted in many matrices at
# once, and they need not be square: with grouped-query attention, `k_proj` and `v_proj` have fewer features out than in.
#
# $$\Delta W = \frac{\alpha}{r}\,B A \qquad\qquad \Delta W\colon (out, in) \qquad B\colon (out, r) \qquad A\colon (r, in)$$

# %%
import numpy as np

from lora_np.exercises import check


# %% [markdown]
# **Write this function.** It counts before anything is built, so it gets shapes and no arrays; every matrix gets an adapter of its own, all of the
# same rank.

# %%
def count_lora(shapes, r):
    """shapes, a list of (out, in), one for each targeted matrix, and the rank r → how many numbers LoRA trains in all, an int."""
    # BEGIN SOLUTION
    total = 0
    for out, in_ in shapes:
        size_A = r * in_  # A (r, in)
        size_B = out * r  # B (out, r)
        total += size_A + size_B
    return total
    # END SOLUTION


# %%
# Numbers to try it on, and to change. Take the # off the last line.
shapes = [(2, 3), (5, 3)]
r = 2
# print(count_lora(shapes, r))

# %%
check(count_lora)

# %% [markdown]
# **Explain.** The same rank is a smaller share of a large model than of a small one. Why? And is there a rank from which on LoRA trains more numbers
# than there are in $W$, and what would all those numbers be good for?

# %% [markdown]
# BEGIN SOLUTION
# $W$ is as large as the product of its sides, the two factors as large as $r$ times their sum. For a square matrix of width $d$ the share is
# $2dr / d^2 = 2r/d$, which falls as the model gets wider. Above $r = d/2$ there are more numbers in the factors than in $W$. They are not
# good for much: already at $r = d$ the product can be any matrix at all, and many pairs of factors have the same product, because
# $(B M)(M^{-1} A) = B A$ for every invertible $M$ $(r, r)$. LoRA saves where $r$ is small beside both sides, and only there.
# END SOLUTION
